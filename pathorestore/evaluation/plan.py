"""From the wishes of a user to an evaluation that is ready: files, methods, metrics; and what becomes of its rows."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pathorestore.degradations.recipes import Setting
from pathorestore.evaluation.case_files import chosen, files_of_folder, files_of_manifest, read_facts
from pathorestore.evaluation.cases import CaseKey, Cases, FilePairs, SimulatedDefocus
from pathorestore.evaluation.measures import AGREEING, Features, Measure, Tools, chosen_measures, frechet_features
from pathorestore.evaluation.methods import DEGRADED, Degraded, Method, Restored, RestoredFiles, tune, tuned_methods
from pathorestore.evaluation.run import Evaluation
from pathorestore.evaluation.summarise import Grouping, Question
from pathorestore.pipelines.assemble import RestoreOptions, ready_restorer
from pathorestore.pipelines.batch import PlanError
from pathorestore.pipelines.restorer import Progress, silent
from pathorestore.pipelines.trust import DEFAULT_SEEDS, ready_risk_map

if TYPE_CHECKING:
    from pathorestore.evaluation.journal import Journal

EMBEDDED = "default"
SETTINGS = {"ideal": Setting.ideal, "scanner": Setting.scanner, "shifted": Setting.shifted}
Baseline = Literal["degraded", "unsharp", "wiener"]
Named = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Wishes for an evaluation; the names in messages are those of the command line.

    clean, degraded: folders whose files belong together by name; or manifest and split. facts: CSV that knows slides and patients.
    simulate: distances in um at which sharp images are put out of focus; setting: of the simulator. restored: (name, folder) of images
    made elsewhere. models, coarse: (name, model) run here, whole or their first stage alone; the model "default" is the embedded one.
    baselines: what is compared besides. tune_on: sharp images that the baselines are tuned on, None for the measured ones. metrics: names
    of `MEASURES`, none for all. patch_px: 0 measures whole images. crop_px: at most so much around the centre. limit: of the files.
    """

    clean: Path | None = None
    degraded: Path | None = None
    manifest: Path | None = None
    split: str = "val"
    facts: Path | None = None
    simulate: tuple[float, ...] = ()
    setting: str = "ideal"
    restored: tuple[Named, ...] = ()
    models: tuple[Named, ...] = ()
    coarse: tuple[Named, ...] = ()
    baselines: tuple[Baseline, ...] = ("degraded",)
    tune_on: Path | None = None
    metrics: tuple[str, ...] = ()
    segmenter: str = "watershed"
    encoder: str = EMBEDDED
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

    def __post_init__(self) -> None:
        if (self.clean is None) == (self.manifest is None):
            raise ValueError("name the clean images with --clean FOLDER, or pairs with --manifest FILE, one of them")
        if self.degraded and (self.simulate or self.manifest):
            raise ValueError("--degraded belongs to --clean; with --simulate or --manifest it has no place")
        if self.setting not in SETTINGS:
            raise ValueError(f"--setting {self.setting!r} is unknown; expected one of {', '.join(SETTINGS)}")
        if "wiener" in self.baselines and not self.simulate:
            raise ValueError("--baseline wiener needs the PSF, which is known of simulated images only; add --simulate or leave it out")
        if min(self.patch_px, self.crop_px, self.pictures) < 0:
            raise ValueError(f"--patch {self.patch_px}, --crop {self.crop_px} and --pictures {self.pictures} must not be negative")

    @property
    def pairs(self) -> bool:
        """Whether there are degraded images, so that models can be run."""
        return bool(self.degraded or self.simulate or self.manifest)


@dataclass(frozen=True, kw_only=True, eq=False)
class Plan:
    """An evaluation that is ready but for what must be tuned first, and what its rows will be asked. settings: see `Journal`."""

    options: EvaluateOptions
    cases: Cases
    methods: tuple[Method, ...]
    measures: tuple[Measure, ...]
    left_out: dict[str, str]
    features: Features | None
    settings: dict[str, Any]

    def evaluation(self, journal: "Journal", *, progress: Progress = silent) -> Evaluation:
        """With its baselines tuned, which the journal remembers."""
        methods = list(self.methods)
        if {"unsharp", "wiener"} & set(self.options.baselines):
            known = journal.recall("tuned")
            if known is None:
                found = tune(self._tuning_cases(), wiener="wiener" in self.options.baselines, progress=progress)
                known = journal.remember("tuned", json.dumps(found))
            tuned = {method.name: method for method in tuned_methods(json.loads(known))}
            asked = [
                name for name, word in (("unsharp mask", "unsharp"), ("Wiener, PSF known", "wiener")) if word in self.options.baselines
            ]
            place = sum(method.name == DEGRADED for method in methods)  # after the degraded image, before everything that is to be judged
            methods[place:place] = [tuned[name] for name in asked]
        return Evaluation(cases=self.cases, methods=methods, measures=self.measures, patch_px=self.options.patch_px, features=self.features)

    def question(self, evaluation: Evaluation, *, title: str, run: dict[str, Any]) -> Question:
        """What the rows are asked."""
        names = tuple(method.name for method in evaluation.methods)
        keys = {column.key for measure in self.measures for column in measure.columns}
        return Question(
            title=title,
            methods=names,
            reference=self.options.reference or names[-1],
            columns=tuple(column for measure in self.measures for column in measure.columns),
            agreeing=tuple(one for one in AGREEING if one.column in keys),
            features=evaluation.features,
            grouping=self.options.grouping,
            left_out=self.left_out,
            run=run,
        )

    def _tuning_cases(self) -> Cases:
        if self.options.tune_on is None:
            return self.cases
        keys = files_of_folder(self.options.tune_on)
        return _cases(replace(self.options, clean=self.options.tune_on, manifest=None, degraded=None), keys)


def plan(options: EvaluateOptions, *, progress: Progress = silent) -> Plan:
    """Find files, load models, choose metrics, before anything is measured. progress: of the models' tiles.

    Raises PlanError or ValueError for wishes that do not fit together or files that do not, ImportError where a package is missing.
    """
    cases = _cases(options, _files(options))
    if not cases.keys:
        raise PlanError("there is nothing to evaluate")
    tools = Tools(segmenter=_segmenter(options), **_encoder(options))
    measures, left_out = chosen_measures([name for name in options.metrics if name != "frechet"], tools)
    if not measures:
        raise ValueError(f"none of the chosen metrics can be had: {'; '.join(f'{name}: {why}' for name, why in left_out.items())}")
    features, without = _features(options, tools)
    methods = [*_baseline(options), *_restored(options, cases), *_models(options, progress)]
    settings = {
        "source": [str(path.resolve()) if path else "" for path in (options.clean, options.degraded, options.manifest, options.facts)],
        "split": options.split if options.manifest else "",
        "simulate": list(options.simulate),
        "setting": options.setting if options.simulate else "",
        "baselines": list(options.baselines),
        "tune_on": str(options.tune_on.resolve()) if options.tune_on else "",
        "crop_px": options.crop_px,
        "limit": options.limit,
        "seed": options.restore.seed,
        "risk_seeds": options.risk_seeds if options.risk else None,
        "segmenter": options.segmenter,
        "encoder": options.encoder,
        "methods": {method.name: method.identity for method in methods},
        "metrics": [measure.name for measure in measures],
        "frechet": features.name if features else "",
        "patch_px": options.patch_px,
        "cases": len(cases.keys),
    }
    return Plan(
        options=options,
        cases=cases,
        methods=tuple(methods),
        measures=tuple(measures),
        left_out=left_out | without,
        features=features,
        settings=settings,
    )


def _files(options: EvaluateOptions) -> list[CaseKey]:
    facts = read_facts(options.facts) if options.facts else None
    if options.manifest is not None:
        found = files_of_manifest(options.manifest, options.split)
    else:
        assert options.clean is not None
        found = files_of_folder(options.clean, options.degraded, facts)
    return chosen(found, options.limit)


def _cases(options: EvaluateOptions, files: Sequence[CaseKey]) -> Cases:
    if not options.simulate:
        return FilePairs(keys=tuple(files), crop_px=options.crop_px)
    sharp = [replace(file, degraded=None) for file in files]
    setting = SETTINGS[options.setting]()
    return SimulatedDefocus(sharp, z_um=options.simulate, setting=setting, seed=options.restore.seed, crop_px=options.crop_px)


def _baseline(options: EvaluateOptions) -> list[Method]:
    return [Degraded()] if options.pairs and "degraded" in options.baselines else []


def _restored(options: EvaluateOptions, cases: Cases) -> list[Method]:
    return [RestoredFiles(name, Path(folder), cases) for name, folder in options.restored]


def _models(options: EvaluateOptions, progress: Progress) -> list[Method]:
    asked = [(name, where, True) for name, where in options.coarse] + [(name, where, False) for name, where in options.models]
    if asked and not options.pairs:
        raise ValueError("a model needs degraded images; name them with --degraded, or make them with --simulate")
    methods: list[Method] = []
    for name, where, coarse_only in asked:
        wishes = replace(
            options.restore,
            model=None if where == EMBEDDED else where,
            coarse_only=coarse_only,
            steps=None if coarse_only else options.restore.steps,
        )
        ready = ready_restorer(wishes, progress=progress)
        risk = ready_risk_map(ready, wishes, seeds=options.risk_seeds) if options.risk else None
        identity = {"model": ready.model_id, "weights_sha256": ready.weights_sha256, **ready.parameters, "seed": wishes.seed}
        methods.append(Restored(name, ready.restorer, identity=identity, seed=wishes.seed, risk=risk))
    return methods


def _segmenter(options: EvaluateOptions) -> Any:
    """The segmenter of `--segmenter NAME` or `NAME=FILE`. Raises ValueError for an unknown one."""
    from pathorestore.metrics.segmenter_adapters import HoverNet, InstanSeg, StarDist
    from pathorestore.metrics.segmenters import Precomputed, Watershed

    makers: dict[str, Callable[[str], Any]] = {
        "watershed": lambda _: Watershed(),
        "precomputed": lambda where: Precomputed(Path(where)),
        "instanseg": lambda where: InstanSeg(Path(where)) if where else InstanSeg(),
        "hovernet": lambda where: HoverNet(Path(where)),
        "stardist": lambda where: StarDist(Path(where)),
    }
    name, _, where = options.segmenter.partition("=")
    if name not in makers or (name in ("precomputed", "hovernet", "stardist") and not where):
        raise ValueError(
            f"--segmenter {options.segmenter!r} is none; expected watershed, instanseg, instanseg=FILE, precomputed=FOLDER, "
            "hovernet=CHECKPOINT or stardist=FOLDER"
        )
    return makers[name](where)


def _encoder(options: EvaluateOptions) -> dict[str, Any]:
    """The encoder of embeddings, and the name by which reports call it."""
    from pathorestore.models.encoders import TimmEncoder, TinyEncoder
    from pathorestore.pipelines.mop import default_folder

    name, _, checkpoint = options.encoder.partition("=")
    if checkpoint:
        return {"encoder": TimmEncoder.create(name, checkpoint=checkpoint), "encoder_name": name}
    if name in ("uni", "gigapath"):
        return {"encoder": TimmEncoder.uni() if name == "uni" else TimmEncoder.gigapath(fit="resize224"), "encoder_name": name}
    folder = default_folder() / "encoder" if name == EMBEDDED else Path(name)
    return {"encoder": TinyEncoder.from_pretrained(folder).eval(), "encoder_name": "mop-tiny" if name == EMBEDDED else folder.name}


def _features(options: EvaluateOptions, tools: Tools) -> tuple[Features | None, dict[str, str]]:
    return frechet_features(tools) if not options.metrics or "frechet" in options.metrics else (None, {})
