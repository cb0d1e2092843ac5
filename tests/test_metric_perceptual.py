"""Without the real weights at hand the arithmetic is checked on trunks of random weights: plumbing, whose numbers mean nothing."""

import pickle
import runpy
import sys
from pathlib import Path

import pytest
import torch

from pathorestore._torchvision import ensure_torchvision
from pathorestore.metrics import cached_weights, perceptual
from pathorestore.metrics.accumulators.perceptual import DISTS, LPIPS
from pathorestore.metrics.perceptual import Dists, Lpips

FILES = {"alex": "alexnet-owt-7be5be79.pth", "vgg": "vgg16-397923af.pth", "squeeze": "squeezenet1_1-b8a52dc0.pth"}
MODELS = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}


def _plumbing_checkpoint(net):
    """A state dict with random trunk and a classifier of zeros, which takes no room on the disk."""
    torchvision = ensure_torchvision()
    gen = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        shapes = getattr(torchvision.models, MODELS[net])(weights=None).state_dict()
    state = {}
    for name, tensor in shapes.items():
        if name.startswith("classifier"):
            state[name] = torch.zeros(1).expand(tensor.shape)
        else:
            fan = max(1, tensor[0].numel())
            state[name] = torch.randn(tensor.shape, generator=gen) * (2 / fan) ** 0.5 * (tensor.ndim > 1)
    return state


@pytest.fixture(scope="module")
def plumbing(tmp_path_factory):
    """A torch cache whose trunks are random."""
    home = tmp_path_factory.mktemp("torch")
    folder = home / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    for net, file in FILES.items():
        torch.save(_plumbing_checkpoint(net), folder / file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_HOME", str(home))
        yield {"alex": Lpips(), "vgg": Lpips("vgg"), "squeeze": Lpips("squeeze"), "dists": Dists()}


@pytest.fixture
def _empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))


def _textures(side=64):
    gen = torch.Generator().manual_seed(3)
    fields = [torch.rand(1, 3, side // grain, side // grain, generator=gen) for grain in (2, 4, 8, 16)]
    return torch.cat([torch.nn.functional.interpolate(field, size=side, mode="bilinear") for field in fields]).clamp(0, 1)


def _noisy(image, strength=0.05):
    return (image + strength * torch.randn(image.shape, generator=torch.Generator().manual_seed(5))).clamp(0, 1)


# --- availability ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("_empty_cache")
@pytest.mark.parametrize(("measure", "file"), [*((Lpips(net), file) for net, file in FILES.items()), (Dists(), FILES["vgg"])])
def test_without_weights_the_reason_names_the_file_and_its_folder_and_nothing_is_downloaded(measure, file, tmp_path):
    found = measure.available()
    assert not found.ok
    assert file in found.reason
    assert str(tmp_path / "hub" / "checkpoints") in found.reason
    with pytest.raises(RuntimeError, match=file):
        measure(_textures(), _textures())
    assert not list(Path(tmp_path).rglob("*.pth"))


def test_without_torchvision_the_reason_says_what_to_install(monkeypatch):
    monkeypatch.setattr(perceptual, "ensure_torchvision", lambda: None)
    for measure in (Lpips(), Dists()):
        assert not measure.available().ok
        assert "pip install torchvision" in measure.available().reason


def test_without_dists_in_torchmetrics_the_reason_says_what_to_install(plumbing, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchmetrics.functional.image.dists", None)
    assert not Dists().available().ok
    assert "torchmetrics" in Dists().available().reason
    assert Lpips().available().ok


def test_with_the_file_in_place_it_is_available(plumbing):
    assert all(measure.available() == (True, "") for measure in plumbing.values())


class _Code:
    def __reduce__(self):
        return (print, ("code was run",))


@pytest.mark.parametrize("content", [b"cut short", pickle.dumps(_Code()), None])
def test_a_file_that_is_no_weights_is_refused_and_no_code_of_it_is_run(tmp_path, monkeypatch, capsys, content):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    file = tmp_path / "hub" / "checkpoints" / FILES["alex"]
    file.parent.mkdir(parents=True)
    if content is None:
        torch.save({"features.0.weight": _Code()}, file)
    else:
        file.write_bytes(content)
    with pytest.raises(ValueError, match="fetch it anew"):
        Lpips()(_textures(), _textures())
    assert "code was run" not in capsys.readouterr().out


def test_weights_must_be_tensors_by_name(tmp_path):
    torch.save([torch.zeros(1)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="tensors by name"):
        cached_weights.check_tensors(tmp_path / "list.pth")


def test_an_unknown_trunk_is_refused():
    with pytest.raises(ValueError, match="alex, vgg, squeeze"):
        Lpips("resnet")


# --- plumbing -------------------------------------------------------------------------------------------------------------------------

ALL = ["alex", pytest.param("vgg", marks=pytest.mark.slow), "squeeze", "dists"]


@pytest.mark.parametrize("name", ALL)
def test_plumbing_equal_images_are_at_distance_0_and_each_image_has_its_own_number(plumbing, name):
    measure, clean = plumbing[name], _textures()
    restored = _noisy(clean)
    assert measure(clean, clean).tolist() == pytest.approx([0] * 4, abs=1e-5)
    together = measure(restored, clean)
    assert together.shape == (4,)
    assert together.dtype == torch.float32
    assert together.min() > 0
    for index in range(4):
        single = measure(restored[index : index + 1], clean[index : index + 1])
        assert single.shape == (1,)
        assert single.item() == pytest.approx(together[index].item(), rel=1e-4)


@pytest.mark.parametrize("name", ALL)
def test_plumbing_noisy_copies_are_nearer_than_other_images(plumbing, name):
    clean = _textures()
    assert (plumbing[name](_noisy(clean), clean) < plumbing[name](_noisy(clean).roll(1, 0), clean)).all()


@pytest.mark.parametrize("name", ALL)
def test_plumbing_values_are_clipped_and_carry_no_gradient(plumbing, name):
    clean = _textures()[:1]
    wide = (3 * (clean - 0.5)).requires_grad_()
    values = plumbing[name](wide, clean)
    assert torch.equal(values, plumbing[name](wide.detach().clamp(0, 1), clean))
    assert not values.requires_grad
    assert not values.is_inference()


@pytest.mark.parametrize("net", ["alex", "squeeze"])
def test_plumbing_lpips_is_that_of_torchmetrics(plumbing, net):
    from torchmetrics.functional.image import learned_perceptual_image_patch_similarity

    restored, clean = _noisy(_textures()), _textures()
    expected = learned_perceptual_image_patch_similarity(restored, clean, net_type=net, reduction="none", normalize=True)
    assert plumbing[net](restored, clean).tolist() == pytest.approx(expected.tolist(), rel=1e-5)


@pytest.mark.filterwarnings("ignore:.*pretrained.*:UserWarning", "ignore:.*weight enum.*:UserWarning")
def test_plumbing_lpips_is_that_of_its_authors_package(plumbing, capsys):
    import lpips

    restored, clean = _noisy(_textures()), _textures()
    with torch.no_grad():
        expected = lpips.LPIPS(net="alex", verbose=False)(restored, clean, normalize=True).flatten()
    assert plumbing["alex"](restored, clean).tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def test_plumbing_dists_is_that_of_torchmetrics(plumbing):
    from torchmetrics.functional.image.dists import deep_image_structure_and_texture_similarity

    restored, clean = _noisy(_textures()), _textures()
    expected = deep_image_structure_and_texture_similarity(restored, clean)
    assert plumbing["dists"](restored, clean).tolist() == pytest.approx(expected.tolist(), rel=1e-4)


@pytest.mark.parametrize(("name", "side"), [("alex", 31), pytest.param("vgg", 16, marks=pytest.mark.slow), ("squeeze", 17), ("dists", 16)])
def test_plumbing_images_too_small_for_the_trunk_are_refused_and_the_smallest_are_not(plumbing, name, side):
    images = _textures()[..., :side, :side]
    assert plumbing[name](images.flip(-1), images).isfinite().all()
    with pytest.raises(ValueError, match=f"at least {side} px"):
        plumbing[name](images[..., 1:], images[..., 1:])


@pytest.mark.parametrize("name", ["alex", "dists"])
def test_shapes_that_differ_are_refused(plumbing, name):
    with pytest.raises(ValueError, match="one shape"):
        plumbing[name](_textures()[..., :40], _textures())
    with pytest.raises(ValueError, match="b 3 h w"):
        plumbing[name](_textures()[:, :1], _textures()[:, :1])


# --- accumulators ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("metric", "name"), [(LPIPS, "alex"), (DISTS, "dists")])
def test_plumbing_accumulated_values_are_the_mean_over_images_whatever_the_batches_and_processes(plumbing, metric, name):
    restored, clean, measure = _noisy(_textures()), _textures(), plumbing[name]
    whole, first, second = metric(measure), metric(measure), metric(measure)
    whole.update(restored, clean)
    first.update(restored[:2], clean[:2])
    first.update(restored[2:3], clean[2:3])
    second.update(restored[3:], clean[3:])
    first.merge_state(second)
    assert whole.compute().item() == pytest.approx(measure(restored, clean).mean().item(), rel=1e-5)
    assert first.compute().item() == pytest.approx(whole.compute().item(), rel=1e-4)
    assert metric().higher_is_better is False
    assert metric().is_differentiable is False
    assert isinstance(metric().measure, type(measure))
    assert metric(measure).state_dict() == {}


def test_perceptual_measures_load_no_heavy_package_before_they_are_used():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("torchmetrics", "torchvision", "lpips", "skimage", "scipy"):
            patch.setitem(sys.modules, name, None)
        bare = runpy.run_path(perceptual.__file__)
        assert "pip install torchvision" in bare["Lpips"]().available().reason
