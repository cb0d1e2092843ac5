"""What is compared: restorers, folders of restored images, and the classical methods at their best."""

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from pathorestore.evaluation.case_files import named_files
from pathorestore.evaluation.cases import DEGRADED, Case, CaseKey, Cases, SimulatedDefocus, check_size
from pathorestore.metrics.fidelity import psnr
from pathorestore.pipelines.assemble import RestoreOptions
from pathorestore.pipelines.batch import PlanError
from pathorestore.pipelines.classical import KnownWiener, UnsharpMask, unsharp_tries, wiener_tries
from pathorestore.pipelines.enlarge import Enlargement, Pieces, enlarged
from pathorestore.pipelines.image_file import read_image_file
from pathorestore.pipelines.provenance import GENERATED_NOTICE, RESTORED_NOTICE
from pathorestore.pipelines.raster import ImageFileError
from pathorestore.pipelines.restorer import Progress, Restorer, silent
from pathorestore.pipelines.trust import RiskMap, local_error
from pathorestore.pipelines.upscalers import UpscaleOptions, is_generative, ready_upscaler

if TYPE_CHECKING:
    from pathorestore.diffusion.gaussian import SamplerName

_RISK_POINTS = 400  # of an image; neighbours are alike, as errors are taken over a window
UNSHARP, WIENER, CLEAN = "unsharp mask", "Wiener, PSF known", "clean"


class Method(Protocol):
    """Something that makes an image of a case."""

    @property
    def name(self) -> str:
        """How it is called in tables."""
        ...

    @property
    def identity(self) -> Any:
        """What makes it what it is, JSON-able: an evaluation goes on only with the same."""
        ...

    @property
    def notice(self) -> str:
        """What a viewer of its images must know."""
        ...

    def __call__(self, case: Case) -> Tensor:
        """The image 1 3 h w in [0, 1], of the size of the clean one. Raises ImageFileError or OSError for files that cannot be used."""
        ...


@dataclass(frozen=True, kw_only=True)
class Degraded:
    """The degraded image as it is."""

    name: str = DEGRADED
    identity: str = "degraded"
    notice: str = RESTORED_NOTICE

    def __call__(self, case: Case) -> Tensor:
        """The degraded image."""
        return _degraded(case)


class RestoredFiles:
    """The images of a folder, made by whatever, found by the names of the clean ones; suffixes may differ."""

    notice = RESTORED_NOTICE

    def __init__(self, name: str, folder: Path, cases: Cases):
        self.name, self.folder, self._cases = name, folder, cases
        self.identity = str(folder.resolve())
        files = named_files(folder)
        self._files = {key.image: path for key in cases.keys if (path := _named_like(key.image, files)) is not None}
        if not self._files:
            example, other = next(iter(files)), min(key.image for key in cases.keys)
            raise PlanError(f"{folder}: no file has the name of a clean one ({example} here, {other} there); name restored files alike")

    def files(self, key: CaseKey) -> tuple[Path, ...]:
        """The file of a case, if it is there."""
        return (self._files[key.image],) if key.image in self._files else ()

    def __call__(self, case: Case) -> Tensor:
        """Read the file of a case."""
        path = self._files.get(case.key.image)
        if path is None:
            raise ImageFileError(f"{self.folder}: has no file named {case.key.image} (with any suffix)")
        whole = read_image_file(path).image
        image = self._cases.window(whole)
        check_size(image, case.clean, path)
        return image


class Restored:
    """A restorer at work. identity: of its weights and settings. risk: its risk map, whose predictions are then judged too.

    window: the part of a whole image that is judged; the whole one is restored.
    """

    notice = RESTORED_NOTICE

    def __init__(
        self,
        name: str,
        restorer: Restorer,
        *,
        identity: Any,
        seed: int = 0,
        risk: RiskMap | None = None,
        window: Callable[[Tensor], Tensor] = lambda image: image,
    ):
        self.name, self.restorer, self.seed, self._window = name, restorer, seed, window
        self.identity, self.risk = identity, risk

    def __call__(self, case: Case) -> Tensor:
        """Restore the degraded image."""
        if case.whole is None:
            return self.restorer.restore(_degraded(case), seed=self.seed).cpu()
        return self._window(self.restorer.restore(case.whole, seed=self.seed).cpu())

    def risk_points(self, image: Tensor, case: Case, risk: RiskMap) -> Tensor:
        """Predicted and true local error n 2, in grey levels, at some pixels of the restored image, evenly spread."""
        predicted = risk.of(_degraded(case), image, seed=self.seed).risk
        true = local_error(image, case.clean, window_px=risk.model.settings.window_px)
        step = max(1, math.ceil(math.sqrt(predicted.numel() / _RISK_POINTS)))
        start = step // 2
        return torch.stack([one[0, 0, start::step, start::step].flatten() for one in (predicted, true)], dim=1)


class Upscaled:
    """An upscaler at work on the small images. identity: of its weights and settings. device: where its pieces are made.

    generative: whether it draws detail from noise.
    """

    def __init__(self, name: str, pieces: Pieces, *, identity: Any, device: str = "cpu", generative: bool = False):
        self.name, self.pieces, self.identity, self.device, self.generative = name, pieces, identity, device, generative
        self.notice = GENERATED_NOTICE if generative else RESTORED_NOTICE

    def __call__(self, case: Case) -> Tensor:
        """Enlarge the small image."""
        if case.small is None:
            raise ValueError("only images that were made smaller can be enlarged; add --reduce")
        return enlarged(self.pieces, case.small, (case.clean.shape[-2], case.clean.shape[-1]), device=self.device)


def upscaled(
    name: str, model: str | None, wishes: RestoreOptions, *, scale: float, coarse_only: bool, sampler: "SamplerName | None"
) -> Upscaled:
    """An upscaler that is ready; model: None is the default. wishes: device, and for generative ones, as the sampler, steps and seed.

    Raises ValueError where the first stage alone is asked of a model that has one.
    """
    options = UpscaleOptions(target=Enlargement(scale=scale), model=model, device=wishes.device, coarse_only=coarse_only)
    if coarse_only and not is_generative(replace(options, coarse_only=False)):
        raise ValueError(f"--coarse {name}={model or 'default'}: this model has one stage; name it with --model")
    if is_generative(options):  # the others have no steps and draw nothing
        options = replace(options, steps=wishes.steps, sampler=sampler, seed=wishes.seed)
    ready = ready_upscaler(options)
    identity = {"model": ready.model_id, "weights_sha256": ready.weights_sha256, **ready.parameters, "seed": options.seed}
    return Upscaled(name, ready.pieces, identity=identity, device=ready.device, generative=ready.generative)


class Sharpened:
    """An unsharp mask for each distance, scale or task; one for all where none is known, under the name ""."""

    notice = RESTORED_NOTICE

    def __init__(self, masks: Mapping[str, UnsharpMask]):
        self.name, self.masks = UNSHARP, dict(masks)
        self.identity = {degree: str(mask) for degree, mask in self.masks.items()}

    def __call__(self, case: Case) -> Tensor:
        """Sharpen the degraded image."""
        return self.masks[_degree(case)](_degraded(case))


class Deconvolved:
    """A Wiener filter for each distance, told the optics that the simulator used."""

    notice = RESTORED_NOTICE

    def __init__(self, filters: Mapping[str, KnownWiener]):
        self.name, self.filters = WIENER, dict(filters)
        self.identity = {degree: str(one) for degree, one in self.filters.items()}

    def __call__(self, case: Case) -> Tensor:
        """Deconvolve the simulated image."""
        if case.simulated is None:
            raise ValueError("the PSF is known of simulated images only; leave the Wiener filter out")
        return self.filters[_degree(case)](case.simulated)


def tune(cases: Cases, *, wiener: bool, progress: Progress = silent) -> dict[str, dict[str, Any]]:
    """For each distance, scale or task, the unsharp mask and, if wanted, the Wiener filter with the highest mean PSNR over the cases.

    By method and these, as the arguments of `UnsharpMask` and `KnownWiener`, JSON-able. Cases that cannot be read are left out.
    """
    totals: dict[tuple[str, str], dict[Any, list[float]]] = defaultdict(lambda: defaultdict(list))
    for number, key in enumerate(cases.keys, start=1):
        try:
            case = cases.load(key)
            degraded, degree = _degraded(case), _degree(case)
        except (ImageFileError, OSError):  # told when its turn comes
            continue
        for mask, image in unsharp_tries(degraded):
            totals[UNSHARP, degree][mask].append(psnr(image, case.clean).item())
        if wiener and isinstance(cases, SimulatedDefocus) and case.simulated is not None:
            for one, image in wiener_tries(case.simulated, from_scan=cases.setting.from_scan):
                totals[WIENER, degree][one].append(psnr(image, case.clean).item())
        progress(number, len(cases.keys))
    found: dict[str, dict[str, Any]] = {name: {} for name in ((UNSHARP, WIENER) if wiener else (UNSHARP,))}
    for (method, degree), tries in totals.items():
        found[method][degree] = vars(max(tries, key=lambda one: torch.tensor(tries[one], dtype=torch.float64).mean().item()))
    return found


def tuned_methods(found: Mapping[str, Mapping[str, Any]]) -> list[Method]:
    """The methods that `tune` found."""
    methods: list[Method] = [Sharpened({degree: UnsharpMask(**one) for degree, one in found[UNSHARP].items()})]
    if WIENER in found:
        methods.append(Deconvolved({degree: KnownWiener(**one) for degree, one in found[WIENER].items()}))
    return methods


def _named_like(image: str, files: Mapping[str, Path]) -> Path | None:
    """The file of an image's name; where there is none, that of its last parts, since restoring a folder leaves its own name away."""
    parts = image.split("/")
    names = ("/".join(parts[first:]) for first in range(len(parts)))
    return next((files[name] for name in names if name in files), None)


def _degraded(case: Case) -> Tensor:
    if case.degraded is None:
        raise ImageFileError(f"{case.key.clean}: has no degraded partner")
    return case.degraded


def _degree(case: Case) -> str:
    """How far an image was degraded here, or for which task, as a reader says it; "" where it was not."""
    if case.small is not None and case.key.scale is not None:
        return f"x{case.key.scale:g}"
    if case.key.task:
        return case.key.task
    return "" if case.key.z_um is None or case.simulated is None else f"{case.key.z_um:g} um"
