"""The wishes for an evaluation, checked for whether they fit together."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pathorestore.degradations.recipes import Setting
from pathorestore.evaluation.score_table import Grouping
from pathorestore.pipelines.assemble import RestoreOptions
from pathorestore.pipelines.trust import DEFAULT_SEEDS

if TYPE_CHECKING:
    from pathorestore.diffusion.gaussian import SamplerName

EMBEDDED = "default"
SETTINGS = {"ideal": Setting.ideal, "scanner": Setting.scanner, "shifted": Setting.shifted}
Baseline = Literal["degraded", "unsharp", "wiener"]
Named = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Wishes for an evaluation; the names in messages are those of the command line.

    clean, degraded: folders whose files belong together by name; or manifest and split. facts: CSV that knows slides and patients.
    simulate: distances in um at which sharp images are put out of focus; setting: of the simulator. reduce: factors by which sharp images
    are made smaller, for upscalers; blur: before that, 1 as in ISTE's recipe. tasks: that sharp images are made examples of, for prompted
    models; unprompted ones are not told of them. restored: (name, folder) of images made elsewhere. models, coarse: (name, model) run here,
    whole or their first stage alone; the model "default" is the embedded one.
    baselines: what is compared besides. tune_on: sharp images that the baselines are tuned on, None for the measured ones. metrics: names
    of `MEASURES`, none for all. iqa: folder of parameters of NIQE and BRISQUE, None for the embedded ones. patch_px: 0 measures whole
    images. crop_px: at most so much around the centre. limit: of the files.
    """

    clean: Path | None = None
    degraded: Path | None = None
    manifest: Path | None = None
    split: str = "val"
    facts: Path | None = None
    simulate: tuple[float, ...] = ()
    setting: str = "ideal"
    reduce: tuple[float, ...] = ()
    blur: float = 1.0
    tasks: tuple[str, ...] = ()
    restored: tuple[Named, ...] = ()
    models: tuple[Named, ...] = ()
    coarse: tuple[Named, ...] = ()
    unprompted: tuple[Named, ...] = ()
    baselines: tuple[Baseline, ...] = ("degraded",)
    tune_on: Path | None = None
    metrics: tuple[str, ...] = ()
    segmenter: str = "watershed"
    encoder: str = EMBEDDED
    iqa: Path | None = None
    patch_px: int = 0
    crop_px: int = 0
    limit: int | None = None
    grouping: Grouping = "auto"
    reference: str = ""
    title: str = ""
    pictures: int = 10
    risk: bool = False
    risk_seeds: int = DEFAULT_SEEDS
    restore: RestoreOptions = field(default_factory=RestoreOptions)
    sampler: "SamplerName | None" = None

    def __post_init__(self) -> None:
        tuned = {"unsharp", "wiener"} & set(self.baselines)
        made = bool(self.simulate or self.reduce or self.tasks)
        cut = bool(self.patch_px or self.crop_px or made)
        plain, own = ((one.tile_px, one.overlap_px, one.precision) for one in (RestoreOptions(), self.restore))
        cut_otherwise = own != plain
        ways = (self.simulate, self.reduce, self.tasks)
        refused = {
            "name the clean images with --clean, or pairs with --manifest, one of them": (self.clean is None) == (self.manifest is None),
            "--simulate, --reduce and --task degrade in different ways; give one of them": sum(map(bool, ways)) > 1,
            "--unprompted belongs to --task": self.unprompted and not self.tasks,
            "--degraded belongs to --clean; --simulate, --reduce, --task and --manifest bring their own": self.degraded
            and (made or self.manifest),
            "--blur belongs to --reduce": self.blur != 1.0 and not self.reduce,
            "--risk is for restorers; --reduce is for upscalers, --task for prompted models": (self.reduce or self.tasks) and self.risk,
            "--tile, --overlap and --precision are for restorers; leave them out with --task": self.tasks and cut_otherwise,
            "--sampler is for generative models; add --reduce or --task": self.sampler and not (self.reduce or self.tasks),
            "--facts belongs to --clean; a manifest has columns for what is known": self.facts and self.manifest,
            "--restored images are of one degraded image each, --simulate, --reduce and --task make these anew; give files with "
            "--degraded": made and self.restored,
            "--baseline wiener needs the PSF, which is known of simulated images only; add --simulate or leave it out": not self.simulate
            and "wiener" in self.baselines,
            "--tune-on belongs to --simulate, --reduce or --task, with --baseline unsharp or wiener": self.tune_on and not (made and tuned),
            "--setting belongs to --simulate": self.setting != "ideal" and not self.simulate,
            "--risk judges the risk maps of models; name one with --model or --coarse": self.risk and not (self.models or self.coarse),
            "label maps made elsewhere fit whole images as they are; leave --crop, --level patch, --simulate, --reduce and --task out, or "
            "name another --segmenter": cut and self.segmenter.startswith("precomputed"),
            f"--setting {self.setting!r} is unknown; expected one of {', '.join(SETTINGS)}": self.setting not in SETTINGS,
            f"--patch {self.patch_px}, --crop {self.crop_px} and --pictures {self.pictures} must not be negative": min(
                self.patch_px, self.crop_px, self.pictures
            )
            < 0,
        }
        for reason, holds in refused.items():
            if holds:
                raise ValueError(reason)

    @property
    def pairs(self) -> bool:
        """Whether there are degraded images, so that models can be run."""
        return bool(self.degraded or self.simulate or self.reduce or self.tasks or self.manifest)
