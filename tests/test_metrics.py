import math
import runpy
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from skimage import data, transform
from skimage.feature import graycomatrix, graycoprops
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch.nn.functional import interpolate

from pathorestore import metrics
from pathorestore.image import from_uint8, to_uint8
from pathorestore.metrics import fidelity, nuclei
from pathorestore.metrics.accumulators import PSNR, SSIM, NucleiL1, mean
from pathorestore.metrics.fidelity import psnr, ssim
from pathorestore.metrics.nuclei import (
    TEXTURE,
    grey_levels,
    intensity,
    nuclei_difference,
    texture,
)
from pathorestore.metrics.segmenters import CachedSegmenter, Watershed

SIDES = st.integers(11, 24)
SEEDS = st.integers(0, 10_000)


def _pair(seed, height=16, width=16, batch=1, spread=40):
    """Random 8-bit images and a noisy copy of each, b 3 h w."""
    rng = np.random.default_rng(seed)
    clean = rng.integers(0, 256, (batch, 3, height, width))
    restored = np.clip(clean + rng.integers(-spread, spread + 1, clean.shape), 0, 255)
    return (torch.from_numpy(image).float() / 255 for image in (restored, clean))


class Fixed:
    """A segmenter that always finds the same nuclei, and counts how often it is asked."""

    mpp = 0.25

    def __init__(self, labels):
        self.labels, self.calls = np.asarray(labels, dtype=np.int32), 0

    def __call__(self, pixels):
        self.calls += 1
        return self.labels


def _blobs(seed, height=16, width=16, count=3):
    """A label map of ragged regions, each of them connected or not."""
    rng = np.random.default_rng(seed)
    nearest = np.linalg.norm(
        np.stack(np.mgrid[:height, :width])[:, None] - rng.uniform(0, min(height, width), (2, count, 1, 1)), axis=0
    ).argmin(axis=0)
    return np.where(rng.random((height, width)) < 0.8, nearest + 1, 0).astype(np.int32)


# --- fidelity -------------------------------------------------------------------------------------------------------------------------


def test_equal_images_are_perfect():
    _, clean = _pair(0)
    assert psnr(clean, clean).item() == math.inf
    assert ssim(clean, clean).item() == 1


def test_one_grey_level_everywhere_is_48_13_db():
    # 20 log10(255), e.g. Gonzalez & Woods, Digital Image Processing, 4th ed., sec. 8.1
    clean = torch.full((1, 3, 12, 12), 100 / 255)
    assert psnr(clean + 1 / 255, clean).item() == pytest.approx(48.1308, abs=1e-4)


@given(seed=SEEDS, height=SIDES, width=SIDES)
def test_psnr_is_that_of_scikit_image_on_bytes(seed, height, width):
    restored, clean = _pair(seed, height, width, batch=2)
    expected = [
        peak_signal_noise_ratio(to_uint8(target), to_uint8(one), data_range=255) for one, target in zip(restored, clean, strict=True)
    ]
    assert psnr(restored, clean).tolist() == pytest.approx(expected, abs=1e-4)


@given(seed=SEEDS, height=SIDES, width=SIDES, spread=st.sampled_from([1, 10, 80]))
def test_ssim_is_that_of_scikit_image_on_bytes(seed, height, width, spread):
    restored, clean = _pair(seed, height, width, batch=2, spread=spread)
    expected = [
        structural_similarity(
            to_uint8(one), to_uint8(target), channel_axis=2, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False
        )
        for one, target in zip(restored, clean, strict=True)
    ]
    assert ssim(restored, clean).tolist() == pytest.approx(expected, abs=2e-5)


def test_ssim_is_that_of_torchmetrics_away_from_the_border():
    from torchmetrics.functional.image import structural_similarity_index_measure

    restored, clean = _pair(3, 40, 33)
    _, whole = structural_similarity_index_measure(restored, clean, data_range=1.0, sigma=1.5, return_full_image=True)
    # it reflects the images at their border and averages over those pixels too
    assert ssim(restored, clean).item() == pytest.approx(whole[..., 5:-5, 5:-5].mean().item(), abs=2e-5)


def test_ssim_of_flat_images_is_the_luminance_term():
    # Wang et al. 2004, eq. 6, with C1 = (0.01 * 255)^2
    a, b, c1 = 80, 120, 2.55**2
    first, second = (torch.full((1, 3, 16, 16), level / 255) for level in (a, b))
    assert ssim(first, second).item() == pytest.approx((2 * a * b + c1) / (a * a + b * b + c1), rel=1e-5)


@pytest.mark.parametrize("metric", [psnr, ssim])
@given(seed=SEEDS)
def test_fidelity_does_not_care_which_image_is_the_clean_one(metric, seed):
    restored, clean = _pair(seed)
    assert metric(restored, clean).item() == pytest.approx(metric(clean, restored).item(), rel=1e-6)


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_fidelity_falls_with_noise(metric, nuclei_image, generator):
    noise = torch.randn(nuclei_image.shape, generator=generator)
    values = [metric(nuclei_image + strength * noise, nuclei_image).item() for strength in (0.01, 0.03, 0.1, 0.3)]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1]


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_fidelity_sees_8_bit_images_clipped_to_their_range(metric):
    restored, clean = _pair(1)
    finer = restored + 0.4 / 255 * torch.sign(torch.linspace(-1, 1, 16))
    assert torch.equal(metric(finer, clean), metric(restored, clean))
    black = torch.zeros_like(clean)
    assert torch.equal(metric(black - 3, clean), metric(black, clean))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_fidelity_gives_one_number_per_image(metric):
    restored, clean = _pair(2, batch=3)
    together = metric(restored, clean)
    assert together.shape == (3,)
    assert torch.equal(together[1:2], metric(restored[1:2], clean[1:2]))


@pytest.mark.parametrize("metric", [psnr, ssim])
def test_fidelity_of_nan_is_nan(metric):
    _, clean = _pair(2)
    assert metric(clean * torch.nan, clean).isnan().all()


@pytest.mark.parametrize("metric", [psnr, ssim, nuclei_difference])
def test_metrics_refuse_images_of_different_shapes(metric):
    _, clean = _pair(0, 16, 16)
    with pytest.raises(ValueError, match="one shape"):
        metric(clean[..., :-1], clean)


def test_ssim_refuses_images_smaller_than_its_window():
    with pytest.raises(ValueError, match="window of 11"):
        ssim(torch.zeros(1, 3, 10, 40), torch.zeros(1, 3, 10, 40))


# --- nuclei ---------------------------------------------------------------------------------------------------------------------------


def _masked_matrices(grey, mask):
    """Co-occurrence matrices 256 256 1 4 of one region, pair by pair, as `graycoprops` takes them."""
    matrices = np.zeros((256, 256, 1, 4))
    for angle, (down, right) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        for y, x in np.argwhere(mask):
            v, u = y + down, x + right
            if v < mask.shape[0] and 0 <= u < mask.shape[1] and mask[v, u]:
                matrices[grey[y, x], grey[v, u], 0, angle] += 1
                matrices[grey[v, u], grey[y, x], 0, angle] += 1
        matrices[..., angle] /= max(matrices[..., angle].sum(), 1)
    return matrices


def _properties(matrices):
    return [graycoprops(matrices, name).mean() for name in TEXTURE]


@settings(max_examples=10)
@given(seed=SEEDS, levels=st.sampled_from([3, 256]))
def test_texture_is_graycoprops_on_the_pairs_inside_each_nucleus(seed, levels):
    grey = np.random.default_rng(seed).integers(0, levels, (12, 14))
    labels = _blobs(seed, 12, 14)
    expected = [_properties(_masked_matrices(grey, labels == label)) for label in range(1, labels.max() + 1)]
    assert texture(grey, labels) == pytest.approx(np.array(expected), rel=1e-12)


def test_texture_of_a_full_rectangle_is_graycomatrix():
    grey = np.random.default_rng(0).integers(0, 256, (9, 13))
    matrix = graycomatrix(grey.astype(np.uint8), [1], [0, np.pi / 4, np.pi / 2, 3 * np.pi / 4], levels=256, symmetric=True, normed=True)
    assert texture(grey, np.ones((9, 13), dtype=np.int32))[0] == pytest.approx(np.array(_properties(matrix)), rel=1e-12)


def test_texture_of_a_line_counts_angles_without_pairs_as_zero():
    grey, labels = np.arange(40).reshape(2, 20), np.zeros((2, 20), dtype=np.int32)
    labels[1] = 1
    # only the angle 0 has pairs: |i - j| = 1 throughout, 19 unordered pairs of distinct levels
    assert texture(grey, labels)[0] == pytest.approx([1 / 4, 1 / 4, 1 / 8, math.sqrt(1 / 38) / 4])


@given(seed=SEEDS)
def test_intensity_is_the_moments_of_scipy(seed):
    grey, labels = np.random.default_rng(seed).integers(0, 256, (16, 16)), _blobs(seed)
    values = [grey[labels == label] for label in range(1, labels.max() + 1)]
    expected = [[one.mean(), one.std(), stats.skew(one), stats.kurtosis(one)] for one in values]
    assert intensity(grey, labels) == pytest.approx(np.array(expected), rel=1e-9)


def test_a_flat_nucleus_has_no_skewness_and_no_kurtosis():
    grey, labels = np.full((4, 4), 7), np.ones((4, 4), dtype=np.int32)
    assert intensity(grey, labels).tolist() == [[7, 0, 0, 0]]
    assert texture(grey, labels).tolist() == [[0, 0, 1, 1]]


def test_grey_levels_are_the_rounded_luma():
    # ITU-R BT.601: 0.299 R + 0.587 G + 0.114 B
    pixels = np.array([[[255, 255, 255], [255, 0, 0], [0, 255, 0], [0, 0, 255], [10, 20, 30]]], dtype=np.uint8)
    assert grey_levels(pixels).tolist() == [[255, 76, 150, 29, 18]]


def test_nuclei_of_equal_images_do_not_differ(nuclei_image):
    difference = nuclei_difference(nuclei_image, nuclei_image)
    assert difference.nuclei.item() > 5
    assert difference.l1_intensity.item() == difference.l1_texture.item() == 0


@given(seed=SEEDS)
def test_nuclei_differ_alike_in_both_directions(seed):
    restored, clean = _pair(seed)
    forth, back = (nuclei_difference(*images, segmenter=Fixed(_blobs(seed))) for images in ((restored, clean), (clean, restored)))
    assert torch.equal(forth.intensity, back.intensity)
    assert torch.equal(forth.texture, back.texture)


@given(seed=SEEDS, shift=st.integers(1, 40))
def test_brightening_moves_the_mean_and_nothing_else(seed, shift):
    clean = from_uint8(np.random.default_rng(seed).integers(0, 200, (16, 16, 3), dtype=np.uint8))
    difference = nuclei_difference(clean + shift / 255, clean, segmenter=Fixed(_blobs(seed)))
    assert difference.intensity[0].tolist() == pytest.approx([shift, 0, 0, 0], abs=1e-5)
    assert difference.l1_texture.item() == 0


@given(seed=SEEDS)
def test_the_names_of_the_labels_do_not_matter(seed):
    restored, clean = _pair(seed)
    labels = _blobs(seed)
    renamed = np.array([0, 70, 5, 11])[labels]
    first, second = (nuclei_difference(restored, clean, segmenter=Fixed(one)) for one in (labels, renamed))
    assert torch.allclose(first.intensity, second.intensity)
    assert torch.allclose(first.texture, second.texture)


@pytest.mark.parametrize("region", ["mask", "bbox"])
def test_differences_are_means_over_nuclei_of_absolute_differences(region):
    restored, clean = _pair(5)
    labels = _blobs(5)
    ours, theirs = (grey_levels(to_uint8(image)) for image in (restored, clean))
    expected = []
    for label in range(1, 4):
        rows, columns = np.where(labels == label)
        box = slice(rows.min(), rows.max() + 1), slice(columns.min(), columns.max() + 1)
        mask = np.ones_like(labels[box]) if region == "bbox" else labels[box] == label
        vectors = [np.array(_properties(_masked_matrices(grey[box], mask))) for grey in (ours, theirs)]
        expected.append(np.abs(vectors[0] - vectors[1]))
    difference = nuclei_difference(restored, clean, segmenter=Fixed(labels), region=region)
    assert difference.nuclei.item() == 3
    assert difference.texture[0].tolist() == pytest.approx(np.mean(expected, axis=0).tolist(), rel=1e-5)
    assert difference.l1_texture.item() == pytest.approx(np.mean(expected, axis=0).sum(), rel=1e-5)


def test_nuclei_below_16_pixels_are_left_out():
    restored, clean = _pair(6)
    labels = np.zeros((16, 16), dtype=np.int32)
    labels[:4, :4], labels[8:11, 8:13] = 1, 2
    assert nuclei_difference(restored, clean, segmenter=Fixed(labels)).nuclei.item() == 1


def test_an_image_without_nuclei_is_nan_and_does_not_spoil_the_mean(nuclei_image):
    blank = torch.full_like(nuclei_image, 0.9)
    difference = nuclei_difference(blank, blank)
    assert difference.nuclei.item() == 0
    assert difference.l1_intensity.isnan().all()
    assert difference.l1_texture.isnan().all()
    metric, darker = NucleiL1(), nuclei_image * 0.9
    metric.update(torch.cat([darker, blank]), torch.cat([nuclei_image, blank]))
    found = metric.compute()
    assert found["images_without_nuclei"] == 1
    assert found["l1_texture"].item() == pytest.approx(nuclei_difference(darker, nuclei_image).l1_texture.item())


def test_watershed_finds_the_281_nuclei_of_the_histology_sample_and_the_measured_differences():
    # measured with scikit-image's graycoprops on its own picture: 281 nuclei; clean against a 4 x bicubic reduction, 256 levels:
    # L1_texture 157.6, L1_intensity 10.5
    clean = from_uint8(data.immunohistochemistry().copy())
    small = transform.resize(to_uint8(clean), (128, 128), order=3, anti_aliasing=True)
    large = transform.resize(small, (512, 512), order=3)
    bicubic = torch.from_numpy(large).permute(2, 0, 1)[None].float().clamp(0, 1)
    difference = nuclei_difference(bicubic, clean)
    assert difference.nuclei.item() == 281
    assert difference.l1_texture.item() == pytest.approx(157.6, rel=0.01)
    assert difference.l1_intensity.item() == pytest.approx(10.5, rel=0.01)


def test_watershed_finds_the_same_nuclei_at_another_pixel_size(nuclei_image):
    fine = interpolate(nuclei_image, scale_factor=2, mode="bicubic").clamp(0, 1)
    here, there = Watershed()(to_uint8(nuclei_image)), Watershed(mpp=0.125)(to_uint8(fine))
    same = (there[::2, ::2] > 0) == (here > 0)
    assert abs(int(here.max()) - int(there.max())) <= 1
    assert same.mean() > 0.95
    assert Watershed(mpp=0.05)(to_uint8(nuclei_image)).max() < here.max() / 2


def test_two_centres_are_one_nucleus_unless_they_are_more_than_one_and_a_half_um_apart():
    y, x = np.mgrid[:96, :96]
    touching = np.minimum(np.hypot(y - 48, x - 40), np.hypot(y - 48, x - 52)) < 7
    pixels = np.where(touching[..., None], (90, 60, 140), (240, 220, 235)).astype(np.uint8)
    # 12 px apart is 3 um and 1.5 um; the limit is 6 px of 0.25 um
    assert Watershed(mpp=0.25)(pixels).max() == 2
    assert Watershed(mpp=0.125)(pixels).max() == 1


def test_a_label_map_is_made_once_per_image_content(nuclei_image):
    find = Fixed(Watershed()(to_uint8(nuclei_image)))
    cached = CachedSegmenter(find, size=1)
    for image in (nuclei_image, nuclei_image.clone(), nuclei_image):
        nuclei_difference(image * 0.9, image, segmenter=cached)
    assert find.calls == 1
    assert cached.mpp == find.mpp
    cached(to_uint8(nuclei_image.flip(-1)))
    cached(to_uint8(nuclei_image))
    assert find.calls == 3


def test_bad_nuclei_input_is_one_clear_error(nuclei_image):
    small = np.zeros((3, 3), dtype=np.int32)
    with pytest.raises(ValueError, match="label map of shape"):
        nuclei_difference(nuclei_image, nuclei_image, segmenter=Fixed(small))
    with pytest.raises(ValueError, match="holds NaN"):
        nuclei_difference(nuclei_image * torch.nan, nuclei_image)
    with pytest.raises(ValueError, match="mask or bbox"):
        nuclei_difference(nuclei_image, nuclei_image, region="disc")
    with pytest.raises(ValueError, match="um per pixel"):
        Watershed(mpp=0)


# --- accumulators ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("metric", "function"), [(PSNR, psnr), (SSIM, ssim)])
def test_accumulated_fidelity_is_the_mean_over_images_whatever_the_batches(metric, function):
    restored, clean = _pair(8, batch=5)
    whole, parts = metric(), metric()
    whole.update(restored, clean)
    for part in (slice(0, 3), slice(3, 4), slice(4, 5)):
        parts.update(restored[part], clean[part])
    assert whole.compute().item() == pytest.approx(function(restored, clean).mean().item(), rel=1e-6)
    assert parts.compute().item() == pytest.approx(whole.compute().item(), rel=1e-6)


def test_accumulated_nuclei_are_the_components_and_their_sums():
    restored, clean = _pair(9, batch=2)
    metric = NucleiL1(segmenter=Fixed(_blobs(9)))
    metric.update(restored, clean)
    found, difference = metric.compute(), nuclei_difference(restored, clean, segmenter=Fixed(_blobs(9)))
    assert found["l1_intensity"].item() == pytest.approx(difference.l1_intensity.mean().item(), rel=1e-6)
    assert found["l1_texture"].item() == pytest.approx(difference.l1_texture.mean().item(), rel=1e-6)
    assert found["texture_energy"].item() == pytest.approx(difference.texture[:, TEXTURE.index("energy")].mean().item(), rel=1e-6)
    metric.reset()
    assert metric.images.item() == 0


@pytest.fixture
def _bare(monkeypatch):
    """An environment in which importing an optional or heavy package fails."""
    for name in ("torchmetrics", "torchvision", "skimage", "scipy"):
        monkeypatch.setitem(sys.modules, name, None)


@pytest.mark.usefixtures("_bare")
def test_metric_functions_import_neither_torchmetrics_nor_scikit_image():
    for module in (metrics, fidelity, nuclei):
        runpy.run_path(module.__file__)
    with pytest.raises(ImportError, match="torchmetrics"):
        runpy.run_path(mean.__file__)


@pytest.mark.usefixtures("_bare")
def test_without_scikit_image_the_segmenter_says_what_to_install():
    with pytest.raises(ImportError, match="pip install"):
        Watershed()(np.zeros((8, 8, 3), dtype=np.uint8))
