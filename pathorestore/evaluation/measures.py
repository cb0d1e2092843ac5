"""What can be measured, by the names that users give: which columns each gives, whether it can be had here, and how it is taken."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from pathorestore.evaluation.cases import DESIGN_MPP, Case
from pathorestore.evaluation.results import Better, Column
from pathorestore.metrics.availability import Availability
from pathorestore.metrics.segmenter_adapters import InstanSeg
from pathorestore.metrics.segmenters import AtScale, CachedSegmenter, ImageSegmenter, NucleiSegmenter, Precomputed, Watershed

Take = Callable[[Tensor, Case], Sequence[float]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Measure:
    """One metric. take: the numbers of an image 1 3 h w, one for each column; blind: it needs no clean image, and is taken of that too."""

    name: str
    columns: tuple[Column, ...]
    take: Take
    blind: bool = False


@dataclass(frozen=True, kw_only=True)
class Agreeing:
    """A quantity in two columns, measured on the restored image and on the clean one."""

    quantity: str
    label: str
    unit: str
    column: str
    clean_column: str


@dataclass(frozen=True, kw_only=True, eq=False)
class Features:
    """An encoder whose features tell sets of images apart. of: images b 3 h w to b d."""

    name: str
    label: str
    of: Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True, eq=False)
class Tools:
    """What measures work with. segmenter: of nuclei. encoder, encoder_name: of embeddings, images b 3 h w to b d.

    iqa: folder of the parameters of NIQE and BRISQUE, None for the embedded ones.
    """

    segmenter: ImageSegmenter = field(default_factory=Watershed)
    encoder: Callable[[Tensor], Any] | None = None
    encoder_name: str = ""
    iqa: Path | None = None


FRECHET = "frechet"  # of sets, not of images
AGREEING = (
    Agreeing(quantity="nuclei_count", label="Nuclei in an image", unit="", column="nuclei_count", clean_column="nuclei_count_clean"),
    Agreeing(
        quantity="nuclei_area", label="Mean area of a nucleus", unit="um2", column="nuclei_area_um2", clean_column="nuclei_area_um2_clean"
    ),
)


def chosen_measures(names: Sequence[str], tools: Tools) -> tuple[list[Measure], dict[str, str]]:
    """The measures of these names, all for none; and why those that cannot be had here are left out, by name.

    Raises ValueError for a name that is none.
    """
    unknown = [name for name in names if name not in (*MEASURES, FRECHET)]
    if unknown:
        raise ValueError(f"--metrics {unknown[0]!r} is no metric; expected some of {', '.join((*MEASURES, FRECHET))}")
    measures, left_out = [], {}
    for name, make in MEASURES.items():
        if names and name not in names:
            continue
        made = make(tools)
        if isinstance(made, Measure):
            measures.append(made)
        else:
            left_out[name] = made.reason
    return measures, left_out


def frechet_features(tools: Tools) -> tuple[Features | None, dict[str, str]]:
    """Inception's features where they can be had, else those of the tools' encoder; and why Inception's are left out."""
    from pathorestore.metrics.embedding import WholeImage
    from pathorestore.metrics.frechet import InceptionFeatures

    inception = InceptionFeatures()
    said = inception.available()
    if said.ok:
        return Features(name="fid", label="FID", of=inception), {}
    if tools.encoder is None:
        return None, {"fid": said.reason}
    label = f"Frechet distance, features of {tools.encoder_name}"
    return Features(name=f"frechet {tools.encoder_name}", label=label, of=WholeImage(tools.encoder)), {"fid": said.reason}


# --- full reference -------------------------------------------------------------------------------------------------------------------


def _pairwise(name: str, column: Column, value: Callable[[Tensor, Tensor], Tensor]) -> Measure:
    return Measure(name=name, columns=(column,), take=lambda image, case: [value(image, case.clean).item()])


def _column(key: str, label: str, better: Better, note: str, unit: str = "") -> Column:
    return Column(key=key, label=label, unit=unit, better=better, note=note)


def _psnr(_: Tools) -> Measure:
    from pathorestore.metrics.fidelity import psnr

    note = "peak signal-to-noise ratio of 8-bit RGB values; rewards blur"
    return _pairwise("psnr", _column("psnr_db", "PSNR", "higher", note, "dB"), psnr)


def _ssim(_: Tools) -> Measure:
    from pathorestore.metrics.fidelity import ssim

    return _pairwise("ssim", _column("ssim", "SSIM", "higher", "structural similarity, Gaussian window of 11 px, sigma 1.5"), ssim)


def _ms_ssim(_: Tools) -> Measure:
    from pathorestore.metrics.fidelity import ms_ssim

    return _pairwise("ms_ssim", _column("ms_ssim", "MS-SSIM", "higher", "structural similarity at five scales"), ms_ssim)


def _lpips(_: Tools) -> Measure | Availability:
    from pathorestore.metrics.perceptual import Lpips

    lpips = Lpips()
    said = lpips.available()
    column = _column("lpips", "LPIPS", "lower", "learned perceptual distance, AlexNet, version 0.1")
    return _pairwise("lpips", column, lpips) if said.ok else said


def _dists(_: Tools) -> Measure | Availability:
    from pathorestore.metrics.perceptual import Dists

    dists = Dists()
    said = dists.available()
    column = _column("dists", "DISTS", "lower", "deep structure and texture distance, VGG16")
    return _pairwise("dists", column, dists) if said.ok else said


def _gmsd(_: Tools) -> Measure:
    from pathorestore.metrics.structure import gmsd

    return _pairwise("gmsd", _column("gmsd", "GMSD", "lower", "deviation of gradient magnitude similarity"), gmsd)


def _spectrum(_: Tools) -> Measure:
    from pathorestore.metrics.structure import power_spectrum_distance

    note = "how far the radial power spectra lie apart, root mean square over frequencies"
    return _pairwise("spectrum", _column("spectrum_db", "Power spectrum", "lower", note, "dB"), power_spectrum_distance)


def _edges(_: Tools) -> Measure:
    from pathorestore.metrics.structure import edge_preservation

    return _pairwise("edges", _column("edge_preservation", "Edges", "higher", "correlation of the Laplacians"), edge_preservation)


def _stain(_: Tools) -> Measure:
    from pathorestore.metrics.stain import stain_shift

    return _pairwise(
        "stain", _column("stain_shift_deg", "Stain shift", "lower", "angle between stain vectors (Macenko)", "deg"), stain_shift
    )


def _embedding(tools: Tools) -> Measure | Availability:
    from pathorestore.metrics.embedding import embedding_similarity

    encoder = tools.encoder
    if encoder is None:
        return Availability(False, "there is no encoder; name one with --encoder")
    column = _column("embedding_cosine", "Embedding", "higher", f"cosine of the embeddings of {tools.encoder_name}")
    return _pairwise("embedding", column, lambda image, clean: embedding_similarity(image, clean, encoder))


# --- nuclei ---------------------------------------------------------------------------------------------------------------------------


class _Nuclei:
    """The segmenter for a case: at its pixel size, under its name, and remembering the images of the moment."""

    def __init__(self, segmenter: ImageSegmenter):
        self.segmenter = segmenter
        self._cached: dict[float, CachedSegmenter] = {}

    def __call__(self, case: Case) -> NucleiSegmenter:
        mpp = case.key.mpp or DESIGN_MPP
        if mpp not in self._cached:
            self._cached = {mpp: CachedSegmenter(self._at(mpp), size=4)}
        return self._cached[mpp].for_image(case.key.image)

    def _at(self, mpp: float) -> NucleiSegmenter:
        if isinstance(self.segmenter, Watershed | InstanSeg | Precomputed):  # which scale themselves, or need not
            return replace(self.segmenter, mpp=mpp)
        return self.segmenter if self.segmenter.mpp == mpp else AtScale(self.segmenter, mpp)


def _nuclei_l1(tools: Tools) -> Measure | Availability:
    from pathorestore.metrics.nuclei import INTENSITY, TEXTURE, nuclei_difference

    said = tools.segmenter.available()
    if not said.ok:
        return said
    find = _Nuclei(tools.segmenter)
    note = "nuclei of the clean image, mean absolute difference of their"
    columns = [_column("l1_intensity", "L1 intensity", "lower", f"{note} grey-level moments, summed")]
    columns += [_column("l1_texture", "L1 texture", "lower", f"{note} co-occurrence measures, summed; contrast dominates")]
    words = [("intensity", f"{note} grey levels'", INTENSITY), ("texture", f"{note} co-occurrence", TEXTURE)]
    parts = [
        (f"{kind}_{name}", f"{kind.title()}: {name.replace('_', ' ')}", told, name.replace("_", " "))
        for kind, told, of in words
        for name in of
    ]
    columns += [replace(_column(key, label, "lower", f"{told} {name}"), detail=True) for key, label, told, name in parts]

    def take(image: Tensor, case: Case) -> Sequence[float]:
        found = nuclei_difference(image, case.clean, segmenter=find(case))
        return [found.l1_intensity.item(), found.l1_texture.item(), *found.intensity[0].tolist(), *found.texture[0].tolist()]

    return Measure(name="nuclei", columns=tuple(columns), take=take)


def _nuclei_objects(tools: Tools) -> Measure | Availability:
    from pathorestore.metrics.nuclei_objects import nuclei_objects

    said = tools.segmenter.available()
    if not said.ok:
        return said
    if isinstance(tools.segmenter, Precomputed):
        return Availability(False, "label maps made elsewhere are of the clean images only; name a segmenter that runs with --segmenter")
    find = _Nuclei(tools.segmenter)
    columns = (
        _column("nuclei_f1", "Nuclei F1", "higher", "nuclei found on both images, matched at an overlap of one half or more"),
        _column("nuclei_dice", "Nuclei Dice", "higher", "overlap of the pixels that belong to nuclei"),
        _column("nuclei_position_um", "Nuclei position", "lower", "distance of the centres of matched nuclei", "um"),
        _column("nuclei_count", "Nuclei", "none", "found on the image"),
        _column("nuclei_count_clean", "Nuclei, clean", "none", "found on the clean image"),
        _column("nuclei_area_um2", "Nuclear area", "none", "mean of the nuclei found on the image", "um2"),
        _column("nuclei_area_um2_clean", "Nuclear area, clean", "none", "mean of the nuclei found on the clean image", "um2"),
    )

    def take(image: Tensor, case: Case) -> Sequence[float]:
        found = nuclei_objects(image, case.clean, segmenter=find(case))
        counts = (found.restored_count, found.clean_count, found.restored_mean_area_um2, found.clean_mean_area_um2)
        return [part.item() for part in (found.f1, found.dice, found.position_error_um, *counts)]

    return Measure(name="nuclei_objects", columns=columns, take=take)


# --- without a clean image ------------------------------------------------------------------------------------------------------------


def _blind(name: str, column: Column, value: Callable[[Tensor], Tensor]) -> Measure:
    return Measure(name=name, columns=(column,), take=lambda image, _: [value(image).item()], blind=True)


def _niqe(tools: Tools) -> Measure | Availability:
    from pathorestore.metrics.niqe import available, load_parameters, niqe

    said = available(tools.iqa)
    if not said.ok:
        return said
    fitted = load_parameters(tools.iqa)
    column = _column("niqe", "NIQE", "lower", "distance from the statistics of sharp histology")
    return _blind("niqe", column, lambda image: niqe(image, fitted))


def _brisque(tools: Tools) -> Measure | Availability:
    from pathorestore.metrics.brisque import available, brisque, load_parameters

    said = available(tools.iqa)
    if not said.ok:
        return said
    fitted = load_parameters(tools.iqa)
    return _blind(
        "brisque", _column("brisque", "BRISQUE", "lower", "0 to 100, fitted on degraded histology"), lambda image: brisque(image, fitted)
    )


def _clip_iqa(kind: Literal["box", "gauss"]) -> Callable[[Tools], Measure | Availability]:
    def make(_: Tools) -> Measure | Availability:
        from pathorestore.models.clip_iqa import clip_iqa_available, load_clip_iqa

        said = clip_iqa_available(kind)
        if not said.ok:
            return said
        blur = {"box": "box", "gauss": "Gaussian"}[kind]
        note = f"0 to 1, a prompt pair that learned to tell sharp histology from {blur} blur"
        return _blind(f"clip_iqa_{kind}", _column(f"clip_iqa_{kind}", f"CLIP-IQA, {kind}", "higher", note), load_clip_iqa(kind))

    return make


MEASURES: Mapping[str, Callable[[Tools], Measure | Availability]] = {
    "psnr": _psnr,
    "ssim": _ssim,
    "ms_ssim": _ms_ssim,
    "lpips": _lpips,
    "dists": _dists,
    "gmsd": _gmsd,
    "spectrum": _spectrum,
    "edges": _edges,
    "nuclei": _nuclei_l1,
    "nuclei_objects": _nuclei_objects,
    "stain": _stain,
    "embedding": _embedding,
    "niqe": _niqe,
    "brisque": _brisque,
    "clip_iqa_box": _clip_iqa("box"),
    "clip_iqa_gauss": _clip_iqa("gauss"),
}
