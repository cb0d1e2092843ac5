"""Segmenters find nuclei, or say what they lack."""

import importlib.machinery
import sys
import types
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from pathorestore.image import to_uint8
from pathorestore.metrics.nuclei import nuclei_difference
from pathorestore.metrics.segmenter_adapters import HoverNet, InstanSeg, StarDist, hover_instances
from pathorestore.metrics.segmenters import (
    AtScale,
    CachedSegmenter,
    Precomputed,
    Watershed,
    availability,
    content_hash,
    find_nuclei,
    for_image,
)

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
LABELS = np.kron(np.arange(6).reshape(2, 3), np.ones((10, 10))).astype(np.int32)
LABELS[0, 0] = 35_000  # more than 8 bits, and than a signed 16-bit number


class Dark:
    """Finds the dark half of a grey ramp; remembers what it saw."""

    mpp = 0.5

    def __init__(self):
        self.seen = []

    def __call__(self, pixels):
        self.seen.append(pixels)
        return (pixels[..., 0] < 128).astype(np.int32)


@pytest.fixture
def package(monkeypatch):
    """Puts a module of that name and content where imports look for it."""

    def put(name, **content):
        module = types.ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        vars(module).update(content)
        monkeypatch.setitem(sys.modules, name, module)
        return module

    return put


# --- precomputed ----------------------------------------------------------------------------------------------------------------------


def save(path, labels):
    path.parent.mkdir(exist_ok=True)
    if path.suffix == ".npy":
        np.save(path, labels)
    elif path.suffix == ".png":
        Image.fromarray(labels.astype(np.uint16)).save(path)
    else:
        savemat(path, {"inst_map": labels.astype(np.float64), "inst_type": [1, 2]})
    return path


@pytest.mark.parametrize("suffix", [".npy", ".png", ".mat"])
@pytest.mark.parametrize("stem", ["tile", "tile.tif", "slide/tile", "tile.1"])
def test_a_label_map_is_found_by_the_name_of_its_image(tmp_path, suffix, stem):
    save(tmp_path / (stem + suffix), LABELS)
    name = stem if stem.endswith(".tif") else stem + ".png"
    found = Precomputed(tmp_path, mpp=0.5).for_image(name)
    assert found.mpp == 0.5
    assert found(PIXELS).dtype == np.int32
    assert np.array_equal(found(PIXELS), LABELS)


def test_a_label_map_is_found_by_the_content_of_its_image(tmp_path):
    save(tmp_path / f"{content_hash(PIXELS)}.npy", LABELS)
    assert np.array_equal(Precomputed(tmp_path)(PIXELS), LABELS)
    with pytest.raises(FileNotFoundError, match="no label map of pixels of content hash"):
        Precomputed(tmp_path)(255 - PIXELS)


def test_the_content_hash_tells_shapes_apart_and_not_memory_layouts():
    assert content_hash(PIXELS) != content_hash(PIXELS.reshape(30, 20, 3))
    assert content_hash(PIXELS) == content_hash(np.asfortranarray(PIXELS))


def test_a_name_of_another_case_is_not_taken_for_this_one(tmp_path):
    save(tmp_path / "case.npy", LABELS)
    with pytest.raises(FileNotFoundError, match=r"case\.1"):
        Precomputed(tmp_path).for_image("case.1")


def test_label_maps_that_are_missing_double_or_outside_are_refused(tmp_path):
    maps = Precomputed(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"holds no label map of the image 'a.png'; expected a.png\{.npy,.png,.mat\} or a\{"):
        maps.for_image("a.png")
    save(tmp_path / "a.npy", LABELS)
    save(tmp_path / "a.mat", LABELS)
    with pytest.raises(ValueError, match="2 label maps"):
        maps.for_image("a.png")
    with pytest.raises(ValueError, match="leads out of the folder"):
        maps.for_image("../a.png")


def test_an_absolute_name_is_looked_up_by_its_last_part(tmp_path):
    save(tmp_path / "a.npy", LABELS)
    assert np.array_equal(Precomputed(tmp_path).for_image("/elsewhere/a.png")(PIXELS), LABELS)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (LABELS[:-1], "has shape \\(19, 30\\), its image 20 x 30 px"),
        (LABELS[..., None], "shape"),
        (LABELS + 0.5, "holds fractions"),
        (LABELS - 1, "spans \\[-1"),
        (LABELS * np.nan, "holds fractions"),
        (LABELS.astype(np.int64) + 2**31, "spans"),
    ],
)
def test_what_is_no_label_map_of_the_image_is_refused(tmp_path, labels, said):
    save(tmp_path / "a.npy", labels)
    with pytest.raises(ValueError, match=said):
        Precomputed(tmp_path).for_image("a")(PIXELS)


def test_a_mat_file_without_labels_is_refused(tmp_path):
    savemat(tmp_path / "a.mat", {"other": LABELS})
    with pytest.raises(ValueError, match="holds no inst_map"):
        Precomputed(tmp_path).for_image("a")(PIXELS)


def test_precomputed_maps_serve_the_measures_of_nuclei(tmp_path, nuclei_image):
    save(tmp_path / "tile.png", Watershed()(to_uint8(nuclei_image)))
    here = nuclei_difference(nuclei_image * 0.9, nuclei_image, segmenter=Precomputed(tmp_path).for_image("tile.tif"))
    there = nuclei_difference(nuclei_image * 0.9, nuclei_image)
    assert torch.equal(here.texture, there.texture)


# --- protocol and wrappers ------------------------------------------------------------------------------------------------------------


def test_a_segmenter_that_looks_at_pixels_serves_every_image(tmp_path):
    for segmenter in (Watershed(), CachedSegmenter(Watershed()), AtScale(Watershed(), 0.5), Dark(), InstanSeg(), StarDist(tmp_path)):
        assert for_image(segmenter, "any") is segmenter


def test_a_wrapper_hands_the_name_on(tmp_path):
    save(tmp_path / "a.npy", LABELS)
    maps = Precomputed(tmp_path)
    assert np.array_equal(CachedSegmenter(maps).for_image("a.png")(PIXELS), LABELS)
    large = np.repeat(np.repeat(PIXELS, 2, axis=0), 2, axis=1)
    assert np.array_equal(AtScale(maps, 0.125).for_image("a.png")(large), np.repeat(np.repeat(LABELS, 2, axis=0), 2, axis=1))


def test_a_segmenter_says_whether_it_can_run(tmp_path, monkeypatch, package):
    assert Watershed().available() == availability(Dark()) == (True, "")
    assert Precomputed(tmp_path).available().ok
    assert "no folder" in Precomputed(tmp_path / "none").available().reason
    assert "pip install instanseg-torch" in CachedSegmenter(InstanSeg()).available().reason
    assert "pip install instanseg-torch" in AtScale(InstanSeg(), 0.25).available().reason
    assert "no InstanSeg model" in InstanSeg(tmp_path / "model.pt").available().reason
    assert "no HoVer-Net checkpoint" in HoverNet(tmp_path / "none.tar").available().reason
    assert "config.json" in StarDist(tmp_path).available().reason
    (tmp_path / "config.json").touch()
    assert "pip install stardist" in StarDist(tmp_path).available().reason
    assert "pip install tiatoolbox" in HoverNet(tmp_path / "config.json").available().reason
    for name in ("instanseg", "stardist", "tensorflow", "tiatoolbox"):
        package(name)
    assert InstanSeg().available().ok
    assert StarDist(tmp_path).available().ok
    assert HoverNet(tmp_path / "config.json").available().ok
    monkeypatch.setitem(sys.modules, "skimage", None)
    assert "pathorestore[demo]" in Watershed().available().reason


def test_a_missing_package_is_named_with_its_remedy(tmp_path):
    for segmenter, remedy in (
        (InstanSeg(), "pip install instanseg-torch"),
        (StarDist(tmp_path), "pip install stardist tensorflow"),
        (HoverNet(tmp_path), "pip install tiatoolbox"),
    ):
        with pytest.raises(ImportError, match=remedy):
            segmenter(PIXELS)


@given(height=st.integers(1, 30), width=st.integers(1, 30), image_mpp=st.sampled_from([0.2, 0.25, 0.5, 0.7, 1.3]))
def test_labels_come_back_in_the_size_of_the_image(height, width, image_mpp):
    inner = Dark()
    scaled = AtScale(inner, image_mpp)
    labels = scaled(np.zeros((height, width, 3), dtype=np.uint8))
    assert scaled.mpp == image_mpp
    assert labels.shape == (height, width)
    assert (labels == 1).all()
    assert inner.seen[0].shape == (max(1, round(height * image_mpp / 0.5)), max(1, round(width * image_mpp / 0.5)), 3)


@pytest.mark.parametrize("image_mpp", [0.25, 0.125, 1.0])
def test_labels_at_another_scale_lie_where_the_nuclei_are(image_mpp):
    ramp = np.repeat(np.linspace(255, 0, 96)[None, :, None], 64, axis=0).repeat(3, axis=2).astype(np.uint8)
    labels, expected = AtScale(Dark(), image_mpp)(ramp), ramp[..., 0] < 128
    assert np.abs(np.argmax(labels, axis=1) - np.argmax(expected, axis=1)).max() <= 0.5 / image_mpp


def test_the_watershed_at_half_its_pixel_size_finds_nearly_the_same(nuclei_image):
    fine = to_uint8(torch.nn.functional.interpolate(nuclei_image, scale_factor=2, mode="bilinear"))
    here, there = Watershed()(to_uint8(nuclei_image)), AtScale(Watershed(), 0.125)(fine)
    assert ((there[::2, ::2] > 0) == (here > 0)).mean() > 0.97


def test_an_image_that_shrinks_is_averaged_and_not_sampled():
    inner, stripes = Dark(), np.zeros((32, 32, 3), dtype=np.uint8)
    stripes[:, ::8] = 240
    AtScale(inner, 0.0625)(stripes)
    assert inner.seen[0].shape == (4, 4, 3)
    assert inner.seen[0].min() > 10
    assert inner.seen[0].mean() == pytest.approx(30, abs=5)


def test_images_of_the_expected_size_pass_untouched():
    inner = Dark()
    AtScale(inner, 0.5)(PIXELS)
    assert inner.seen[0] is PIXELS


def test_a_nucleus_has_16_pixels_at_least():
    labels = np.zeros((20, 30), dtype=np.int32)
    labels[:4, :4], labels[10, :15] = 1, 2
    assert np.array_equal(find_nuclei(lambda pixels: labels, PIXELS), labels == 1)


def test_what_a_segmenter_returns_is_numbered_from_one_without_specks():
    labels = LABELS.copy()
    labels[15:, 20:] = 900
    labels[10:15, 20:] = 0
    labels[10, 20:] = 5
    found = find_nuclei(lambda pixels: labels, PIXELS)
    assert np.unique(found).tolist() == [0, 1, 2, 3, 4, 5]
    assert (found[10, 20:] == 0).all()
    assert (found[15:, 20:] == 5).all()


# --- adapters, against stand-ins of the packages' documented interface ----------------------------------------------------------------


def test_instanseg_gets_the_image_with_its_pixel_size_and_gives_a_label_map(package):
    asked = []

    class Package:
        def __init__(self, model_type, device, verbosity):
            asked.append((model_type, device, verbosity))

        def eval_small_image(self, image, pixel_size, target, return_image_tensor):
            asked.append((image, pixel_size, target, return_image_tensor))
            return (image[0] < 128).float()[None, None]

    package("instanseg", InstanSeg=Package)
    segmenter = InstanSeg(mpp=0.3, device="cpu")
    labels = segmenter(PIXELS)
    segmenter(PIXELS)
    assert len(asked) == 3  # the model is built once
    assert asked[0] == ("brightfield_nuclei", "cpu", 0)
    image, *rest = asked[1]
    assert rest == [0.3, "nuclei", False]
    assert image.shape == (3, 20, 30)
    assert image.max() > 1
    assert labels.dtype == np.int32
    assert np.array_equal(labels, PIXELS[..., 0] < 128)


def test_instanseg_takes_large_images_in_tiles_and_a_model_from_a_file(package, tmp_path):
    class Package:
        def __init__(self, model_type, device, verbosity):
            self.model = model_type

        def eval_medium_image(self, image, pixel_size, target, return_image_tensor):
            return self.model(image[:1][None])

    package("instanseg", InstanSeg=Package)
    torch.jit.save(torch.jit.script(torch.nn.ReLU()), tmp_path / "instanseg.pt")
    pixels = np.full((1501, 1500, 3), 3, dtype=np.uint8)
    assert (InstanSeg(tmp_path / "instanseg.pt")(pixels) == 3).all()


def test_stardist_reads_its_folder_and_sees_normalised_pixels(package, tmp_path):
    asked = []

    class StarDist2D:
        def __init__(self, config, name, basedir):
            asked.append((config, name, basedir))

        def predict_instances(self, image):
            return (image < 0.5)[..., 0].astype(np.uint16), {"coord": []}

    def normalize(image, low, high):
        assert (low, high) == (1, 99.8)
        return image / 255

    package("stardist")
    package("stardist.models", StarDist2D=StarDist2D)
    package("csbdeep")
    package("csbdeep.utils", normalize=normalize)
    labels = StarDist(tmp_path)(PIXELS)
    assert asked == [(None, tmp_path.name, str(tmp_path.parent))]
    assert labels.dtype == np.int32
    assert np.array_equal(labels, PIXELS[..., 0] < 127.5)


def discs(centres, radius, shape):
    """Label map, probability of nucleus and distance maps h w 2 of discs, as HoVer-Net defines them."""
    y, x = np.mgrid[: shape[0], : shape[1]]
    away = np.stack([np.hypot(y - row, x - column) for row, column in centres])
    labels = np.where(away.min(axis=0) < radius, away.argmin(axis=0) + 1, 0).astype(np.int32)
    towards = np.zeros((*shape, 2))
    for label, (row, column) in enumerate(centres, start=1):
        mask = labels == label
        for axis, off in enumerate(((x - column)[mask].astype(float), (y - row)[mask].astype(float))):
            towards[mask, axis] = np.where(off < 0, off / -off.min(), off / off.max())
    return labels, (labels > 0).astype(float), towards


@pytest.mark.parametrize(
    "centres",
    [
        [(40, 30), (40, 48)],
        [(30, 40), (48, 40)],
        [(30, 30), (43, 43)],
        [(40, 30), (40, 46), (56, 38), (20, 80)],
        [(40, 40)],
    ],
    ids=["side by side", "stacked", "diagonal", "three and one", "alone"],
)
def test_touching_discs_are_parted_along_the_drop_of_their_distance_maps(centres):
    labels, nuclear, towards = discs(centres, 10, (100, 110))
    found = hover_instances(nuclear, towards)
    assert found.dtype == np.int32
    assert found.max() == len(centres)
    for label in range(1, len(centres) + 1):
        mask = labels == label
        partner = np.bincount(found[mask]).argmax()
        assert partner > 0
        assert (mask & (found == partner)).sum() / (mask | (found == partner)).sum() > 0.98


def test_without_the_drop_touching_discs_are_one():
    _, nuclear, towards = discs([(40, 30), (40, 48)], 10, (80, 80))
    assert hover_instances(nuclear, 0 * towards).max() == 1


def test_pixels_that_are_improbable_belong_to_no_nucleus():
    _, nuclear, towards = discs([(40, 30), (40, 60)], 10, (80, 90))
    nuclear[:, 45:] *= 0.49
    found = hover_instances(nuclear, towards)
    assert np.array_equal(found > 0, nuclear >= 0.5)
    assert not hover_instances(0 * nuclear, towards).any()
    with pytest.raises(ValueError, match="maps h w and h w 2"):
        hover_instances(nuclear, towards[..., 0])


class Windowed(torch.nn.Module):
    """Stands in for the network: predicts the discs that the picture's channels spell out, in the middle of each window."""

    def __init__(self, num_types, mode):
        super().__init__()
        self.taken, self.given = {"original": (270, 80), "fast": (256, 164)}[mode]
        self.decoder = torch.nn.ModuleDict({"np": torch.nn.Identity()})
        if num_types:
            self.decoder["tp"] = torch.nn.ModuleDict({"u0": torch.nn.ModuleDict({"conv": torch.nn.Conv2d(1, num_types, 1)})})
        self.num_types = num_types

    def forward(self, images):
        assert images.shape[1:] == (3, self.taken, self.taken)
        margin = (self.taken - self.given) // 2
        middle = images[..., margin : margin + self.given, margin : margin + self.given]
        nuclear = 20 * (middle[:, :1] / 255 - 0.5)
        return {"np": torch.cat([-nuclear, nuclear], dim=1), "hv": middle[:, 1:] / 127 - 1}


@pytest.mark.parametrize("types", [None, 5])
@pytest.mark.parametrize("mode", ["original", "fast"])
@pytest.mark.parametrize("shape", [(100, 190), (50, 40)])
def test_hovernet_puts_its_windows_together(package, tmp_path, types, mode, shape):
    package("tiatoolbox")
    for name in ("models", "models.architecture"):
        package(f"tiatoolbox.{name}")
    package("tiatoolbox.models.architecture.hovernet", HoVerNet=Windowed)
    state = Windowed(types, mode).state_dict()
    torch.save({"desc": state} if types else state, tmp_path / "net.tar")
    labels, nuclear, towards = discs([(20, 15), (20, 31), (35, 22)], 10, shape)
    pixels = np.concatenate([255 * nuclear[..., None], 127 * (towards + 1)], axis=2).round().astype(np.uint8)
    segmenter = HoverNet(tmp_path / "net.tar", mode=mode, batch=2)
    found = segmenter(pixels)
    assert segmenter._network.num_types == types
    assert found.shape == shape
    assert found.max() == 3
    assert np.array_equal(found > 0, labels > 0)
    _, hv = segmenter._maps(pixels)
    assert np.abs(hv - towards).max() < 0.01
    with pytest.raises(ValueError, match="original, fast"):
        replace(segmenter, mode="small")


@pytest.mark.parametrize("make", [lambda mpp: Precomputed("x", mpp=mpp), lambda mpp: InstanSeg(mpp=mpp), lambda mpp: AtScale(Dark(), mpp)])
def test_a_pixel_size_is_a_positive_number(make):
    with pytest.raises(ValueError, match="um per pixel"):
        make(0)
