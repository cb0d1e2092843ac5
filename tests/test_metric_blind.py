"""NIQE and BRISQUE: the statistics against piq, scipy and laws, the two scores, their parameters as files, the accumulators."""

import importlib
import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from scipy import ndimage, special, stats
from scipy.spatial.distance import mahalanobis
from skimage import data

from pathorestore.degradations.acquisition import gaussian_blur, read_noise
from pathorestore.image import from_uint8
from pathorestore.metrics import brisque as regression
from pathorestore.metrics import niqe as distance
from pathorestore.metrics.accumulators.blind import BRISQUE, NIQE
from pathorestore.metrics.brisque import Samples, brisque, fit_brisque
from pathorestore.metrics.niqe import NiqeConfig, NiqeParameters, fit_niqe, gaussian_distance, niqe
from pathorestore.metrics.scene_parameters import EMBEDDED, FitFacts, ParameterError
from pathorestore.metrics.scene_statistics import (
    PatchFeatures,
    fit_aggd,
    fit_ggd,
    half_size,
    image_features,
    luminance_levels,
    neighbour_products,
    normalised,
    patch_features,
    scale_features,
)

SEEDS = st.integers(0, 10_000)
FACTS = FitFacts(files=2, groups=2, samples=40, held_out=0, spearman={"noise": 0.5}, spearman_within={}, digest="0", seed=0, crop_px=64)


@pytest.fixture(scope="module")
def tissue() -> torch.Tensor:
    """The immunohistochemistry image of scikit-image, 1 3 512 512, which no parameters were fitted to."""
    return from_uint8(data.immunohistochemistry())


@pytest.fixture(scope="module")
def piq():
    """Piq's own code of the features."""
    return importlib.import_module("piq.brisque")


def _luma(seed: int, height: int = 64, width: int = 64, batch: int = 1) -> torch.Tensor:
    """Whole grey levels, smooth and rough, b 1 h w in float64."""
    rng = np.random.default_rng(seed)
    rough = rng.normal(128, 30, (batch, 1, height, width)) + 400 * ndimage.gaussian_filter(rng.standard_normal((height, width)), 3)
    return torch.from_numpy(rough.clip(0, 255).round())


def _texture(seed: int = 0, side: int = 192) -> torch.Tensor:
    """A gray picture of that texture, 1 3 h w."""
    return (_luma(seed, side, side) / 255).float().expand(1, 3, -1, -1)


# --- statistics -----------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [0.6, 1.0, 2.0, 4.0])
def test_a_generalised_gaussian_is_recovered_from_its_samples(shape):
    law = stats.gennorm(shape, scale=3.0)
    found = fit_ggd(torch.from_numpy(law.rvs(200_000, random_state=1)))
    assert found.shape.item() == pytest.approx(shape, rel=0.03)
    assert found.variance.item() == pytest.approx(law.var(), rel=0.03)


@pytest.mark.parametrize("shape", [0.7, 1.5])
def test_an_asymmetric_gaussian_is_recovered_from_its_samples(shape):
    # density ~ exp(-(|x| / beta)^shape) with its own beta on each side, so a side is met as often as its beta says
    left, right, rng = 1.0, 2.5, np.random.default_rng(0)
    size = np.abs(stats.gennorm(shape).rvs(300_000, random_state=rng))
    below = rng.random(len(size)) < left / (left + right)
    values = np.where(below, -left * size, right * size)
    found = fit_aggd(torch.from_numpy(values))
    assert found.shape.item() == pytest.approx(shape, rel=0.03)
    assert found.left.item() == pytest.approx(left**2 * stats.gennorm(shape).var(), rel=0.03)
    assert found.right.item() == pytest.approx(right**2 * stats.gennorm(shape).var(), rel=0.03)
    assert found.mean.item() == pytest.approx(values.mean(), rel=0.03)


@given(seed=SEEDS, factor=st.floats(0.01, 100))
def test_symmetric_values_make_both_fits_agree_and_scale(seed, factor):
    half = torch.from_numpy(np.random.default_rng(seed).standard_normal(500))
    values = torch.cat([half, -half])
    plain, skewed, scaled = fit_ggd(values), fit_aggd(values), fit_aggd(factor * values)
    assert skewed.shape.item() == pytest.approx(plain.shape.item(), rel=1e-9)
    assert skewed.left.item() == pytest.approx(skewed.right.item()) == pytest.approx(plain.variance.item())
    assert skewed.mean.item() == pytest.approx(0, abs=1e-12)
    assert scaled.shape.item() == pytest.approx(plain.shape.item(), rel=1e-9)
    assert scaled.left.item() == pytest.approx(factor**2 * plain.variance.item())


def test_values_on_one_side_only_are_fitted_and_zeros_alone_are_not():
    values = torch.rand(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    one_sided = fit_aggd(values)
    assert all(math.isfinite(number) for number in one_sided)
    assert one_sided.left == 0
    assert fit_aggd(-values).mean.item() == pytest.approx(-one_sided.mean.item())
    assert fit_ggd(torch.zeros(5)).shape.isnan()
    assert fit_aggd(torch.zeros(5)).shape.isnan()


def _with_ratio(ratio: float) -> torch.Tensor:
    """A thousand positive values, all but one alike, of mean 1 with E|x|^2 / E x^2 = ratio."""
    values = torch.ones(1000, dtype=torch.float64)
    excess = math.sqrt(999 * (1 / ratio - 1))
    values[0] += excess
    values[1:] -= excess / 999
    return values


@given(shape=st.floats(0.2, 10))
def test_the_shape_solves_the_moment_equation(shape):
    ratio = special.gamma(2 / shape) ** 2 / (special.gamma(1 / shape) * special.gamma(3 / shape))
    assert fit_ggd(_with_ratio(ratio)).shape.item() == pytest.approx(shape, rel=1e-9)


@pytest.mark.parametrize(("ratio", "shape"), [(0.999, 10.0), (0.002, 0.2), (0.5, 1.0), (2 / math.pi, 2.0)])
def test_shapes_are_known_for_laplacian_and_normal_values_and_end_where_the_paper_looks_no_further(ratio, shape):
    assert fit_ggd(_with_ratio(ratio)).shape.item() == pytest.approx(shape, rel=1e-9)


def test_zeros_lie_on_neither_side():
    values = torch.tensor([-2.0, 0.0, 0.0, 4.0], dtype=torch.float64)
    assert fit_aggd(values)[2:] == (4.0, 16.0)


def test_fits_equal_the_table_of_piq_within_its_step(piq, tissue):
    mscn = normalised(luminance_levels(tissue))[0]
    assert fit_ggd(mscn.flatten(1)).shape.item() == pytest.approx(piq._ggd_parameters(mscn)[0].item(), abs=6e-4)
    for shift in ((0, 1), (1, 0), (1, 1), (-1, 1)):
        products = mscn * mscn.roll(shift, (-2, -1))
        ours, (shape, left, right) = fit_aggd(products.flatten(1)), piq._aggd_parameters(products)
        assert ours.shape.item() == pytest.approx(shape.item(), abs=6e-4)
        assert (ours.left.item(), ours.right.item()) == pytest.approx((left.item() ** 2, right.item() ** 2), rel=1e-9)


@pytest.mark.parametrize("kind", ["random", "tissue"])
def test_all_36_features_equal_those_of_piq_where_the_borders_are_black(piq, tissue, kind):
    # Where we differ from piq: borders replicated against padded with black, neighbours inside the image against wrapped around, shapes
    # solved against looked up in steps of 0.001. A wide black margin leaves the steps and a share of 1 / 288 of pairs that are counted.
    from piq.functional import imresize

    luma = torch.zeros(1, 1, 288, 288, dtype=torch.float64)
    luma[..., 32:-32, 32:-32] = luminance_levels(tissue)[..., 100:324, 100:324] if kind == "tissue" else _luma(3, 224, 224)
    expected = torch.cat([piq._natural_scene_statistics(scale) for scale in (luma, imresize(luma, sizes=(144, 144)))], dim=-1)
    assert torch.allclose(image_features(luma), expected, rtol=0.02, atol=5e-4)


def test_half_size_equals_piq_and_pillow():
    from PIL import Image
    from piq.functional import imresize

    luma = _luma(1, 90, 71)
    ours = half_size(luma)
    assert ours.shape == (1, 1, 45, 35)
    pillow = np.asarray(Image.fromarray(luma[0, 0].float().numpy()).resize((35, 45), Image.Resampling.BICUBIC))
    assert np.abs(ours[0, 0].numpy() - pillow).max() < 1e-3
    even = _luma(1, 90, 70)
    inside = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    assert torch.allclose(half_size(even)[inside], imresize(even, sizes=(45, 35))[inside], atol=1e-3)


@given(seed=SEEDS)
def test_normalised_luminance_equals_a_two_dimensional_correlation(seed):
    luma = _luma(seed, 33, 40)
    y, x = np.mgrid[-3:4, -3:4]
    window = np.exp(-(x**2 + y**2) / (2 * (7 / 6) ** 2))
    window /= window.sum()
    grey = luma[0, 0].numpy()
    mean = ndimage.correlate(grey, window, mode="nearest")
    deviation = np.sqrt(np.maximum(ndimage.correlate(grey**2, window, mode="nearest") - mean**2, 0))
    mscn, found = normalised(luma)
    assert np.allclose(found[0, 0].numpy(), deviation, atol=1e-5)
    assert np.allclose(mscn[0, 0].numpy(), (grey - mean) / (deviation + 1), atol=1e-6)


@given(seed=SEEDS, offset=st.integers(-50, 50))
def test_a_brightness_offset_does_not_change_the_features(seed, offset):
    luma = _luma(seed)
    assert torch.allclose(image_features(luma + offset), image_features(luma), rtol=1e-6, atol=1e-9)


@given(seed=SEEDS)
def test_mirroring_swaps_the_diagonals_and_transposing_swaps_the_axes(seed):
    luma = _luma(seed)
    blocks = image_features(luma).reshape(2, 18).split([2, 4, 4, 4, 4], dim=1)
    mirrored, turned = image_features(luma.flip(-1)).reshape(2, 18), image_features(luma.transpose(-1, -2)).reshape(2, 18)
    assert torch.allclose(mirrored, torch.cat([blocks[index] for index in (0, 1, 2, 4, 3)], dim=1), rtol=1e-6)
    assert torch.allclose(turned, torch.cat([blocks[index] for index in (0, 2, 1, 3, 4)], dim=1), rtol=1e-6)


def test_neighbour_products_are_those_of_a_small_example():
    mscn = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    assert [products.tolist() for products in neighbour_products(mscn)] == [[2, 15], [3, 10], [5], [6]]


def test_single_precision_gives_the_features_of_double():
    luma = _luma(4, 96, 96)
    luma[..., 40:] = 240  # bright and flat, where rounding would have signs of its own
    # at half the size the resampling rings into the flat part by less than single precision tells from rounding
    single, double = image_features(luma.float()).double(), image_features(luma)
    assert torch.allclose(single[:, :18], double[:, :18], rtol=1e-5)
    assert torch.allclose(single[:, 18:], double[:, 18:], rtol=0.02)


def test_flat_luminance_has_zero_coefficients_and_no_features():
    flat = torch.full((1, 1, 64, 64), 243.0, dtype=torch.float64)
    assert not normalised(flat)[0].any()
    assert image_features(flat).isnan().any()


@given(seed=SEEDS)
def test_an_image_has_the_same_features_alone_and_in_a_batch(seed):
    batch = _luma(seed, 48, 64, batch=3)
    assert torch.allclose(image_features(batch)[1:2], image_features(batch[1:2]), rtol=1e-9)


def test_luma_is_the_grey_of_an_8_bit_file(tissue):
    from PIL import Image

    expected = np.asarray(Image.fromarray(data.immunohistochemistry()).convert("L")).astype(float)
    found = luminance_levels(tissue)[0, 0].numpy()
    assert np.abs(found - expected).max() <= 1  # Pillow rounds its weights to 16 bit
    assert (found == expected).mean() > 0.99


def test_patches_are_cut_from_the_normalised_image():
    luma = _luma(5, 100, 140)
    found = patch_features(luma, patch_px=32)
    whole = luma[..., :96, :128]
    assert found.features.shape == (1, 12, 36)
    mscn, deviation = normalised(whole)
    assert torch.allclose(found.features[0, 5, :18], scale_features(mscn[0, 0, 32:64, 32:64]))
    assert torch.allclose(found.features[0, 5, 18:], scale_features(normalised(half_size(whole))[0][0, 0, 16:32, 16:32]))
    assert found.sharpness[0, 5].item() == pytest.approx(deviation[0, 0, 32:64, 32:64].mean().item())


@pytest.mark.parametrize(
    ("shape", "patch_px", "message"),
    [((1, 1, 95, 300), 96, "hold 0 patches of 96 px"), ((1, 1, 96, 191), 96, "at least 96 x 192 px"), ((1, 1, 64, 64), 33, "even")],
)
def test_images_without_two_patches_are_refused_with_the_remedy(shape, patch_px, message):
    with pytest.raises(ValueError, match=message):
        patch_features(torch.zeros(shape), patch_px=patch_px)


# --- NIQE -----------------------------------------------------------------------------------------------------------------------------


def _gaussian(seed: int, size: int = 36) -> tuple[torch.Tensor, torch.Tensor]:
    rows = torch.from_numpy(np.random.default_rng(seed).standard_normal((4 * size, size)))
    return rows.mean(dim=0), rows.T.cov()


@given(seed=SEEDS)
def test_the_distance_is_that_of_mahalanobis_under_the_mean_covariance(seed):
    (mean, covariance), (other_mean, other_covariance) = _gaussian(seed), _gaussian(seed + 1)
    inverse = np.linalg.inv((covariance + other_covariance).numpy() / 2)
    found = gaussian_distance(mean, covariance, other_mean, other_covariance)
    assert found.item() == pytest.approx(mahalanobis(mean.numpy(), other_mean.numpy(), inverse), rel=1e-8)
    assert gaussian_distance(other_mean, other_covariance, mean, covariance).item() == pytest.approx(found.item())
    assert gaussian_distance(mean, covariance, mean, other_covariance) == 0


def test_the_distance_of_a_worked_example():
    # means 3 and 4 apart, mean variances 9 and 4: sqrt(1 + 4)
    means = torch.tensor([3.0, 4.0]), torch.zeros(2)
    covariances = torch.diag(torch.tensor([8.0, 2.0])), torch.diag(torch.tensor([10.0, 6.0]))
    assert gaussian_distance(means[0], covariances[0], means[1], covariances[1]).item() == pytest.approx(math.sqrt(5))


def test_an_image_with_the_statistics_of_the_model_is_at_distance_zero():
    image = _texture(0)
    rows = patch_features(luminance_levels(image), patch_px=32).features[0]
    known = NiqeParameters(mean=rows.mean(dim=0), covariance=rows.T.cov(), config=NiqeConfig(patch_px=32, sharpness=0.75, fit=FACTS))
    assert niqe(image, known).item() == pytest.approx(0, abs=1e-6)
    assert niqe(gaussian_blur(image, sigma_px=1.0), known) > 1


def test_only_patches_above_the_share_of_the_sharpest_of_their_image_are_taken():
    features = torch.arange(6.0)[:, None].expand(6, 36).reshape(2, 3, 36).clone()
    features[1, 2] = torch.nan
    sharpness = torch.tensor([[1.0, 0.75, 0.8], [10.0, 8.0, 9.0]])
    assert distance.sharp_rows(PatchFeatures(features, sharpness), 0.75)[:, 0].tolist() == [0, 2, 3, 4]


def test_too_few_patches_for_a_covariance_are_refused():
    config = NiqeConfig(patch_px=32, sharpness=0.75, fit=FACTS)
    with pytest.raises(ValueError, match="36 sharp patches of 32 px are too few"):
        fit_niqe(torch.rand(36, 36), config)


# --- BRISQUE --------------------------------------------------------------------------------------------------------------------------


def _samples(seed: int = 0, count: int = 60) -> Samples:
    rng = np.random.default_rng(seed)
    features = rng.uniform(-1, 1, (count, 36))
    scores = 50 + 40 * np.sin(features[:, 0]) - 30 * features[:, 1] ** 2
    weights = torch.from_numpy(rng.integers(1, 4, count).astype(float))
    groups = [str(number % 6) for number in range(count)]
    return Samples(features=torch.from_numpy(features), scores=torch.from_numpy(scores), weights=weights, groups=groups)


def test_with_a_centre_for_each_sample_the_fit_is_the_textbook_kernel_ridge():
    samples = _samples()
    found = fit_brisque(samples, fit=FACTS, seed=0)
    rows = (2 * (samples.features - found.low) / (found.high - found.low) - 1).numpy()
    squares = ((rows[:, None] - rows[None]) ** 2).sum(-1)
    gram = np.exp(-squares / (2 * found.config.width**2))
    weights, offset = samples.weights.numpy(), np.average(samples.scores.numpy(), weights=samples.weights.numpy())
    ridge = found.config.penalty * weights.sum() * np.diag(1 / weights)
    expected = offset + gram @ np.linalg.solve(gram + ridge, samples.scores.numpy() - offset)
    assert regression.score(samples.features, found).numpy() == pytest.approx(expected.clip(0, 100), abs=0.05)
    assert found.config.offset == pytest.approx(offset)


def test_the_chosen_width_and_penalty_have_the_least_error_on_left_out_groups():
    samples = _samples(1)
    found = fit_brisque(samples, fit=FACTS, seed=0)
    rows = (2 * (samples.features - found.low) / (found.high - found.low) - 1).float().double().numpy()
    folds, weights = regression._folds(samples.groups, 0).numpy(), samples.weights.numpy()
    target = samples.scores.numpy() - found.config.offset

    def error(width: float, penalty: float) -> float:
        gram, total = np.exp(-((rows[:, None] - rows[None]) ** 2).sum(-1) / (2 * width**2)), 0.0
        for fold in np.unique(folds):
            kept = folds != fold
            ridge = penalty * weights[kept].sum() * np.diag(1 / weights[kept])
            # the span of all centres holds the minimiser, which is that of the kept samples alone
            found = gram[:, kept] @ np.linalg.solve(gram[np.ix_(kept, kept)] + ridge, target[kept])
            total += (weights * (found - target) ** 2)[~kept].sum()
        return total

    errors = {(width, penalty): error(width, penalty) for width in regression._WIDTHS for penalty in regression._PENALTIES}
    assert errors[found.config.width, found.config.penalty] <= 1.01 * min(errors.values())


def test_folds_never_tear_a_group_apart():
    groups = [f"g{number % 7}" for number in range(50)]
    folds = regression._folds(groups, 3).tolist()
    assert len(set(zip(groups, folds, strict=True))) == 7
    assert len(set(folds)) == 5


def test_scores_stay_in_range_and_features_beyond_the_fit_look_like_its_end():
    found = fit_brisque(_samples(), fit=FACTS, seed=0, centres=20)
    assert len(found.centres) == 20
    wild = 100 * torch.randn(50, 36, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    scores = regression.score(wild, found)
    assert scores.min() >= 0
    assert scores.max() <= 100
    assert torch.equal(scores, regression.score(wild.clamp(found.low, found.high), found))


def test_one_group_or_unknown_features_are_refused():
    samples = _samples()
    with pytest.raises(ValueError, match="two patients or more"):
        fit_brisque(replace(samples, groups=["a"] * 60), fit=FACTS, seed=0)
    with pytest.raises(ValueError, match="leave flat images out"):
        fit_brisque(replace(samples, features=samples.features / 0), fit=FACTS, seed=0)


# --- the embedded parameters ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", [niqe, brisque])
def test_blur_and_noise_make_tissue_worse_step_by_step(metric, tissue):
    sharp = tissue[..., 64:448, 64:448]
    blurred = [metric(gaussian_blur(sharp, sigma_px=sigma)).item() for sigma in (1.0, 1.6, 2.5, 4.0)]
    noise = [read_noise(sharp, deviation=level / 255, generator=torch.Generator().manual_seed(0)) for level in (5, 10, 20, 40)]
    noisy = [metric(image).item() for image in noise]
    for scores in (blurred, noisy):
        assert scores == sorted(scores)
        assert metric(sharp).item() < scores[0]


@pytest.mark.parametrize("metric", [niqe, brisque])
def test_one_value_comes_for_each_image_whatever_the_batch(metric, tissue):
    crops = torch.cat([tissue[..., :192, :192], tissue[..., 200:392, 200:392], torch.ones(1, 3, 192, 192)])
    scores = metric(crops)
    assert scores.shape == (3,)
    assert scores[2].isnan(), "a flat image has no statistics"
    assert torch.allclose(scores[:2], torch.cat([metric(crops[:1]), metric(crops[1:2])]), rtol=1e-6)
    assert metric(crops[:0]).shape == (0,)


@pytest.mark.parametrize("metric", [niqe, brisque])
@pytest.mark.parametrize("shape", [(1, 3, 31, 400), (1, 1, 256, 256), (3, 256, 256)])
def test_small_or_misshapen_images_are_refused(metric, shape):
    with pytest.raises(ValueError, match=r"use crops of at least|expected RGB as"):
        metric(torch.rand(shape))


def test_the_embedded_parameters_are_small_and_say_where_they_come_from():
    files = [EMBEDDED / f"{name}.{suffix}" for name in ("niqe", "brisque") for suffix in ("safetensors", "json")]
    assert sum(path.stat().st_size for path in files) < 200_000
    for module in (distance, regression):
        assert module.available() == (True, "")
        facts = module.load_parameters().config.fit
        assert len(facts.digest) == 64
        assert min(facts.spearman.values()) > 0.8
    assert (EMBEDDED / "README.md").is_file()


# --- files ----------------------------------------------------------------------------------------------------------------------------


def _both():
    rows = torch.from_numpy(np.random.default_rng(0).standard_normal((80, 36)))
    return [
        (distance, fit_niqe(rows, NiqeConfig(patch_px=32, sharpness=0.5, fit=FACTS)), ("mean", "covariance")),
        (regression, fit_brisque(_samples(), fit=FACTS, seed=0), ("low", "high", "centres", "coefficients")),
    ]


@pytest.mark.parametrize("which", [0, 1])
def test_saved_parameters_come_back_bit_by_bit(which, tmp_path):
    module, saved, tensors = _both()[which]
    module.save_parameters(saved, tmp_path / "new" / "folder")
    loaded = module.load_parameters(tmp_path / "new" / "folder")
    assert loaded.config == saved.config
    assert all(torch.equal(getattr(loaded, name), getattr(saved, name)) for name in tensors)
    assert all(getattr(loaded, name).dtype == getattr(saved, name).dtype for name in tensors)


@pytest.mark.parametrize("which", [0, 1])
def test_missing_parameters_are_told_with_the_remedy(which, tmp_path):
    module, saved, _ = _both()[which]
    found = module.available(tmp_path)
    assert not found.ok
    assert "no such file" in found.reason
    assert "pathorestore iqa-fit" in found.reason
    with pytest.raises(FileNotFoundError, match="pathorestore iqa-fit"):
        module.load_parameters(tmp_path)
    numbers, facts = module.save_parameters(saved, tmp_path)
    facts.unlink()
    assert not module.available(tmp_path).ok
    assert numbers.is_file()


def _edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("which", [0, 1])
def test_files_that_are_not_exactly_right_are_refused_by_name(which, tmp_path):
    module, saved, tensors = _both()[which]

    def refused(pattern: str) -> None:
        with pytest.raises(ParameterError, match=pattern) as caught:
            module.load_parameters(tmp_path)
        assert "\n" not in str(caught.value)
        module.save_parameters(saved, tmp_path)

    numbers, facts = module.save_parameters(saved, tmp_path)
    _edit(facts, lambda content: content.update(surprise=1))
    refused(r"\.json: cannot be used: .*unknown surprise")
    _edit(facts, lambda content: content["fit"].pop("digest"))
    refused("missing digest")
    facts.write_text("{")
    refused("cannot be used")
    kept = load_file(numbers)
    save_file({**kept, "more": torch.zeros(1)}, numbers)
    refused("holds .*more.*; expected")
    save_file({name: kept[name] for name in tensors[1:]}, numbers)
    refused(f"expected .*{tensors[0]}")
    save_file({**kept, tensors[0]: kept[tensors[0]] / 0}, numbers)
    refused("finite")
    save_file({**kept, tensors[0]: kept[tensors[0]][:-1].clone()}, numbers)
    refused("expected")
    numbers.write_bytes(b"nothing of the kind")
    refused("is damaged or no safetensors file")


# --- accumulators ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("accumulator", "function"), [(NIQE, niqe), (BRISQUE, brisque)])
def test_the_accumulators_average_what_the_functions_give_and_leave_flat_images_out(accumulator, function, tissue):
    crops = torch.cat([tissue[..., :192, :192], tissue[..., 200:392, 200:392]])
    metric = accumulator()
    metric.update(torch.ones(1, 3, 192, 192))
    assert metric.compute().isnan()
    metric.update(crops)
    assert metric.compute().item() == pytest.approx(function(crops).mean().item(), rel=1e-5)
    assert (metric.images.item(), metric.undefined.item()) == (2, 1)
    assert metric.higher_is_better is False


def test_the_accumulators_take_parameters_of_their_own(tissue):
    (_, own, _), (_, other, _) = _both()
    crop = tissue[..., :192, :192]
    for metric, expected in ((NIQE(parameters=own), niqe(crop, own)), (BRISQUE(parameters=other), brisque(crop, other))):
        metric.update(crop)
        assert metric.compute().item() == pytest.approx(expected.item(), rel=1e-5)
