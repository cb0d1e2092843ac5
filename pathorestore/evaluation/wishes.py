"""What a user wishes for, made ready: models, and the tools that metrics work with."""

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from pathorestore.evaluation.cases import Cases
from pathorestore.evaluation.methods import Method, Restored, upscaled
from pathorestore.evaluation.options import EMBEDDED, EvaluateOptions, Named
from pathorestore.evaluation.task_cases import Prompted, Way, asked_tasks
from pathorestore.pipelines.assemble import ready_restorer
from pathorestore.pipelines.provenance import GENERATED_NOTICE, RESTORED_NOTICE, STAINED_NOTICE
from pathorestore.pipelines.restorer import Progress
from pathorestore.pipelines.trust import ready_risk_map


def wished_models(options: EvaluateOptions, cases: Cases, progress: Progress) -> list[Method]:
    """The models, run here. Raises ValueError or OSError for weights or wishes that cannot be used."""
    asked = [(name, where, True) for name, where in options.coarse] + [(name, where, False) for name, where in options.models]
    if asked and not options.pairs:
        raise ValueError("a model needs degraded images; name them with --degraded, or make them with --simulate, --reduce or --task")
    if options.tasks:
        return _prompted(options)
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


def _prompted(options: EvaluateOptions) -> list[Method]:
    """Models that are told what to do."""
    from pathorestore.pipelines.compute import choose_device
    from pathorestore.pipelines.lpfm import LPFM
    from pathorestore.pipelines.upscalers import prompted_weights, wished_settings

    if (options.sampler or options.restore.steps) and not (options.models or options.unprompted):
        raise ValueError("--sampler and --steps are for second stages, and none is named with --model or --unprompted; leave them out")
    stains = any(task.translates for task in asked_tasks(options.tasks))

    ways: tuple[tuple[Way, tuple[Named, ...]], ...] = (
        ("coarse", options.coarse),
        ("unprompted", options.unprompted),
        ("whole", options.models),
    )
    device, methods, loaded = choose_device(options.restore.device), [], dict[str, LPFM]()
    for way, named in ways:
        for name, where in named:
            if where not in loaded:
                model = LPFM.from_pretrained(prompted_weights(None if where == EMBEDDED else where))
                settings = wished_settings(model.settings, steps=options.restore.steps, sampler=options.sampler)
                loaded[where] = model.with_settings(settings).to(device)
            model, seed = loaded[where], options.restore.seed
            identity = {"model": model.model_id, "weights_sha256": model.weights_sha256, "way": way, "seed": seed}
            if way != "coarse":
                identity["settings"] = hashlib.sha256(repr(model.settings).encode()).hexdigest()[:16]
            notice = STAINED_NOTICE if stains else RESTORED_NOTICE if way == "coarse" else GENERATED_NOTICE
            methods.append(Prompted(name, model, way=way, seed=seed, identity=identity, notice=notice))
    return [*methods]


def wished_segmenter(options: EvaluateOptions) -> Any:
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


def wished_encoder(options: EvaluateOptions) -> dict[str, Any]:
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


def tool_files(options: EvaluateOptions) -> list[Path]:
    """The files of users that metrics work with."""
    words = [options.segmenter.partition("=")[2], options.encoder.partition("=")[2] or options.encoder]
    return [*(Path(word) for word in words if word and word != EMBEDDED), *([options.iqa] if options.iqa else [])]
