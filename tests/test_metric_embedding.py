import runpy
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg

from pathorestore.metrics import embedding, frechet
from pathorestore.metrics.accumulators.embedding import EmbeddingSimilarity
from pathorestore.metrics.accumulators.frechet import FrechetDistance
from pathorestore.metrics.embedding import WholeImage, embedding_similarity
from pathorestore.metrics.frechet import INDICATIVE_BELOW, InceptionFeatures, Moments, frechet_distance
from pathorestore.models.encoders import TinyEncoder, TinyEncoderConfig

SEEDS = st.integers(0, 10_000)


@pytest.fixture(scope="module")
def encoder():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TinyEncoder(TinyEncoderConfig(widths=(8, 12, 16), blocks=(1, 1, 1))).eval()


def _textures(side=64, repeats=1):
    gen = torch.Generator().manual_seed(3)
    fields = [torch.rand(1, 3, side // grain, side // grain, generator=gen) for grain in (1, 2, 4, 8) * repeats]
    return torch.cat([torch.nn.functional.interpolate(field, size=side, mode="bilinear") for field in fields]).clamp(0, 1)


def _noisy(image, strength=0.02):
    return (image + strength * torch.randn(image.shape, generator=torch.Generator().manual_seed(5))).clamp(0, 1)


def _colours(image):
    """An encoder worked by hand: the mean colour."""
    return image.mean(dim=(-2, -1))


# --- embeddings -----------------------------------------------------------------------------------------------------------------------


def test_equal_images_embed_alike(encoder):
    assert embedding_similarity(_textures(), _textures(), encoder).tolist() == pytest.approx([1] * 4, abs=1e-6)


def test_the_similarity_is_the_cosine_of_the_angle_between_embeddings_worked_by_hand():
    red, yellow = (torch.tensor(colour)[None, :, None, None].expand(1, 3, 20, 20) for colour in ((1.0, 0, 0), (1.0, 1, 0)))
    assert embedding_similarity(red, yellow, _colours).item() == pytest.approx(0.5**0.5, abs=1e-6)
    assert embedding_similarity(red, red, _colours, side_px=None).item() == pytest.approx(1, abs=1e-6)
    assert embedding_similarity(red, torch.zeros_like(red), _colours).item() == 0


def test_the_class_vector_of_a_pathology_encoder_is_what_counts(encoder):
    restored, clean = _noisy(_textures(), 0.2), _textures()
    with torch.no_grad():
        first, second = encoder(restored).cls, encoder(clean).cls
    expected = [np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(first.numpy(), second.numpy(), strict=True)]
    assert embedding_similarity(restored, clean, encoder, side_px=None).tolist() == pytest.approx(expected, abs=1e-5)


def test_permuting_the_batch_permutes_the_similarities(encoder):
    restored, clean, order = _noisy(_textures()), _textures(), [2, 0, 3, 1]
    found = embedding_similarity(restored, clean, encoder, side_px=None)
    assert torch.allclose(embedding_similarity(restored[order], clean[order], encoder, side_px=None), found[order], atol=1e-6)
    assert found.shape == (4,)
    assert not found.requires_grad


@given(scale=st.floats(1e-3, 1e3))
def test_the_length_of_the_embeddings_does_not_matter(encoder, scale):
    restored, clean = _noisy(_textures(), 0.2), _textures()
    scaled = embedding_similarity(restored, clean, lambda image: scale * encoder(image).cls, side_px=None)
    assert torch.allclose(scaled, embedding_similarity(restored, clean, encoder, side_px=None), atol=1e-6)


def test_every_image_is_nearer_to_its_noisy_copy_than_to_another_image(encoder):
    restored, clean = _noisy(_textures()), _textures()
    near, far = (embedding_similarity(images, clean, encoder, side_px=None) for images in (restored, restored.roll(1, 0)))
    assert (near > far).all()


@pytest.mark.parametrize(("side_px", "expected"), [(224, (224, 224)), (96, (96, 96)), (None, (40, 64))])
def test_whole_images_reach_the_encoder_at_its_size_and_in_range(side_px, expected):
    seen = []

    def watch(image):
        seen.append(image)
        return _colours(image)

    image = (torch.rand(2, 3, 40, 64, generator=torch.Generator().manual_seed(0)) > 0.5).float() * 1.5 - 0.2
    WholeImage(watch, side_px=side_px)(image)
    assert seen[0].shape == (2, 3, *expected)
    assert seen[0].min() >= 0
    assert seen[0].max() <= 1
    if side_px is not None:
        bicubic = torch.nn.functional.interpolate(image.clamp(0, 1), size=expected, mode="bicubic", antialias=True).clamp(0, 1)
        assert torch.equal(seen[0], bicubic)


def test_bad_embeddings_are_one_clear_error():
    image = _textures()
    with pytest.raises(ValueError, match="one vector per image"):
        embedding_similarity(image, image, lambda image: image)
    with pytest.raises(ValueError, match="one vector per image"):
        embedding_similarity(image, image, lambda image: "a word")
    with pytest.raises(ValueError, match="one vector per image"):
        embedding_similarity(image, image, lambda image: image[:1, 0, 0])
    with pytest.raises(ValueError, match="one shape"):
        embedding_similarity(image[..., 1:], image, _colours)
    with pytest.raises(ValueError, match="batch axis"):
        WholeImage(_colours)(image[0])
    with pytest.raises(ValueError, match="side_px"):
        WholeImage(_colours, side_px=0)


def test_accumulated_similarities_are_the_mean_over_images_whatever_the_batches_and_processes(encoder):
    restored, clean = _noisy(_textures(), 0.2), _textures()
    whole, first, second = (EmbeddingSimilarity(encoder, side_px=48) for _ in range(3))
    whole.update(restored, clean)
    first.update(restored[:2], clean[:2])
    first.update(restored[2:3], clean[2:3])
    second.update(restored[3:], clean[3:])
    first.merge_state(second)
    assert whole.compute().item() == pytest.approx(embedding_similarity(restored, clean, encoder, side_px=48).mean().item(), rel=1e-6)
    assert first.compute().item() == pytest.approx(whole.compute().item(), rel=1e-6)
    assert whole.higher_is_better is True
    assert whole.is_differentiable is False


# --- Frechet distance -----------------------------------------------------------------------------------------------------------------


def _features(seed, count=40, width=6, spread=None, offset=0.0):
    rng = np.random.default_rng(seed)
    mixing = np.eye(width) if spread is None else spread
    return torch.from_numpy(rng.normal(size=(count, width)) @ mixing + offset)


@given(seed=SEEDS, count=st.integers(2, 30), width=st.integers(1, 8))
def test_equal_sets_are_at_distance_0_in_whatever_order(seed, count, width):
    features = _features(seed, count, width)
    assert frechet_distance(features, features.flip(0)).item() == pytest.approx(0, abs=1e-6)


@given(seed=SEEDS, width=st.integers(1, 6))
def test_gaussians_along_the_axes_have_a_closed_form(seed, width):
    # (m1 - m2)^2 + (s1 - s2)^2, summed over axes
    rng = np.random.default_rng(seed)
    means, spreads = rng.normal(size=(2, width)), rng.uniform(0.1, 3, (2, width))
    moments = (Moments(torch.from_numpy(m), torch.diag(torch.from_numpy(s**2))) for m, s in zip(means, spreads, strict=True))
    expected = ((means[0] - means[1]) ** 2).sum() + ((spreads[0] - spreads[1]) ** 2).sum()
    assert frechet.frechet_distance_of_moments(*moments).item() == pytest.approx(expected, rel=1e-9)


@given(seed=SEEDS)
def test_the_distance_is_that_of_scipys_matrix_root(seed):
    rng = np.random.default_rng(seed)
    first, second = _features(seed, 40, 6, rng.normal(size=(6, 6))), _features(seed + 1, 25, 6, rng.normal(size=(6, 6)), 0.7)
    one, two = (np.cov(features.numpy().T) for features in (first, second))
    gap = first.numpy().mean(0) - second.numpy().mean(0)
    expected = gap @ gap + np.trace(one + two - 2 * linalg.sqrtm(one @ two).real)
    assert frechet_distance(first, second).item() == pytest.approx(expected, rel=1e-6)


@given(seed=SEEDS, count=st.integers(5, 60))
def test_the_distance_is_that_of_torchmetrics_on_the_same_features(seed, count):
    from torchmetrics.image.fid import FrechetInceptionDistance

    class Identity(torch.nn.Module):
        num_features = 8

        def forward(self, features):
            return features

    first, second = _features(seed, count, 8), _features(seed + 1, 30, 8, 2 * np.eye(8), 0.3)
    theirs = FrechetInceptionDistance(feature=Identity())
    theirs.update(first, real=True)
    theirs.update(second, real=False)
    # with fewer features than dimensions its eigenvalues of a product are less exact
    assert frechet_distance(first, second).item() == pytest.approx(theirs.compute().item(), rel=1e-5)


@given(seed=SEEDS, shift=st.floats(0.1, 10))
def test_a_shifted_set_is_as_far_as_the_square_of_the_shift(seed, shift):
    features = _features(seed)
    assert frechet_distance(features + shift, features).item() == pytest.approx(6 * shift**2, rel=1e-6)


@given(seed=SEEDS)
def test_rotating_all_features_changes_nothing_and_neither_does_the_direction(seed):
    rng = np.random.default_rng(seed)
    first, second = _features(seed), _features(seed + 1, 30, 6, rng.normal(size=(6, 6)))
    turn = torch.from_numpy(np.linalg.qr(rng.normal(size=(6, 6)))[0])
    found = frechet_distance(first, second).item()
    assert frechet_distance(first @ turn, second @ turn).item() == pytest.approx(found, rel=1e-8)
    assert frechet_distance(second, first).item() == pytest.approx(found, rel=1e-8)


def test_few_samples_of_many_features_are_no_obstacle():
    first, second = _features(0, 5, 64), _features(1, 6, 64)
    # rank 4 and 5: the trace of the root is the nuclear norm of the product of both centred sets
    a, b = (features - features.mean(0) for features in (first, second))
    shared = torch.linalg.svdvals(a @ b.T).sum() / (4 * 5) ** 0.5
    expected = (first.mean(0) - second.mean(0)).square().sum() + a.square().sum() / 4 + b.square().sum() / 5 - 2 * shared
    assert frechet_distance(first, second).item() == pytest.approx(expected.item(), rel=1e-6)


def test_bad_features_are_one_clear_error_and_nan_stays_nan():
    features = _features(0)
    assert frechet_distance(features * torch.nan, features).isnan()
    with pytest.raises(ValueError, match="at least n = 2"):
        frechet_distance(features[:1], features)
    with pytest.raises(ValueError, match="same encoder"):
        frechet_distance(features[:, 1:], features)
    with pytest.raises(ValueError, match="dim must be their width"):
        FrechetDistance(_colours, dim=4).update(_textures(), _textures())
    with pytest.raises(ValueError, match="as many of both"):
        FrechetDistance(_colours, dim=3).update(_textures()[:1], _textures())
    with pytest.raises(ValueError, match="width of the features"):
        FrechetDistance(_colours, dim=0)


def test_accumulated_distance_is_that_of_all_features_whatever_the_batches_and_processes(encoder):
    restored, clean = _noisy(_textures(repeats=5), 0.3), _textures(repeats=5)
    features = WholeImage(encoder, side_px=None)
    whole, first, second = (FrechetDistance(features, dim=encoder.dim) for _ in range(3))
    whole.update(restored, clean)
    first.update(restored[:7], clean[:7])
    first.update(restored[7:8], clean[7:8])
    second.update(restored[8:], clean[8:])
    first.merge_state(second)
    expected = frechet_distance(features(restored), features(clean)).item()
    assert whole.compute().item() == pytest.approx(expected, rel=1e-5)
    assert first.compute().item() == pytest.approx(expected, rel=1e-5)
    assert whole.higher_is_better is False
    assert whole.is_differentiable is False


def test_noisy_copies_are_nearer_as_a_set_than_other_textures(encoder):
    clean = _textures(repeats=3)
    features = WholeImage(encoder, side_px=None)
    values = [frechet_distance(features(_noisy(clean, strength)), features(clean)).item() for strength in (0, 0.02, 0.1, 0.3)]
    assert values == sorted(values)
    assert values[0] == pytest.approx(0, abs=1e-6)
    # as a distribution the order of the images does not matter, unlike for all measures by pairs
    assert frechet_distance(features(clean.roll(1, 0)), features(clean)).item() == pytest.approx(0, abs=1e-6)
    assert frechet_distance(features(clean[::4].repeat(4, 1, 1, 1)), features(clean)).item() > values[1]


@pytest.mark.filterwarnings("ignore:The ``compute`` method:UserWarning")
def test_a_distance_of_few_images_is_said_to_be_indicative_and_of_one_is_undefined():
    metric = FrechetDistance(_colours, dim=3)
    assert metric.compute().isnan()
    metric.update(_textures()[:1], _textures()[:1])
    assert metric.compute().isnan()
    metric.update(_textures(), _textures())
    assert metric.indicative
    metric.images += INDICATIVE_BELOW - 6
    assert metric.indicative
    metric.images += 1
    assert not metric.indicative
    assert INDICATIVE_BELOW == 2048


# --- Inception ------------------------------------------------------------------------------------------------------------------------

INCEPTION = "weights-inception-2015-12-05-6726825d.pth"


def test_inception_without_its_package_or_its_weights_says_what_to_do_and_gives_no_number(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    features = InceptionFeatures()
    monkeypatch.setattr(frechet, "find_spec", lambda name: None)
    assert "pip install torch-fidelity" in features.available().reason
    monkeypatch.setattr(frechet, "find_spec", lambda name: name)
    assert not features.available().ok
    assert INCEPTION in features.available().reason
    assert str(tmp_path / "hub" / "checkpoints") in features.available().reason
    with pytest.raises(RuntimeError, match=INCEPTION):
        FrechetDistance(features, dim=features.dim).update(_textures(), _textures())
    (tmp_path / "hub" / "checkpoints").mkdir(parents=True)
    (tmp_path / "hub" / "checkpoints" / INCEPTION).write_bytes(b"cut short")
    assert features.available() == (True, "")
    with pytest.raises(ValueError, match="fetch it anew"):
        features(_textures())


@pytest.mark.slow
def test_plumbing_inception_features_of_random_weights_are_those_of_torchmetrics(monkeypatch, tmp_path):
    pytest.importorskip("torch_fidelity")
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    from torchmetrics.image.fid import FrechetInceptionDistance

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    _plumbing_inception(FeatureExtractorInceptionV3, folder / INCEPTION, monkeypatch)
    restored, clean = (image.mul(255).round().div(255) for image in (_noisy(_textures(), 0.2), _textures()))
    metric, theirs = (
        FrechetDistance(InceptionFeatures(), dim=2048),
        FrechetInceptionDistance(feature_extractor_weights_path=folder / INCEPTION),
    )
    metric.update(restored, clean)
    for images, real in ((restored, False), (clean, True)):
        theirs.update(images.mul(255).round().byte(), real=real)
    assert metric.compute().item() == pytest.approx(theirs.compute().item(), rel=1e-3)


def _plumbing_inception(network, file, monkeypatch):
    """Write random weights of the network's own shapes."""
    shapes = {}
    with monkeypatch.context() as patch:
        patch.setattr(network, "load_state_dict", lambda self, state: shapes.update(self.state_dict()))
        torch.save({}, file)
        network("inception-v3-compat", ["2048"], feature_extractor_weights_path=file)
    gen = torch.Generator().manual_seed(0)
    for name, tensor in shapes.items():
        if tensor.ndim > 1:
            shapes[name] = torch.randn(tensor.shape, generator=gen) * (2 / tensor[0].numel()) ** 0.5
    torch.save(shapes, file)


def test_embedding_and_frechet_functions_need_no_heavy_package():
    with pytest.MonkeyPatch.context() as patch:
        for name in ("torchmetrics", "torchvision", "torch_fidelity", "skimage", "scipy"):
            patch.setitem(sys.modules, name, None)
        runpy.run_path(embedding.__file__)
        assert runpy.run_path(frechet.__file__)["frechet_distance"](_features(0), _features(0)).item() == pytest.approx(0, abs=1e-9)
