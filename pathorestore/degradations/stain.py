"""Stain augmentation: RandStainNA (statistics of a virtual slide, drawn per image) and jitter of stain amounts."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from pathorestore.functional.color import dyed, hed_to_rgb, lab8_to_rgb, rgb_to_hed, rgb_to_lab8

Distribution = Literal["normal", "laplace", "uniform"]
_CHANNELS = ("L", "A", "B")
Triple = tuple[float, float, float]
# what takes the place of haematoxylin and eosin: densities in R, G, B as published with ImageJ's colour deconvolution (G. Landini),
# which scikit-image has as rgb_from_hpx, rgb_from_hdx and rgb_from_bpx
_SYNTHETIC: dict[str, tuple[Triple, Triple]] = {
    "pas": ((0.644211, 0.716556, 0.266844), (0.175411, 0.972178, 0.154589)),
    "ihc": ((0.65, 0.704, 0.286), (0.268, 0.57, 0.776)),
    "masson": ((0.7995107, 0.5913521, 0.10528667), (0.09997159, 0.73738605, 0.6680326)),
}
SYNTHETIC_STAINS = tuple(_SYNTHETIC)


@dataclass(frozen=True, kw_only=True)
class StainStatistics:
    """Mean and deviation, across images, of each image's channel mean (`avg_*`) and channel deviation (`std_*`) in 8-bit LAB (L, A, B)."""

    avg_mean: Triple
    avg_std: Triple
    std_mean: Triple
    std_std: Triple

    def __post_init__(self) -> None:
        for name in ("avg_mean", "avg_std", "std_mean", "std_std"):
            if len(getattr(self, name)) != 3 or (name != "avg_mean" and min(getattr(self, name)) < 0):
                raise ValueError(f"{name}={getattr(self, name)} must be three values for L, A, B, deviations not negative")

    @classmethod
    def stock(cls) -> "StainStatistics":
        """Colorectal H&E statistics published with RandStainNA (Shen et al., MICCAI 2022)."""
        return cls(
            avg_mean=(158.033, 151.187, 116.812),
            avg_std=(48.792, 10.958, 6.643),
            std_mean=(36.899, 8.134, 6.129),
            std_std=(14.383, 2.822, 2.013),
        )

    @classmethod
    def mop(cls) -> "StainStatistics":
        """The statistics of the mixture-of-prompts paper's code: the stock ones with a narrower spread of the L deviation."""
        return replace(cls.stock(), std_std=(7.0, 2.822, 2.013))

    @classmethod
    def fit(cls, images: Iterable[Tensor]) -> "StainStatistics":
        """Measure the statistics over RGB images b 3 h w in [0, 1]. Raises ValueError for fewer than two images."""
        measured = [torch.cat(_moments(rgb_to_lab8(one[None])), -1)[0, :, 0].double() for image in images for one in image]
        if len(measured) < 2:
            raise ValueError(f"statistics across images need at least 2 images, got {len(measured)}")
        means, deviations = torch.stack(measured).unbind(-1)

        def triple(values: Tensor) -> Triple:
            lightness, a, b = values.tolist()
            return lightness, a, b

        return cls(
            avg_mean=triple(means.mean(0)),
            avg_std=triple(means.std(0)),
            std_mean=triple(deviations.mean(0)),
            std_std=triple(deviations.std(0)),
        )

    @classmethod
    def from_yaml(cls, path: str | Path) -> "StainStatistics":
        """Read the YAML file format published with RandStainNA. Raises ValueError if it is not LAB or lacks an entry."""
        import yaml

        content: Any = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict) or content.get("color_space", "LAB") != "LAB":
            raise ValueError(f"{path} does not hold LAB statistics; expected `color_space: LAB` with records L, A, B")
        try:
            rows = {
                f"{kind}_{moment}": tuple(float(content[channel][kind][moment]) for channel in _CHANNELS)
                for kind in ("avg", "std")
                for moment in ("mean", "std")
            }
        except (KeyError, TypeError) as error:
            raise ValueError(f"{path} lacks {error}; expected records L, A, B with avg and std, each with mean and std") from error
        return cls(**rows)  # type: ignore[arg-type]

    def to_yaml(self, path: str | Path) -> None:
        """Write the YAML file format published with RandStainNA."""
        import yaml

        content: dict[str, Any] = {"color_space": "LAB", "methods": "Reinhard", "n_each_class": 0, "random": True}
        for k, channel in enumerate(_CHANNELS):
            content[channel] = {
                "avg": {"distribution": "norm", "mean": self.avg_mean[k], "std": self.avg_std[k]},
                "std": {"distribution": "norm", "mean": self.std_mean[k], "std": self.std_std[k]},
            }
        Path(path).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _moments(lab: Tensor) -> tuple[Tensor, Tensor]:
    """Channel mean and deviation b 3 1 1 of each image."""
    return lab.mean((-2, -1), keepdim=True), lab.std((-2, -1), keepdim=True, correction=0)


def match_statistics(image: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:
    """Give an RGB image b 3 h w the LAB channel means and deviations b 3 (8-bit scale), as far as the gamut allows.

    Source: Reinhard et al., IEEE CG&A 21 (2001) 34-41.
    """
    lab = rgb_to_lab8(image)
    source_mean, source_deviation = _moments(lab)
    scale = deviation[..., None, None] / source_deviation.clamp(1e-4, 255)
    return lab8_to_rgb(((lab - source_mean) * scale + mean[..., None, None]).clamp(0, 255))


class RandStainNA:
    """Give each image the stain statistics of a virtual slide drawn from `statistics`, with probability `probability`.

    distribution: of the drawn statistics; uniform spans three deviations to both sides. std_hyper: deviations are scaled by 1 + std_hyper,
    except for uniform. clamp_std: drawn deviations are at least 1, since a negative one would mirror the contrast. Values stay float: they
    are not rounded to 8 bit in between. Source: Shen et al., RandStainNA, MICCAI 2022, LNCS 13432, 212-221.
    Raises ValueError for an unknown distribution, a probability outside [0, 1] or std_hyper below -1.
    """

    def __init__(
        self,
        statistics: StainStatistics,
        *,
        probability: float = 0.9,
        std_hyper: float = -0.3,
        distribution: Distribution = "normal",
        clamp_std: bool = True,
    ) -> None:
        if distribution not in ("normal", "laplace", "uniform") or not 0 <= probability <= 1 or std_hyper < -1:
            raise ValueError(
                f"distribution={distribution!r}, probability={probability}, std_hyper={std_hyper}: "
                "expected 'normal', 'laplace' or 'uniform', a probability in [0, 1] and std_hyper >= -1"
            )
        self.statistics = statistics
        self.probability, self.std_hyper = probability, std_hyper
        self.distribution, self.clamp_std = distribution, clamp_std

    @classmethod
    def mop(cls) -> "RandStainNA":
        """The augmentation as the mixture-of-prompts code trains with: p 0.9, normal, std_hyper -0.3."""
        return cls(StainStatistics.mop())

    @classmethod
    def stock(cls) -> "RandStainNA":
        """The published colorectal statistics with the same settings."""
        return cls(StainStatistics.stock())

    @classmethod
    def from_yaml(cls, path: str | Path) -> "RandStainNA":
        """Statistics from a RandStainNA YAML file, otherwise the settings of `mop`."""
        return cls(StainStatistics.from_yaml(path))

    @classmethod
    def fit(cls, images: Iterable[Tensor]) -> "RandStainNA":
        """Statistics measured over images b 3 h w, otherwise the settings of `mop`; `.statistics.to_yaml(path)` keeps them."""
        return cls(StainStatistics.fit(images))

    def __call__(self, image: Tensor, *, generator: torch.Generator) -> Tensor:
        """Augment RGB images b 3 h w in [0, 1], each with its own draw from the CPU generator."""
        count = len(image)
        chosen = torch.rand(count, generator=generator) < self.probability
        mean = self._draw(count, self.statistics.avg_mean, self.statistics.avg_std, generator)
        deviation = self._draw(count, self.statistics.std_mean, self.statistics.std_std, generator)
        deviation = deviation.clamp(min=1) if self.clamp_std else deviation
        matched = match_statistics(image, mean.to(image), deviation.to(image))
        return torch.where(chosen.to(image.device)[:, None, None, None], matched, image)

    def _draw(self, count: int, centre: Triple, spread: Triple, generator: torch.Generator) -> Tensor:
        uniform = torch.rand(count, 3, generator=generator, dtype=torch.float64)
        scale = torch.tensor(spread, dtype=torch.float64)
        middle = torch.tensor(centre, dtype=torch.float64)
        if self.distribution == "uniform":
            return middle + 3 * scale * (2 * uniform - 1)
        scale = scale * (1 + self.std_hyper)
        if self.distribution == "normal":
            return middle + scale * torch.randn(count, 3, generator=generator, dtype=torch.float64)
        # inverse distribution function of the Laplace law, whose scale parameter the published code sets to the deviation
        side = uniform - 0.5
        return middle - scale * side.sign() * torch.log1p(-2 * side.abs().clamp(max=0.5 - 1e-12))


def hed_jitter(image: Tensor, *, sigma: float, generator: torch.Generator) -> Tensor:
    """Scale and shift the amounts of haematoxylin, eosin and DAB in RGB images b 3 h w: factors 1 +/- sigma, offsets +/- sigma / 100.

    Factors and offsets are uniform, one per image and stain; offsets are on the scale of `rgb_to_hed`, where strong staining is 0.1 to 0.5.
    Source: Tellez et al., Med. Image Anal. 58 (2019) 101544.
    """
    draw = 2 * torch.rand(2, len(image), 3, 1, 1, generator=generator).to(image) - 1
    return hed_to_rgb(rgb_to_hed(image) * (1 + sigma * draw[0]) + sigma / 100 * draw[1])


def synthetic_stain(image: Tensor, to: str) -> Tensor:
    """H&E images b 3 h w in [0, 1] as if another pair of dyes had bound where haematoxylin and eosin did: perfectly registered, not real.

    to: "pas" (haematoxylin and periodic acid-Schiff), "ihc" (haematoxylin and DAB) or "masson" (methyl blue and ponceau fuchsin). What
    is neither haematoxylin nor eosin is left out. No chemistry: real stains bind elsewhere. Raises ValueError for another stain.
    """
    if to not in _SYNTHETIC:
        raise ValueError(f"no synthetic stain {to!r}; expected one of {', '.join(_SYNTHETIC)}, or take registered images of real ones")
    return dyed(rgb_to_hed(image)[:, :2], _SYNTHETIC[to])
