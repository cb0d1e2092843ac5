"""From the wishes of a user to an evaluation that is ready: files, methods, metrics; and what becomes of its rows."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pathorestore.evaluation.case_files import chosen, files_of_folder, files_of_manifest, read_facts
from pathorestore.evaluation.cases import CaseKey, Cases, FilePairs, ReducedImages, SimulatedDefocus
from pathorestore.evaluation.measures import AGREEING, FRECHET, Features, Measure, Tools, chosen_measures, frechet_features
from pathorestore.evaluation.methods import CLEAN, UNSHARP, WIENER, Degraded, Method, RestoredFiles, tune, tuned_methods
from pathorestore.evaluation.options import SETTINGS, EvaluateOptions
from pathorestore.evaluation.run import Evaluation, state
from pathorestore.evaluation.summarise import Question
from pathorestore.evaluation.task_cases import TaskExamples, asked_tasks
from pathorestore.evaluation.wishes import tool_files, wished_encoder, wished_models, wished_segmenter
from pathorestore.pipelines.batch import PlanError
from pathorestore.pipelines.provenance import GENERATED_NOTICE, RESTORED_NOTICE, STAINED_NOTICE
from pathorestore.pipelines.restorer import Progress, silent
from pathorestore.version import __version__

if TYPE_CHECKING:
    from pathorestore.evaluation.journal import Journal


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
            notice=self.notice,
        )

    @property
    def notice(self) -> str:
        """What a viewer of the pictures must know: the strongest that holds for one of the methods."""
        said = {method.notice for method in self.methods}
        return next((notice for notice in (STAINED_NOTICE, GENERATED_NOTICE) if notice in said), RESTORED_NOTICE)

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
    tools = Tools(segmenter=wished_segmenter(options), iqa=options.iqa, **wished_encoder(options))
    measures, left_out = chosen_measures(options.metrics, tools)
    features, without = _features(options, tools)
    if not measures and not features:
        raise ValueError(
            f"none of the chosen metrics can be had: {'; '.join(f'{name}: {why}' for name, why in (left_out | without).items())}"
        )
    methods = [*_baseline(options, cases), *_restored(options, cases), *wished_models(options, cases, progress)]
    settings = {
        "pathorestore": __version__,
        "source": [str(path.resolve()) if path else "" for path in (options.clean, options.degraded, options.manifest)],
        "split": options.split if options.manifest else "",
        "simulate": list(options.simulate),
        "setting": options.setting if options.simulate else "",
        "reduce": list(options.reduce),
        "tasks": list(options.tasks),
        "blur": options.blur if options.reduce else "",
        "crop_px": options.crop_px,
        "patch_px": options.patch_px,
        "seed": options.restore.seed,
        "segmenter": options.segmenter,
        "encoder": options.encoder,
        "iqa": options.iqa.name if options.iqa else "",
        "files": stamped(tool_files(options)),
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
    if not (options.simulate or options.reduce or options.tasks):
        return FilePairs(keys=tuple(files), crop_px=options.crop_px)
    sharp = [replace(file, degraded=None) for file in files]
    if options.tasks:
        return TaskExamples(sharp, tasks=asked_tasks(options.tasks), seed=options.restore.seed, crop_px=options.crop_px)
    if options.reduce:
        return ReducedImages(sharp, scales=options.reduce, blur=options.blur, crop_px=options.crop_px)
    setting = SETTINGS[options.setting]()
    return SimulatedDefocus(sharp, z_um=options.simulate, setting=setting, seed=options.restore.seed, crop_px=options.crop_px)


def _baseline(options: EvaluateOptions, cases: Cases) -> list[Method]:
    return [Degraded(name=cases.degraded_name)] if options.pairs and "degraded" in options.baselines else []


def _restored(options: EvaluateOptions, cases: Cases) -> list[Method]:
    return [RestoredFiles(name, Path(folder), cases) for name, folder in options.restored]


def _features(options: EvaluateOptions, tools: Tools) -> tuple[Features | None, dict[str, str]]:
    return frechet_features(tools) if not options.metrics or FRECHET in options.metrics else (None, {})
