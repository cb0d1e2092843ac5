"""Laws of blind degradation as a whole: seeds, batches, sizes, ranges and what is told of each draw."""

import json
import math
from dataclasses import replace

import pytest
import torch

from pathorestore.degradations import OneRound, Round, Shuffled, TwoRounds, blind_stages, degrade_blind
from pathorestore.degradations.blind import summary
from pathorestore.degradations.blind_recipes import Recipe
from pathorestore.degradations.resize import resized
from pathorestore.functional.noise import stream

RECIPES: dict[str, Recipe] = {
    "diffbir": OneRound.diffbir(),
    "histo_light": OneRound.histo_light(),
    "pyramid": OneRound.pyramid(),
    "bsrgan": Shuffled.bsrgan(4),
    "bsrgan_any": Shuffled.bsrgan(2.3),
    "realesrgan": TwoRounds.realesrgan(4),
    "realesrgan_any": TwoRounds.realesrgan(1.7),
}
SUMMARY = {"recipe", "blur_sigma_px", "blur_sigma_x_px", "blur_sigma_y_px", "downscale", "noise_std", "jpeg_quality", "stages"}
IDLE_ROUND = Round(blur_probability=0, resize=(1, 1), gaussian_probability=1, noise_levels=(0, 0), poisson_scale=(0, 0), jpeg_probability=0)
IDLE: list[Recipe] = [
    OneRound(sigma_px=(0, 0), downscale=(1, 1), noise_levels=(0, 0), jpeg_probability=0),
    Shuffled(scale=1, blur=0, random_resize_probability=0, noise_levels=(0, 0), jpeg_probability=0, final_jpeg_probability=0),
    TwoRounds(scale=1, first=IDLE_ROUND, second=replace(IDLE_ROUND, gaussian_probability=0), final_sinc_probability=0),
]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_the_size_is_restored_by_the_bicubic_of_the_house(nuclei_image: torch.Tensor) -> None:
    small = degrade_blind(nuclei_image[..., :57, :90], Shuffled.bsrgan(2.5), generator=seeded(3))
    large = degrade_blind(nuclei_image[..., :57, :90], Shuffled.bsrgan(2.5), generator=seeded(3), restore_size=True)
    assert small.image.shape == (1, 3, 23, 36)
    assert torch.equal(large.image, resized(small.image, (57, 90)))
    assert large.parameters[0]["stages"] == [*small.parameters[0]["stages"], {"stage": "restore_size", "to_px": [57, 90]}]


@pytest.mark.parametrize("name", RECIPES)
def test_the_stages_are_applied_in_the_order_that_is_told(name: str, nuclei_image: torch.Tensor) -> None:
    for seed in range(6):
        result = degrade_blind(nuclei_image[..., :48, :61], RECIPES[name], generator=seeded(seed))
        own = stream(int(torch.randint(2**63 - 1, (), generator=seeded(seed))))
        stages = RECIPES[name].plan((48, 61), own)
        assert result.parameters[0]["stages"] == [stage.facts() for stage in stages]
        image = nuclei_image[..., :48, :61]
        for stage in stages:
            image = stage(image, own)
        assert torch.equal(result.image, image)


@pytest.mark.parametrize("name", RECIPES)
def test_images_are_float32_in_range_and_of_the_promised_size(name: str) -> None:
    scale = getattr(RECIPES[name], "scale", 1)
    for size in ((33, 41), (17, 8), (5, 70)):
        image = torch.rand(2, 3, *size, generator=seeded(), dtype=torch.float64)
        for restore in (False, True):
            result = degrade_blind(image, RECIPES[name], generator=seeded(2), restore_size=restore)
            wanted = size if restore else tuple(round(side / scale) for side in size)
            assert tuple(result.image.shape) == (2, 3, *wanted)
            assert result.image.dtype == torch.float32
            assert 0 <= result.image.min() <= result.image.max() <= 1


@pytest.mark.parametrize("name", RECIPES)
def test_an_image_depends_on_its_own_generator_alone(name: str, nuclei_image: torch.Tensor) -> None:
    small = nuclei_image[..., :40, :40]
    batch = torch.cat([small, small.flip(-1), small.mT])
    together = degrade_blind(batch, RECIPES[name], generator=[seeded(i) for i in range(3)])
    for i in range(3):
        alone = degrade_blind(batch[i : i + 1], RECIPES[name], generator=seeded(i))
        assert torch.equal(alone.image[0], together.image[i])
        assert alone.parameters[0] == together.parameters[i]
    # with one generator for all, what the others look like is nothing to an image
    shared = degrade_blind(batch, RECIPES[name], generator=seeded(9))
    others = degrade_blind(torch.cat([1 - batch[:2], batch[2:]]), RECIPES[name], generator=seeded(9))
    assert torch.equal(shared.image[2], others.image[2])
    again = seeded(9)
    one_by_one = torch.cat([degrade_blind(one[None], RECIPES[name], generator=again).image for one in batch])
    assert torch.equal(shared.image, one_by_one)
    assert not torch.equal(shared.image, degrade_blind(batch, RECIPES[name], generator=seeded(10)).image)


@pytest.mark.parametrize("recipe", IDLE, ids=lambda recipe: recipe.name)
def test_nothing_drawn_is_nothing_done(recipe: Recipe, nuclei_image: torch.Tensor) -> None:
    for seed in range(4):
        image = nuclei_image[..., :37, :50]
        result = degrade_blind(image, recipe, generator=seeded(seed))
        assert (result.image - image).abs().max() < 0.51 / 255
        told = {key: value for key, value in result.parameters[0].items() if key not in ("recipe", "stages")}
        assert told == {
            "blur_sigma_px": pytest.approx(0, abs=1e-6),
            "blur_sigma_x_px": pytest.approx(0, abs=1e-6),
            "blur_sigma_y_px": pytest.approx(0, abs=1e-6),
            "downscale": 1,
            "noise_std": 0,
            "jpeg_quality": 100,
        }


@pytest.mark.parametrize("name", RECIPES)
def test_parameters_are_json_under_common_keys(name: str) -> None:
    result = degrade_blind(torch.rand(4, 3, 24, 30, generator=seeded()), RECIPES[name], generator=seeded())
    assert len(result.parameters) == 4
    for parameters in result.parameters:
        assert json.loads(json.dumps(parameters, allow_nan=False)) == parameters
        assert set(parameters) == SUMMARY
        assert parameters["recipe"] == name.partition("_any")[0]
        files = [fact["quality"] for fact in parameters["stages"] if fact["stage"] == "jpeg"]
        assert parameters["jpeg_quality"] == min(files, default=100)


def test_the_summary_adds_variances_in_pixels_of_the_input() -> None:
    stages = [
        blind_stages.GaussianBlur(sigma_px=(2.0, 1.0), side_px=25),
        blind_stages.GaussianNoise(deviation=0.03),
        blind_stages.Resize(to_px=(20, 10), kind="area"),
        blind_stages.SincBlur(cutoff=2.0, side_px=9),
        blind_stages.GaussianBlur(sigma_px=(1.5, 1.5), side_px=25),
        blind_stages.Jpeg(quality=70),
        blind_stages.PoissonNoise(scale=1.0),
        blind_stages.Jpeg(quality=80),
        blind_stages.Resize(to_px=(40, 40), kind="linear"),
    ]
    told = summary(stages, (40, 40))
    x, y = 2**2 + (4 * 1.5) ** 2, 1 + (2 * 1.5) ** 2
    assert told["blur_sigma_x_px"] == pytest.approx(math.sqrt(x), rel=1e-3)
    assert told["blur_sigma_y_px"] == pytest.approx(math.sqrt(y), rel=1e-3)
    assert told["blur_sigma_px"] == pytest.approx(math.sqrt((x + y) / 2), rel=1e-3)
    assert told["downscale"] == pytest.approx(math.sqrt(8))
    assert told["noise_std"] == pytest.approx(math.sqrt(0.03**2 + 0.5 / 256))
    assert told["jpeg_quality"] == 70


def test_diffbirs_summary_is_what_was_drawn(nuclei_image: torch.Tensor) -> None:
    for seed in range(8):
        told = degrade_blind(nuclei_image, OneRound(sigma_px=(0.5, 4)), generator=seeded(seed)).parameters[0]
        blur, shrink, noise, jpeg, _ = told["stages"]
        # the side of 41 px holds these kernels whole
        assert told["blur_sigma_px"] == pytest.approx(math.sqrt((blur["sigma_px"][0] ** 2 + blur["sigma_px"][1] ** 2) / 2), rel=0.02)
        assert told["downscale"] == pytest.approx(128 / shrink["to_px"][0])
        assert (told["noise_std"], told["jpeg_quality"]) == (pytest.approx(noise["deviation"]), jpeg["quality"])


def test_stronger_settings_are_worse_images(nuclei_image: torch.Tensor) -> None:
    strengths = ((0.2, 1.5, 0.5, 95), (2, 3, 5, 70), (6, 8, 12, 40))
    recipes = [OneRound(sigma_px=(s, s), downscale=(r, r), noise_levels=(n, n), quality=(q, q)) for s, r, n, q in strengths]
    for seed in range(3):
        errors = [(degrade_blind(nuclei_image, one, generator=seeded(seed)).image - nuclei_image).square().mean() for one in recipes]
        assert 0 < errors[0] < errors[1] < errors[2]


def test_impossible_images_and_generators_are_refused() -> None:
    image = torch.rand(2, 3, 16, 16, generator=seeded())
    with pytest.raises(ValueError, match="3 generators for 2 images"):
        degrade_blind(image, OneRound(), generator=[seeded(), seeded(), seeded()])
    with pytest.raises(ValueError, match="divide 8-bit images by 255"):
        degrade_blind(image * 255, OneRound(), generator=seeded())
    with pytest.raises(ValueError, match="expected RGB"):
        degrade_blind(image[0], OneRound(), generator=seeded())
    for recipe in (Shuffled.bsrgan(20), TwoRounds.realesrgan(16.5)):
        with pytest.raises(ValueError, match="give at least"):
            degrade_blind(image, recipe, generator=seeded())
