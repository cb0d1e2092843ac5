"""From the wishes of a user to an evaluation that is ready: files, methods, metrics; and what becomes of its rows."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pathorestore.degradations.recipes import Setting
from pathorestore.evaluation.case_files import chosen, files_of_folder, files_of_manifest, read_facts
from pathorestore.evaluation.cases import CaseKey, Cases, FilePairs, ReducedImages, SimulatedDefocus
from pathorestore.evaluation.measures import AGREEING, FRECHET, Features, Measure, Tools, chosen_measures, frechet_features
from pathorestore.evaluation.methods import CLEAN, UNSHARP, WIENER, Degraded, Method, Restored, RestoredFiles, tune, tuned_methods, upscaled
from pathorestore.evaluation.run import Evaluation, state
from pathorestore.evaluation.summarise import Grouping, Question
from pathorestore.pipelines.assemble import RestoreOptions, ready_restorer
from pathorestore.pipelines.batch import PlanError
from pathorestore.pipelines.restorer import Progress, silent
from pathorestore.pipelines.trust import DEFAULT_SEEDS, ready_risk_map
from pathorestore.version import __version__

if TYPE_CHECKING:
    from pathorestore.diffusion.gaussian import SamplerName
    from pathorestore.evaluation.journal import Journal

EMBEDDED = "default"
SETTINGS = {"ideal": Setting.ideal, "scanner": Setting.scanner, "shifted": Setting.shifted}
Baseline = Literal["degraded", "unsharp", "wiener"]
Named = tuple[str, str]


@dataclass(frozen=True, kw_only=True)
class EvaluateOptions:
    """Wishes for an evaluation; the names in messages are those of the command line.

    clean, degraded: folders whose files belong together by name; or manifest and split. facts: CSV that knows slides and patients.
    simulate: distances in um at which sharp images are put out of focus; setting: of the simulator. reduce: factors by which sharp images
    are made smaller, for upscalers; blur: before that, 1 as in ISTE's recipe. restored: (name, folder) of images
    made elsewhere. models, coarse: (name, model) run here, whole or their first stage alone; the model "default" is the embedded one.
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
    restored: tuple[Named, ...] = ()
    models: tuple[Named, ...] = ()
    coarse: tuple[Named, ...] = ()
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
        made = bool(self.simulate or self.reduce)
        cut = bool(self.patch_px or self.crop_px or made)
        refused = {
            "name the clean images with --clean, or pairs with --manifest, one of them": (self.clean is None) == (self.manifest is None),
            "--simulate and --reduce degrade in different ways; give one of them": self.simulate and self.reduce,
            "--degraded belongs to --clean; --simulate, --reduce and --manifest bring their own": self.degraded and (made or self.manifest),
            "--blur belongs to --reduce": self.blur != 1.0 and not self.reduce,
            "--risk is for restorers, and --reduce for upscalers": self.reduce and self.risk,
            "--sampler is for generative upscalers; add --reduce": self.sampler and not self.reduce,
            "--facts belongs to --clean; a manifest has columns for what is known": self.facts and self.manifest,
            "--restored images are of one degraded image each, --simulate and --reduce make these anew; give files with --degraded": made
            and self.restored,
            "--baseline wiener needs the PSF, which is known of simulated images only; add --simulate or leave it out": not self.simulate
            and "wiener" in self.baselines,
            "--tune-on belongs to --simulate or --reduce, with --baseline unsharp or wiener": self.tune_on and not (made and tuned),
            "--setting belongs to --simulate": self.setting != "ideal" and not self.simulate,
            "--risk judges the risk maps of models; name one with --model or --coarse": self.risk and not (self.models or self.coarse),
            "label maps made elsewhere fit whole images as they are; leave --crop, --level patch, --simulate and --reduce out, or name "
            "another --segmenter": cut and self.segmenter.startswith("precomputed"),
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
        return bool(self.degraded or self.simulate or self.reduce or self.manifest)


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
        """With its baselines tuned, which the journal remembers for as long as the images are the same."""
        methods = {method.name: method for method in self.methods}
        wanted = _tuned_names(self.options)
        if wanted:
            cases = self._tuning_cases()
            name = f"tuned {wanted} {stamped([key.clean for key in cases.keys])}"
            known = journal.recall(name)
            if known is None:
                known = journal.remember(name, json.dumps(tune(cases, wiener=WIENER in wanted, progress=progress)))
            methods |= {method.name: method for method in tuned_methods(json.loads(known))}
        return Evaluation(
            cases=self.cases,
            methods=[methods[name] for name in self.names],
            measures=self.measures,
            patch_px=self.options.patch_px,
            features=self.features,
        )

    @property
    def names(self) -> tuple[str, ...]:
        """Of all methods: the degraded image and the baselines first."""
        given = [method.name for method in self.methods]
        first = given[:1] if given[:1] == [self.cases.degraded_name] else []
        return (*first, *_tuned_names(self.options), *given[len(first) :])

    @property
    def inputs(self) -> tuple[Path, ...]:
        """The folders and files that it reads."""
        options = self.options
        places = (options.clean, options.degraded, options.manifest, options.facts, options.tune_on)
        return (*(place for place in places if place), *(Path(folder) for _, folder in options.restored))

    @property
    def facts(self) -> dict[str, Any]:
        """What a report says of the settings; of folders their names only, for paths tell of whom and where."""
        methods = {method.name: method.identity for method in self.methods}
        methods |= {name: Path(folder).name for name, folder in self.options.restored}
        told = {name: value for name, value in self.settings.items() if name not in ("source", "files") and value not in ("", [], None)}
        return told | {"images": [place.name for place in self.inputs], "baselines": list(self.options.baselines), "methods": methods}

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
            notes=self.notes(evaluation),
        )

    def notes(self, evaluation: Evaluation) -> tuple[str, ...]:
        """What a reader must know of pixel sizes and of how baselines were tuned."""
        told = []
        in_um = any(column.unit.startswith("um") for measure in self.measures for column in measure.columns)
        if in_um and not all(key.mpp for key in self.cases.keys):
            told.append(
                "Where neither a table nor a file tells the size of a pixel, it is taken to be 0.25 um; lengths and areas hang on it."
            )
        for method in evaluation.methods:
            if method.name in (UNSHARP, WIENER):
                on = "other images" if self.options.tune_on else "the judged images themselves, which favours it"
                settings = "; ".join(f"{f'{degree}: ' if degree else ''}{setting}" for degree, setting in method.identity.items())
                told.append(f"{method.name} was tuned for the highest PSNR on {on}: {settings}.")
        return tuple(told)

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
    tools = Tools(segmenter=_segmenter(options), iqa=options.iqa, **_encoder(options))
    measures, left_out = chosen_measures(options.metrics, tools)
    features, without = _features(options, tools)
    if not measures and not features:
        raise ValueError(
            f"none of the chosen metrics can be had: {'; '.join(f'{name}: {why}' for name, why in (left_out | without).items())}"
        )
    methods = [*_baseline(options, cases), *_restored(options, cases), *_models(options, cases, progress)]
    settings = {
        "pathorestore": __version__,
        "source": [str(path.resolve()) if path else "" for path in (options.clean, options.degraded, options.manifest)],
        "split": options.split if options.manifest else "",
        "simulate": list(options.simulate),
        "setting": options.setting if options.simulate else "",
        "reduce": list(options.reduce),
        "blur": options.blur if options.reduce else "",
        "crop_px": options.crop_px,
        "patch_px": options.patch_px,
        "seed": options.restore.seed,
        "segmenter": options.segmenter,
        "encoder": options.encoder,
        "iqa": options.iqa.name if options.iqa else "",
        "files": stamped(_tool_files(options)),
        "metrics": [measure.name for measure in measures],
        "frechet": features.name if features else "",
    }
    ready = Plan(
        options=options,
        cases=cases,
        methods=tuple(methods),
        measures=tuple(measures),
        left_out=left_out | without,
        features=features,
        settings=settings,
    )
    check_names(ready.names, options.reference)
    return ready


def _tool_files(options: EvaluateOptions) -> list[Path]:
    """The files of users that metrics work with."""
    words = [options.segmenter.partition("=")[2], options.encoder.partition("=")[2] or options.encoder]
    return [*(Path(word) for word in words if word and word != EMBEDDED), *([options.iqa] if options.iqa else [])]


def stamped(paths: Sequence[Path]) -> str:
    """A hash of names, sizes and times of files, and of the files below folders; what is not there is left out."""
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*")) if path.is_dir() else [])]
    return hashlib.sha256(json.dumps([state(file) for file in files]).encode()).hexdigest()[:16]


def check_names(names: Sequence[str], reference: str) -> None:
    """Raise ValueError for methods that cannot be told apart, for none, and for a reference that is none of them."""
    twice = sorted({name for name in names if list(names).count(name) > 1})
    if twice or CLEAN in names:
        raise ValueError(f"method {(twice or [CLEAN])[0]!r} is {'named twice' if twice else 'the name of the target'}; name it otherwise")
    if not names:
        raise ValueError("nothing to evaluate; name restored images with --restored, or a model with --model")
    if reference and reference not in names:
        raise ValueError(f"--reference {reference!r} is none of the methods {', '.join(names)}")


def _tuned_names(options: EvaluateOptions) -> list[str]:
    return [name for name, word in ((UNSHARP, "unsharp"), (WIENER, "wiener")) if word in options.baselines]


def _files(options: EvaluateOptions) -> list[CaseKey]:
    facts = read_facts(options.facts) if options.facts else None
    if options.manifest is not None:
        found = files_of_manifest(options.manifest, options.split)
    else:
        assert options.clean is not None
        found = files_of_folder(options.clean, options.degraded, facts)
    return chosen(found, options.limit)


def _cases(options: EvaluateOptions, files: Sequence[CaseKey]) -> Cases:
    if not (options.simulate or options.reduce):
        return FilePairs(keys=tuple(files), crop_px=options.crop_px)
    sharp = [replace(file, degraded=None) for file in files]
    if options.reduce:
        return ReducedImages(sharp, scales=options.reduce, blur=options.blur, crop_px=options.crop_px)
    setting = SETTINGS[options.setting]()
    return SimulatedDefocus(sharp, z_um=options.simulate, setting=setting, seed=options.restore.seed, crop_px=options.crop_px)


def _baseline(options: EvaluateOptions, cases: Cases) -> list[Method]:
    return [Degraded(name=cases.degraded_name)] if options.pairs and "degraded" in options.baselines else []


def _restored(options: EvaluateOptions, cases: Cases) -> list[Method]:
    return [RestoredFiles(name, Path(folder), cases) for name, folder in options.restored]


def _models(options: EvaluateOptions, cases: Cases, progress: Progress) -> list[Method]:
    asked = [(name, where, True) for name, where in options.coarse] + [(name, where, False) for name, where in options.models]
    if asked and not options.pairs:
        raise ValueError("a model needs degraded images; name them with --degraded, or make them with --simulate")
    methods: list[Method] = []
    if options.reduce:
        upscalers = [
            upscaled(
                name,
                None if where == EMBEDDED else where,
                options.restore,
                scale=max(options.reduce),
                coarse_only=coarse_only,
                sampler=options.sampler,
            )
            for name, where, coarse_only in asked
        ]
        if (options.sampler or options.restore.steps) and not any(one.generative for one in upscalers):
            raise ValueError("--sampler and --steps are for generative upscalers, and none is named with --model; leave them out")
        return [*upscalers]
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
        if risk is not None:
            identity["risk"] = hashlib.sha256(repr((risk.model, risk.seeds)).encode()).hexdigest()[:16]
        window = cases.window
        methods.append(Restored(name, ready.restorer, identity=identity, seed=wishes.seed, risk=risk, window=window))
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
    return frechet_features(tools) if not options.metrics or FRECHET in options.metrics else (None, {})
