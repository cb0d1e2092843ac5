"""What the ablations measure, row by row, beside what the paper reports (Mixture of Prompts, arXiv 2503.12399, tables 4 to 7)."""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, cast

import torch

from pathorestore.data.batches import PairBatch
from pathorestore.metrics.fidelity import psnr, ssim
from pathorestore.metrics.nuclei import nuclei_difference
from pathorestore.metrics.segmenters import NucleiSegmenter
from pathorestore.models.encoders import PathologyEncoder, TimmEncoder
from pathorestore.training.ablation_rows import Bench, EncoderRow, EstimatorRow, PromptsRow, RestormerRow, RouterRow, Row, untrained_encoder
from pathorestore.training.prompt_stages import DefocusStage
from pathorestore.training.restoration_stages import PDiffusionStage, PFormerStage
from pathorestore.training.stage import VALIDATION_Z_UM, Stage

Kind = Literal["router", "prompts", "estimator", "encoder"]
KINDS: tuple[Kind, ...] = ("router", "prompts", "estimator", "encoder")
Measure = Callable[[Stage, PairBatch, NucleiSegmenter], dict[str, float]]

_PLANE_UM = 0.8  # spacing of the paper's focal planes
_HALF_UM = 0.5


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A column. name: in JSON. title: with unit. digits: behind the point. better: which way."""

    name: str
    title: str
    digits: int
    better: Literal["higher", "lower"]


@dataclass(frozen=True, kw_only=True)
class Table:
    """One of the paper's tables. reference: the row that the others are compared with. measure: the figures of one image, by name.

    z_um: where images are put out of focus. uses_parts: whether parts trained before go in. needs_nuclei: whether nuclei are looked for.
    """

    kind: Kind
    title: str
    rows: tuple[Row, ...]
    reference: str
    figures: tuple[Figure, ...]
    measure: Measure
    paper_columns: str
    z_um: tuple[float, ...] = VALIDATION_Z_UM
    uses_parts: bool = True
    needs_nuclei: bool = False
    notes: tuple[str, ...] = ()

    def chosen(self, names: Sequence[str]) -> tuple[Row, ...]:
        """The rows of these names in the table's order, all if there are none. Raises ValueError for a name that it does not have."""
        known = [row.name for row in self.rows]
        for name in names:
            if name not in known:
                raise ValueError(f"the ablation {self.kind} has no row {name!r}; expected some of {', '.join(known)}")
        return tuple(row for row in self.rows if row.name in names or not names)


def table_of(kind: Kind, *, encoders: Sequence[str] = ()) -> Table:
    """One of the paper's tables; encoders: further rows of the last, as NAME=MODEL:CHECKPOINT, see `encoder_row`. Raises ValueError."""
    if encoders and kind != "encoder":
        raise ValueError(f"--encoder adds rows to the ablation encoder, not to {kind}; leave it out")
    if kind == "encoder":
        return _encoder_table(encoders)
    return {"router": _router_table, "prompts": _prompts_table, "estimator": _estimator_table}[kind]()


# --- what is measured -----------------------------------------------------------------------------------------------------------------

_PSNR = Figure(name="psnr_db", title="PSNR dB", digits=2, better="higher")
_SSIM = Figure(name="ssim", title="SSIM", digits=4, better="higher")


def measure_coarse(stage: Stage, pairs: PairBatch, segmenter: NucleiSegmenter) -> dict[str, float]:
    """PSNR and SSIM of one restored image, and the PSNR of the degraded one."""
    del segmenter
    restored = cast(PFormerStage, stage).restore(pairs.degraded).clamp(0, 1)
    return _fidelity(restored, pairs)


def measure_fine(stage: Stage, pairs: PairBatch, segmenter: NucleiSegmenter) -> dict[str, float]:
    """PSNR and SSIM of one refined image, what it loses against the coarse one, and the distance of its nuclei from the clean ones.

    The last is NaN for an image without nuclei.
    """
    coarse, fine = (image.clamp(0, 1) for image in cast(PDiffusionStage, stage).restore(pairs.degraded, pairs.key))
    figures = _fidelity(fine, pairs)
    nuclei = nuclei_difference(fine, pairs.clean, segmenter=segmenter)
    return figures | {
        "cost_db": psnr(coarse, pairs.clean).item() - figures["psnr_db"],
        "l1_texture": nuclei.l1_texture.item(),
        "l1_intensity": nuclei.l1_intensity.item(),
    }


def measure_estimate(stage: Stage, pairs: PairBatch, segmenter: NucleiSegmenter) -> dict[str, float]:
    """Errors of one estimate and, as 0 or 1, whether the distance is within half a plane's spacing and within half a micrometre.

    A loss that was left out leaves its head untrained: its figures are absent.
    """
    del segmenter
    trained = cast(DefocusStage, stage)
    estimate = trained.defocus(pairs.degraded)
    truth = pairs.defocus_um if trained.defocus.config.signed else pairs.defocus_um.abs()
    error_um = (estimate.defocus_um - truth).abs().item()
    figures = {}
    if trained.ctf_weight:
        figures["mae_ctf"] = (estimate.ctf - pairs.ctf).abs().item()
    if trained.distance_weight:
        figures["mae_abs_um"] = (estimate.defocus_um.abs() - pairs.defocus_um.abs()).abs().item()
        figures["mae_um"] = error_um
        figures["zacc_plane"] = float(error_um < _PLANE_UM / 2)
        figures["zacc_half_um"] = float(error_um < _HALF_UM)
    return figures


def _fidelity(restored: torch.Tensor, pairs: PairBatch) -> dict[str, float]:
    return {
        "psnr_db": psnr(restored, pairs.clean).item(),
        "ssim": ssim(restored, pairs.clean).item(),
        "degraded_psnr_db": psnr(pairs.degraded, pairs.clean).item(),
    }


def side_multiple_px(stage: Stage) -> int:
    """Images that a stage restores have sides that are multiples of this."""
    if isinstance(stage, PDiffusionStage):
        return stage.fine.multiple_px
    return stage.prompter.edge.config.factor if isinstance(stage, PFormerStage) else 1


# --- the tables -----------------------------------------------------------------------------------------------------------------------

_FIDELITY_COLUMNS = "PSNR / SSIM / LPIPS"
_NO_LPIPS = "LPIPS is left out: its weights are not part of the package."


def _router_table() -> Table:
    def row(name: str, paper: str) -> Row:
        seen = name.split("+")
        return RouterRow(name, paper, sees=tuple(part for part in seen if part != "F"), features="F" in seen)

    return Table(
        kind="router",
        title="What the routers of P-former see (paper, table 4)",
        rows=(
            RestormerRow("Restormer", "28.85 / .8613 / .1290 (table 1)"),
            row("F", "28.39 / .8493 / .1485"),
            row("P_D", "28.35 / .8530 / .1483"),
            row("P_LP", "28.06 / .8610 / .1357"),
            row("P_P", "28.65 / .8579 / .1297"),
            row("F+P_D", "28.97 / .8648 / .1235"),
            row("F+P_LP", "28.98 / .8665 / .1208"),
            row("F+P_P", "29.14 / .8699 / .1148"),
            row("F+P_D+P_LP", "29.01 / .8673 / .1145"),
            row("F+P_D+P_P", "29.06 / .8693 / .1141"),
        ),
        reference="F+P_P",
        figures=(_PSNR, _SSIM),
        measure=measure_coarse,
        paper_columns=_FIDELITY_COLUMNS,
        notes=(
            "F: image features averaged over space; P_D: defocus prompt averaged over space; P_LP: embedding of the degraded image; "
            "P_P: restored pathology prompt. Several vectors are normalised each for itself. Restormer: same width and depth, no experts.",
            _NO_LPIPS,
        ),
    )


def _prompts_table() -> Table:
    papers = {
        "none": "27.91 / .8379 / .0972",
        "P_P": "28.31 / .8488 / .0768",
        "P_LE": "28.04 / .8566 / .1103",
        "P_E": "28.04 / .8438 / .0830",
        "P_P+P_E": "28.91 / .8578 / .0735",
    }
    return Table(
        kind="prompts",
        title="What P-diffusion is told, starting from the coarse image (paper, table 5)",
        rows=tuple(PromptsRow(name, paper, sees=() if name == "none" else tuple(name.split("+"))) for name, paper in papers.items()),
        reference="P_P+P_E",
        figures=(
            _PSNR,
            _SSIM,
            Figure(name="l1_texture", title="nuclear L1_texture", digits=1, better="lower"),
            Figure(name="l1_intensity", title="nuclear L1_intensity", digits=2, better="lower"),
            Figure(name="cost_db", title="PSNR dB lost against coarse", digits=2, better="lower"),
        ),
        measure=measure_fine,
        needs_nuclei=True,
        paper_columns=_FIDELITY_COLUMNS,
        notes=(
            "P_P: restored pathology prompt; P_LE: Canny edges; P_E: edges weighted by the defocus prompt. What a row is not told is zero, "
            "so that all rows have one network. Images without nuclei are left out of the nuclear figures.",
            _NO_LPIPS,
        ),
    )


def _estimator_table() -> Table:
    return Table(
        kind="estimator",
        title="What the defocus estimator learns from (paper, table 6)",
        rows=(
            EstimatorRow("CTF", ".0523 / - / -", distance_weight=0.0),
            EstimatorRow("distance", "- / .7106 / .5936", ctf_weight=0.0),
            EstimatorRow("both", ".0610 / .6517 / .6758"),
        ),
        reference="both",
        figures=(
            Figure(name="mae_ctf", title="MAE(CTF)", digits=4, better="lower"),
            Figure(name="mae_abs_um", title="MAE(unsigned distance) um", digits=3, better="lower"),
            Figure(name="zacc_plane", title=f"Z-accuracy, error < {_PLANE_UM / 2:g} um", digits=3, better="higher"),
            Figure(name="zacc_half_um", title=f"Z-accuracy, error < {_HALF_UM:g} um", digits=3, better="higher"),
            Figure(name="mae_um", title="MAE(distance) um", digits=3, better="lower"),
        ),
        measure=measure_estimate,
        paper_columns="MAE(CTF) / MAE(distance) / Z-accuracy",
        z_um=tuple(side * z for z in VALIDATION_Z_UM for side in (-1, 1)),
        uses_parts=False,
        notes=(
            f"The paper does not say in which unit its distances are, nor within what Z-accuracy counts; half of its planes' spacing of "
            f"{_PLANE_UM:g} um and half a micrometre are both shown. An estimator that is unsigned by configuration is compared with |z|.",
        ),
    )


def _encoder_table(encoders: Sequence[str]) -> Table:
    rows: list[Row] = [
        EncoderRow("tiny", "-"),
        EncoderRow("tiny-random", "-", build=untrained_encoder, origin={"weights": "the seed's initial ones"}),
    ]
    for spec in encoders:
        rows.append(encoder_row(spec))
        if [row.name for row in rows].count(rows[-1].name) > 1:
            raise ValueError(f"--encoder {spec}: there is a row {rows[-1].name!r} already; give it another name")
    return Table(
        kind="encoder",
        title="Which encoder the pathology prompt is of (after the paper's table 7)",
        rows=tuple(rows),
        reference="tiny",
        figures=(_PSNR, _SSIM),
        measure=measure_coarse,
        paper_columns=_FIDELITY_COLUMNS,
        notes=(
            "Each row trains a pathology prompt for its encoder on a quarter of its steps, then a P-former on the rest. tiny-random: the "
            "encoder with untrained weights. The paper's rows are Restormer and ResShift with P_P, which a P-former alone is not.",
            "UNI, CONCH and GigaPath have gated weights and are run only where you name them.",
            _NO_LPIPS,
        ),
    )


_PAPER_ENCODERS = {"uni": "28.23 / .8486 / .0768", "conch": "28.28 / .8480 / .0765", "gigapath": "28.31 / .8488 / .0768"}
_GATED: Mapping[str, Callable[[], TimmEncoder]] = {"uni": TimmEncoder.uni, "gigapath": TimmEncoder.gigapath}


def encoder_row(spec: str) -> EncoderRow:
    """A row for `spec`: NAME=MODEL:CHECKPOINT, a timm model with weights from a file, or NAME=uni or NAME=gigapath.

    The last two are loaded from the hub with the user's own access. Raises ValueError for another form or a checkpoint that is no file.
    """
    name, _, source = spec.partition("=")
    model, _, checkpoint = source.rpartition(":")
    gated = source in _GATED
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name) or not (model or gated):
        raise ValueError(
            f"--encoder {spec}: expected NAME=TIMM_MODEL:CHECKPOINT, such as vit=vit_small_patch16_224:weights.safetensors, or NAME=uni, "
            "NAME=gigapath; a name is made of letters, digits and . _ + -"
        )
    paper = _PAPER_ENCODERS.get(name.lower(), "-")
    if gated:
        return EncoderRow(name, paper, build=lambda _bench: _GATED[source](), origin={"weights": source})
    if not Path(checkpoint).is_file():
        raise ValueError(f"--encoder {spec}: there is no file {checkpoint}; an encoder of this ablation needs trained weights")
    return EncoderRow(
        name, paper, build=partial(_timm, model, checkpoint), origin={"weights": file_sha256(Path(checkpoint)), "model": model}
    )


def _timm(model: str, checkpoint: str, bench: Bench) -> PathologyEncoder:
    del bench
    try:
        return TimmEncoder.create(model, checkpoint=checkpoint)
    except RuntimeError as error:  # what timm raises for a name it does not know
        raise ValueError(f"--encoder: timm cannot build {model!r}: {error}; `timm.list_models()` lists the names") from error


def file_sha256(path: Path) -> str:
    """The hash of a file's bytes, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
