"""Laws of stain augmentation."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathorestore.degradations.stain import SYNTHETIC_STAINS, RandStainNA, StainStatistics, hed_jitter, match_statistics, synthetic_stain
from pathorestore.functional.color import rgb_to_lab8

# the file as published with RandStainNA, except that the records L, A, B are shortened to what is read
PUBLISHED = """
A:
  avg: {distribution: laplace, mean: 151.187, std: 10.958}
  std: {distribution: laplace, mean: 8.134, std: 2.822}
B:
  avg: {distribution: norm, mean: 116.812, std: 6.643}
  std: {distribution: norm, mean: 6.129, std: 2.013}
L:
  avg: {distribution: norm, mean: 158.033, std: 48.792}
  std: {distribution: norm, mean: 36.899, std: 7}
color_space: LAB
methods: Reinhard
n_each_class: 0
random: true
"""


def tissue(seed: int = 0, count: int = 2) -> torch.Tensor:
    """Softly varying pinkish images without clipped colours."""
    gen = torch.Generator().manual_seed(seed)
    rough = torch.nn.functional.interpolate(torch.rand(count, 3, 6, 6, generator=gen), size=24, mode="bilinear")
    return torch.tensor([0.7, 0.5, 0.65])[:, None, None] + 0.15 * (rough - 0.5)


def lab_moments(image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    lab = rgb_to_lab8(image)
    return lab.mean((-2, -1)), lab.std((-2, -1), correction=0)


def always(statistics: StainStatistics, **options: object) -> RandStainNA:
    return RandStainNA(statistics, probability=1.0, **options)  # type: ignore[arg-type]


@given(seed=st.integers(0, 100))
def test_an_image_matched_to_its_own_statistics_stays_as_it_is(seed: int) -> None:
    image = tissue(seed)
    assert (match_statistics(image, *lab_moments(image)) - image).abs().max() < 1 / 255


@given(seed=st.integers(0, 100), lightness=st.floats(120, 170), a=st.floats(135, 150), b=st.floats(112, 125), spread=st.floats(2, 8))
def test_a_matched_image_has_the_target_statistics(seed: int, lightness: float, a: float, b: float, spread: float) -> None:
    mean, deviation = torch.tensor([[lightness, a, b]]), torch.tensor([[spread, spread / 2, spread / 2]])
    found_mean, found_deviation = lab_moments(match_statistics(tissue(seed, 1), mean, deviation))
    assert torch.allclose(found_mean, mean, atol=0.3)
    assert torch.allclose(found_deviation, deviation, atol=0.3)


def test_a_fixed_generator_gives_a_fixed_image_and_another_seed_another() -> None:
    first, again, other = (RandStainNA.mop()(tissue(), generator=torch.Generator().manual_seed(seed)) for seed in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_probability_counts_the_images_that_change(generator: torch.Generator) -> None:
    image = tissue(count=200)
    changed = (RandStainNA.mop()(image, generator=generator) != image).flatten(1).any(1).float().mean()
    assert 0.83 < changed < 0.96
    untouched = RandStainNA(StainStatistics.mop(), probability=0.0)(image, generator=generator)
    assert torch.equal(untouched, image)


def test_every_image_of_a_batch_gets_its_own_stain(generator: torch.Generator) -> None:
    mean, _ = lab_moments(always(StainStatistics.mop())(tissue(count=1).expand(6, -1, -1, -1), generator=generator))
    assert mean[:, 1].unique().numel() == 6


@pytest.mark.parametrize(("distribution", "factor"), [("normal", 0.7), ("laplace", 0.7 * 2**0.5), ("uniform", 3**0.5)])
def test_drawn_means_follow_the_distribution(distribution: str, factor: float, generator: torch.Generator) -> None:
    # deviations: normal s; Laplace of scale s: sqrt(2) s; uniform on +/- 3 s: sqrt(3) s. std_hyper -0.3 scales s but not the uniform
    statistics = StainStatistics(avg_mean=(140, 140, 120), avg_std=(3, 1.5, 1.5), std_mean=(5, 2.5, 2.5), std_std=(0, 0, 0))
    drawn, _ = lab_moments(always(statistics, distribution=distribution)(tissue(count=1500)[..., ::3, ::3], generator=generator))
    assert torch.allclose(drawn.mean(0), torch.tensor([140.0, 140.0, 120.0]), atol=0.4)
    assert torch.allclose(drawn.std(0), factor * torch.tensor([3.0, 1.5, 1.5]), rtol=0.1)


def test_clamped_deviations_never_mirror_the_contrast(generator: torch.Generator) -> None:
    statistics = StainStatistics(avg_mean=(150, 145, 120), avg_std=(0, 0, 0), std_mean=(0, 2, 2), std_std=(5, 0, 0))
    image = tissue(count=1).expand(40, -1, -1, -1)
    for clamp_std, mirrored in ((True, False), (False, True)):
        stained = always(statistics, clamp_std=clamp_std)(image, generator=generator)
        before, after = rgb_to_lab8(image)[:, 0].flatten(1), rgb_to_lab8(stained)[:, 0].flatten(1)
        alike = ((before - before.mean(1, keepdim=True)) * (after - after.mean(1, keepdim=True))).mean(1)
        assert (alike < 0).any() == mirrored


def test_the_published_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "published.yaml"
    path.write_text(PUBLISHED)
    assert RandStainNA.from_yaml(path).statistics == StainStatistics.mop()
    assert StainStatistics.stock().std_std[0] == 14.383


def test_fitted_statistics_survive_the_file(tmp_path: Path) -> None:
    images = [tissue(seed, 3) for seed in range(4)]
    augment = RandStainNA.fit(images)
    means, deviations = lab_moments(torch.cat(images))
    assert torch.allclose(torch.tensor(augment.statistics.avg_mean), means.mean(0), atol=1e-3)
    assert torch.allclose(torch.tensor(augment.statistics.std_std), deviations.std(0), atol=1e-3)
    augment.statistics.to_yaml(tmp_path / "own.yaml")
    assert StainStatistics.from_yaml(tmp_path / "own.yaml") == augment.statistics


@pytest.mark.parametrize("content", ["color_space: HSV", "just text", "color_space: LAB\nL: {avg: {mean: 1}}"])
def test_other_files_are_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "other.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match="expected"):
        StainStatistics.from_yaml(path)


def test_impossible_options_are_refused() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        StainStatistics.fit([tissue(count=1)])
    with pytest.raises(ValueError, match="probability"):
        RandStainNA(StainStatistics.mop(), probability=1.5)
    with pytest.raises(ValueError, match="avg_std"):
        StainStatistics(avg_mean=(1, 1, 1), avg_std=(-1, 1, 1), std_mean=(1, 1, 1), std_std=(1, 1, 1))


def test_jitter_of_zero_leaves_stained_tissue_alone_and_more_of_it_changes_more(nuclei_image: torch.Tensor) -> None:
    still, little, much = (hed_jitter(nuclei_image, sigma=s, generator=torch.Generator().manual_seed(1)) for s in (0.0, 0.05, 0.3))
    assert torch.allclose(still, nuclei_image, atol=1e-3)
    assert (little - nuclei_image).abs().mean() < (much - nuclei_image).abs().mean()
    assert (much - nuclei_image).abs().mean() > 0.01


@pytest.mark.parametrize(("to", "name"), [("pas", "rgb_from_hpx"), ("ihc", "rgb_from_hdx"), ("masson", "rgb_from_bpx")])
def test_a_synthetic_stain_is_the_dyes_of_scikit_image_in_the_amounts_of_haematoxylin_and_eosin(to: str, name: str) -> None:
    color = pytest.importorskip("skimage.color")
    image = tissue(3, 1)
    amounts = color.separate_stains(image[0].permute(1, 2, 0).double().numpy(), color.hed_from_rgb)
    amounts[..., 2] = 0
    expected = color.combine_stains(amounts, getattr(color, name))
    assert torch.allclose(synthetic_stain(image, to)[0].permute(1, 2, 0).double(), torch.from_numpy(expected), atol=1e-5)


@pytest.mark.parametrize("to", SYNTHETIC_STAINS)
def test_glass_takes_no_synthetic_stain(to: str) -> None:
    assert torch.allclose(synthetic_stain(torch.ones(1, 3, 4, 4), to), torch.ones(1, 3, 4, 4))


def test_an_unknown_synthetic_stain_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of pas, ihc, masson"):
        synthetic_stain(torch.ones(1, 3, 4, 4), "gold")
