"""Laws of the recipes of blind degradation: each against the ranges, shares and order of its paper, over many draws."""

import math
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from pathorestore.degradations import OneRound, Round, Shuffled, TwoRounds, degrade_blind
from pathorestore.degradations.blind_recipes import Recipe
from pathorestore.degradations.resize import reduced, resized
from pathorestore.functional.noise import stream

DRAWS = 400


def plans(recipe: Recipe, size_px: tuple[int, int] = (64, 48)) -> list[list[dict[str, Any]]]:
    """The facts of many draws."""
    return [[stage.facts() for stage in recipe.plan(size_px, stream(i))] for i in range(DRAWS)]


def only(drawn: list[list[dict[str, Any]]], *names: str) -> list[dict[str, Any]]:
    return [fact for facts in drawn for fact in facts if fact["stage"] in names]


def fills(values: list[float], low: float, high: float) -> bool:
    """Values lie in the range, come near to both ends, and have the mean of even draws (4 standard errors)."""
    margin, error = 0.1 * (high - low), 4 * (high - low) / math.sqrt(12 * len(values))
    inside = low <= min(values) < low + margin and high - margin < max(values) <= high
    return inside and abs(sum(values) / len(values) - (low + high) / 2) < error


def near(count: int, of: int, probability: float) -> bool:
    """A count is that of a probability, to 4 standard deviations."""
    return abs(count - of * probability) < 4 * math.sqrt(of * probability * (1 - probability)) + 1e-9


def test_diffbir_draws_what_the_paper_does_in_its_order() -> None:
    drawn = plans(OneRound.diffbir())
    assert {tuple(fact["stage"] for fact in facts) for facts in drawn} == {("gaussian_blur", "resize", "gaussian_noise", "jpeg", "resize")}
    blurs = only(drawn, "gaussian_blur")
    turned = [blur for blur in blurs if blur["sigma_px"][0] != blur["sigma_px"][1]]
    assert near(len(turned), DRAWS, 0.5)
    assert fills([sigma for blur in turned for sigma in blur["sigma_px"]], 0.1, 12)
    assert fills([blur["sigma_px"][0] for blur in blurs if blur not in turned], 0.1, 12)
    assert fills([blur["angle"] for blur in turned], -math.pi, math.pi)
    assert {blur["side_px"] for blur in blurs} == {41}
    assert fills([fact["deviation"] * 255 for fact in only(drawn, "gaussian_noise")], 0, 15)
    assert not any(fact["grey"] for fact in only(drawn, "gaussian_noise"))
    assert fills([fact["quality"] for fact in only(drawn, "jpeg")], 30, 100)
    assert {(*facts[4]["to_px"], facts[1]["kind"], facts[4]["kind"]) for facts in drawn} == {(64, 48, "linear", "linear")}
    # large images, so that rounding to whole pixels does not count
    shrunk = [facts[1]["to_px"] for facts in plans(OneRound.diffbir(), (10**6, 2 * 10**6))]
    assert fills([1e6 / size[0] for size in shrunk], 1, 12)
    assert all(abs(size[1] / size[0] - 2) < 1e-4 for size in shrunk)


def test_histo_light_keeps_to_weaker_ranges() -> None:
    drawn = plans(OneRound.histo_light(), (10**6, 10**6))
    assert fills([fact["sigma_px"][0] for fact in only(drawn, "gaussian_blur")], 0.1, 4)
    assert fills([1e6 / facts[1]["to_px"][0] for facts in drawn], 1, 8)
    assert fills([fact["deviation"] * 255 for fact in only(drawn, "gaussian_noise")], 0, 8)
    assert fills([fact["quality"] for fact in only(drawn, "jpeg")], 60, 100)


def test_pyramid_averages_as_slides_do() -> None:
    drawn = plans(OneRound.pyramid(), (10**6, 10**6))
    assert fills([fact["sigma_px"][0] for fact in only(drawn, "gaussian_blur")], 0, 2)
    assert all(fact["sigma_px"][0] == fact["sigma_px"][1] for fact in only(drawn, "gaussian_blur"))
    assert fills([1e6 / facts[1]["to_px"][0] for facts in drawn], 1, 6)
    assert {fact["kind"] for fact in only(drawn, "resize")} == {"averaged"}
    assert fills([fact["deviation"] * 255 for fact in only(drawn, "gaussian_noise")], 0, 3)
    assert near(len(only(drawn, "jpeg")), DRAWS, 0.5)
    assert fills([fact["quality"] for fact in only(drawn, "jpeg")], 70, 100)


def test_averaging_is_the_reduction_of_the_house(nuclei_image: torch.Tensor) -> None:
    recipe = replace(OneRound.pyramid(), sigma_px=(0, 0), downscale=(4, 4), noise_levels=(0, 0), jpeg_probability=0)
    degraded = degrade_blind(nuclei_image[..., :64, :96], recipe, generator=torch.Generator()).image
    small, _ = reduced(nuclei_image[..., :64, :96], 4, blur=0)
    assert torch.allclose(degraded, resized(small, (64, 96)), atol=1e-6)


@pytest.mark.parametrize("scale", [2.0, 3.0])
def test_bsrgan_blurs_and_reduces_as_its_paper(scale: float) -> None:
    size = int(6e5 * scale)
    drawn = plans(Shuffled.bsrgan(scale), (size, size))
    blurs = only(drawn, "gaussian_blur")
    assert len(blurs) == 2 * DRAWS
    turned = [blur for blur in blurs if blur["sigma_px"][0] != blur["sigma_px"][1]]
    assert near(len(turned), len(blurs), 0.5)
    assert fills([sigma**2 for blur in turned for sigma in blur["sigma_px"]], 0, 4 + scale)
    assert fills([blur["angle"] for blur in turned], 0, math.pi)
    assert fills([blur["sigma_px"][0] for blur in blurs if blur not in turned], 0, 2 + 0.2 * scale)
    assert Counter(blur["side_px"] for blur in blurs).keys() == set(range(7, 26, 2))
    assert all(near(count, len(blurs), 0.1) for count in Counter(blur["side_px"] for blur in blurs).values())
    blocks = only(drawn, "subsample")
    assert near(len(blocks), DRAWS, 0.25)
    assert fills([block["sigma_px"] for block in blocks], 0.1, 0.6 * scale)
    # of two sizes the first is that of the random reduction, the last the wanted one
    sizes = [[fact["to_px"][0] for fact in facts if "to_px" in fact] for facts in drawn]
    assert {(len(steps), steps[-1]) for steps in sizes} == {(2, 600000)}
    free = [steps[0] for steps, facts in zip(sizes, drawn, strict=True) if not only([facts], "subsample")]
    assert fills([size / side for side in free], 1, 2 * scale)
    kinds = Counter(fact["kind"] for fact in only(drawn, "resize"))
    assert set(kinds) == {"linear", "cubic", "area"}
    assert all(near(count, kinds.total(), 1 / 3) for count in kinds.values())


def test_bsrgan_shuffles_noise_blur_and_jpeg_and_ends_with_jpeg() -> None:
    drawn = plans(Shuffled.bsrgan(2))
    noises = only(drawn, "gaussian_noise", "correlated_noise")
    assert len(noises) == DRAWS
    assert fills([noise["deviation"] * 255 for noise in noises], 2, 25)
    assert near(len(only(drawn, "correlated_noise")), DRAWS, 0.2)
    assert near(sum(noise.get("grey", False) for noise in noises), DRAWS, 0.4)
    for noise in only(drawn, "correlated_noise"):
        values = torch.linalg.eigvalsh(torch.tensor(noise["mixing"], dtype=torch.float64))
        assert values.min() > 0
        assert values.sum().item() == pytest.approx(3)
    assert all(facts[-1]["stage"] == "jpeg" for facts in drawn)
    files = only(drawn, "jpeg")
    assert near(len(files) - DRAWS, DRAWS, 0.9)
    assert fills([file["quality"] for file in files], 30, 95)
    # each of the six steps may come first: 2 blurs, 2 reductions of which one is held back, noise, JPEG
    first = Counter(facts[0]["stage"].partition("_")[2] or facts[0]["stage"] for facts in drawn)
    assert near(first["blur"], DRAWS, 2 / 6)
    assert near(first["resize"] + first["subsample"], DRAWS, 2 / 6)
    assert near(first["noise"], DRAWS, 1 / 6 + 0.1 / 6 * 0.2)


def test_bsrgan_halves_at_scale_four_in_a_quarter_of_the_draws_and_goes_on_as_at_two() -> None:
    drawn = plans(Shuffled.bsrgan(4), (800, 800))
    halved = [facts for facts in drawn if sum("to_px" in fact for fact in facts) == 3]
    assert near(len(halved), DRAWS, 0.25)
    assert all(facts[0]["to_px"] == [400, 400] for facts in halved)
    assert max(sigma for fact in only(halved, "gaussian_blur") for sigma in fact["sigma_px"]) <= math.sqrt(6)
    assert all(fact["from_px"] == [400, 400] and fact["to_px"] == [200, 200] for fact in only(halved, "subsample"))
    assert all([fact for fact in facts if "to_px" in fact][-1]["to_px"] == [200, 200] for facts in drawn)
    assert all(sum("to_px" in fact for fact in facts) == 2 for facts in plans(Shuffled.bsrgan(3), (800, 800)))


def rounds(drawn: list[list[dict[str, Any]]]) -> tuple[list[list[dict[str, Any]]], ...]:
    """Split draws of two rounds after the first JPEG, and the second after its noise."""
    parts: tuple[list[list[dict[str, Any]]], ...] = ([], [], [])
    for facts in drawn:
        noises = [i for i, fact in enumerate(facts) if fact["stage"].endswith("_noise")]
        parts[0].append(facts[: noises[0] + 2])
        parts[1].append(facts[noises[0] + 2 : noises[1] + 1])
        parts[2].append(facts[noises[1] + 1 :])
    return parts


@pytest.mark.parametrize(
    ("index", "blurred", "sigma", "shares", "factors", "levels", "poisson"),
    [
        (0, 1.0, (0.2, 3), (0.2, 0.7, 0.1), (0.15, 1.5), (1, 30), (0.05, 3)),
        (1, 0.8, (0.2, 1.5), (0.3, 0.4, 0.3), (0.3, 1.2), (1, 25), (0.05, 2.5)),
    ],
)
def test_a_round_of_realesrgan_draws_what_its_paper_does(
    index: int,
    blurred: float,
    sigma: tuple[float, float],
    shares: tuple[float, ...],
    factors: tuple[float, float],
    levels: tuple[float, float],
    poisson: tuple[float, float],
) -> None:
    size = 4 * 10**6
    drawn = rounds(plans(TwoRounds.realesrgan(4), (size, size)))[index]
    blurs, sincs = only(drawn, "gaussian_blur", "plateau_blur"), only(drawn, "sinc_blur")
    assert near(len(blurs) + len(sincs), DRAWS, blurred)
    assert near(len(sincs), DRAWS, 0.1 * blurred)
    names = Counter(
        (
            "plateau" if "plateau" in blur["stage"] else "general" if blur["beta"] != 1 else "plain",
            blur["sigma_px"][0] == blur["sigma_px"][1],
        )
        for blur in blurs
    )
    wanted = {("plain", True): 0.45, ("plain", False): 0.25, ("general", True): 0.12, ("general", False): 0.03}
    for name, share in (wanted | {("plateau", True): 0.12, ("plateau", False): 0.03}).items():
        assert near(names[name], len(blurs), share), name
    assert fills([blur["sigma_px"][0] for blur in blurs], *sigma)
    general = [blur["beta"] for blur in only(drawn, "gaussian_blur") if blur["beta"] != 1]
    assert 0.5 <= min(general) < 1.2
    assert 3 < max(general) <= 4
    assert all(1 <= blur["beta"] <= 2 for blur in only(drawn, "plateau_blur"))
    assert {blur["side_px"] for blur in blurs} == set(range(7, 22, 2))
    assert all((math.pi / 3 if sinc["side_px"] < 13 else math.pi / 5) <= sinc["cutoff"] <= math.pi for sinc in sincs)
    # the first round relative to the input, the second to the wanted size
    scaled = [fact["to_px"][0] / (size, size / 4)[index] for fact in only(drawn, "resize")]
    for hits, share in zip((sum(f > 1 for f in scaled), sum(f < 1 for f in scaled), scaled.count(1)), shares, strict=True):
        assert near(hits, DRAWS, share)
    assert fills([f for f in scaled if f > 1], 1, factors[1])
    assert fills([f for f in scaled if f < 1], factors[0], 1)
    normal, counted = only(drawn, "gaussian_noise"), only(drawn, "poisson_noise")
    assert near(len(normal), DRAWS, 0.5)
    assert len(normal) + len(counted) == DRAWS
    assert fills([noise["deviation"] * 255 for noise in normal], *levels)
    assert fills([noise["scale"] for noise in counted], *poisson)
    assert near(sum(noise["grey"] for noise in normal + counted), DRAWS, 0.4)


def test_realesrgan_keeps_the_order_of_its_rounds_and_ends_in_random_order() -> None:
    first, second, last = rounds(plans(TwoRounds.realesrgan(4), (400, 200)))
    for facts in first + second:
        kinds = [fact["stage"].partition("_")[2] or fact["stage"] for fact in facts]
        assert kinds == [kind for kind in ("blur", "resize", "noise", "jpeg") if kind in kinds]
    assert all(facts[-1]["stage"] == "jpeg" for facts in first)
    assert fills([file["quality"] for file in only(first, "jpeg")], 30, 95)
    assert fills([file["quality"] for file in only(last, "jpeg")], 30, 95)
    assert {fact["to_px"][0] for fact in only(last, "resize")} == {100}
    orders = Counter(tuple(fact["stage"] for fact in facts) for facts in last)
    fitted = {("resize", "sinc_blur"): 0.4, ("resize",): 0.1}
    assert set(orders) == {(*order, "eight_bit") for fit in fitted for order in ((*fit, "jpeg"), ("jpeg", *fit))}
    for fit, share in fitted.items():
        assert near(orders[(*fit, "jpeg", "eight_bit")], DRAWS, share)
        assert near(orders[("jpeg", *fit, "eight_bit")], DRAWS, share)
    assert fills([sinc["cutoff"] for sinc in only(last, "sinc_blur")], math.pi / 3, math.pi)


def test_a_range_of_one_value_is_that_value() -> None:
    fixed: dict[str, Any] = {"noise_levels": (51, 51), "quality": (77, 77)}
    one = Round(**fixed, sigma_px=(1.25, 1.25), gaussian_probability=1, sinc_probability=0)
    recipes = (
        OneRound(**fixed, sigma_px=(1.25, 1.25), downscale=(2, 2)),
        Shuffled(scale=2, **fixed),
        TwoRounds(scale=2, first=one, second=one),
    )
    for recipe in recipes:
        drawn = plans(recipe)
        assert {noise["deviation"] for noise in only(drawn, "gaussian_noise", "correlated_noise")} == {51 / 255}
        assert {file["quality"] for file in only(drawn, "jpeg")} == {77}
        if not isinstance(recipe, Shuffled):
            assert {tuple(blur["sigma_px"]) for blur in only(drawn, "gaussian_blur", "plateau_blur")} == {(1.25, 1.25)}
    assert {tuple(facts[1]["to_px"]) for facts in plans(recipes[0])} == {(32, 24)}


@pytest.mark.parametrize(
    ("shares", "told"),
    [((1, 0, 0), ("gaussian_noise", False)), ((0, 1, 0), ("gaussian_noise", True)), ((0, 0, 1), ("correlated_noise", None))],
)
def test_shares_of_noise_are_colour_grey_correlated(shares: tuple[float, float, float], told: tuple[str, bool | None]) -> None:
    noises = only(plans(Shuffled(scale=2, noise_shares=shares)), "gaussian_noise", "correlated_noise")
    assert {(noise["stage"], noise.get("grey")) for noise in noises} == {told}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: OneRound(sigma_px=(3, 1)), "sigma_px=.* must be a range"),
        (lambda: OneRound(sigma_px=(-1, 1)), "0 <= low <= high"),
        (lambda: OneRound(downscale=(0.5, 2)), "1 <= low <= high"),
        (lambda: OneRound(quality=(0, 50)), "1 <= low <= high"),
        (lambda: OneRound(quality=(50, 101)), "must end at 100"),
        (lambda: OneRound(noise_levels=(0, math.inf)), "must be a range"),
        (lambda: OneRound(kernel_side_px=40), "must be odd"),
        (lambda: OneRound(isotropic_probability=1.5), r"must lie in \[0, 1\]"),
        (lambda: Shuffled.bsrgan(0.5), "make images smaller"),
        (lambda: Shuffled(scale=2, blur=-1), "0 none"),
        (lambda: Shuffled(scale=2, side_px=(6, 25)), "must be odd"),
        (lambda: Shuffled(scale=2, noise_shares=(0, 0, 0)), "one of them more than 0"),
        (lambda: TwoRounds.realesrgan(math.nan), "make images smaller"),
        (lambda: Round(kernel_shares=(1.0,)), "must be six numbers"),
        (lambda: Round(resize=(0.5, 0.9)), "factors around 1"),
        (lambda: Round(gaussian_beta=(0, 4)), "must be positive"),
        (lambda: Round(resize_shares=(-0.1, 1, 0)), "must not be negative"),
        (lambda: OneRound(interpolation="nearest"), "interpolation='nearest' must be one of linear, cubic, area, averaged"),
    ],
)
def test_impossible_settings_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
