"""An evaluation with made-up numbers, as large as a real one, for the tests of its report."""

import math
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from tissue_files import save, tissue

from pathorestore.evaluation.results import Agreement, Bin, Column, Compared, PictureSet, RiskCurve, Score, ScoreRow, Summary
from pathorestore.metrics.statistics import Interval

METHODS = ("degraded", "unsharp mask", "Wiener, PSF known", "coarse", "two-stage")
DISTANCES_UM = (0.8, 1.6, 2.4, 3.2)
COLUMNS = (
    Column(key="psnr_db", label="PSNR", unit="dB", note="peak signal-to-noise ratio of 8-bit RGB values; rewards blur"),
    Column(key="ssim", label="SSIM", note="structural similarity, Gaussian window of 11 px, sigma 1.5"),
    Column(key="lpips", label="LPIPS", better="lower", note="distance between deep features of AlexNet"),
    Column(key="texture", label="Texture of nuclei", better="lower", note="L1 distance of co-occurrence features inside nuclei"),
    Column(key="pq", label="Panoptic quality of nuclei", note="how well nuclei are found and outlined, against the clean image"),
    Column(
        key="area", label="Area error of nuclei", unit="µm²", better="zero", note="mean area of a nucleus minus that on the clean image"
    ),
    Column(key="sharpness", label="Sharpness", better="none", note="variance of the Laplacian"),
)
# of each column: mean of the first method, step from method to method, spread between images, loss for each um
_MADE = {
    "psnr_db": (29.0, 1.6, 1.3, -1.9),
    "ssim": (0.82, 0.035, 0.03, -0.06),
    "lpips": (0.25, -0.035, 0.03, 0.05),
    "texture": (190.0, -22.0, 24.0, 16.0),
    "pq": (0.52, 0.04, 0.05, -0.05),
    "area": (9.0, -1.9, 3.0, 1.0),
    "sharpness": (120.0, 95.0, 60.0, -20.0),
}


def made_rows(
    methods: Sequence[str] = METHODS, columns: Sequence[Column] = COLUMNS, *, images: int = 31, distances: Sequence[float] = DISTANCES_UM
) -> list[ScoreRow]:
    """Every image at every distance under every method; the area of nuclei is now and then unknown."""
    rng = np.random.default_rng(0)
    rows = []
    for image in range(images):
        for z in distances:
            trouble = rng.normal(0, 1, len(columns))
            for place, method in enumerate(methods):
                scores = {}
                for at, column in enumerate(columns):
                    start, step, spread, loss = _MADE.get(column.key, (0.5, 0.02, 0.05, -0.02))
                    noise = trouble[at] + 0.4 * rng.normal()
                    scores[column.key] = float(start + step * min(place, 3.6) + spread * noise + loss * (z - 0.8))
                if "area" in scores and rng.random() < 0.06:
                    scores["area"] = math.nan
                rows.append(ScoreRow(case=f"tile-{image:03d} z={z:g}", image=f"tile-{image:03d}.png", method=method, z_um=z, scores=scores))
    return rows


def made_summary(
    rows: Sequence[ScoreRow], methods: Sequence[str] = METHODS, columns: Sequence[Column] = COLUMNS, **changes: object
) -> Summary:
    """What the rows come to, with intervals of the normal distribution, which suffice here."""
    values = {(method, column.key): _column(rows, method, column.key) for method in methods for column in columns}
    distances = sorted({row.z_um for row in rows if row.z_um is not None})
    scores = [
        Score(
            column=key,
            method=method,
            interval=_interval(numbers),
            median=float(np.nanmedian(numbers)),
            images=int(np.isfinite(numbers).sum()),
            without=int(np.isnan(numbers).sum()),
        )
        for (method, key), numbers in values.items()
    ]
    bins = [
        Bin(
            column=column.key,
            method=method,
            low=z,
            high=z,
            interval=_interval(_column(rows, method, column.key, z)),
            images=31,
            gain=_interval(_column(rows, method, column.key, z) - _column(rows, methods[0], column.key, z)),
        )
        for column in columns
        for method in methods
        for z in distances
    ]
    judged = [column for column in columns if column.better in ("higher", "lower")]
    indicative = "124 images, indicative: fewer than 2048"
    facts = {
        "title": "Simulated defocus of validation tiles",
        "methods": tuple(methods),
        "reference": methods[-1],
        "columns": tuple(columns),
        "cases": len({row.case for row in rows}),
        "unit": "image",
        "groups": len({row.image for row in rows}),
        "scores": tuple(scores),
        "comparisons": tuple(_compared(values, column, methods[-1], other) for column in judged for other in methods[:-1]),
        "bins": tuple(bins),
        "agreements": tuple(_agreements(methods)),
        "risk": (_risk("coarse", 1.4), _risk("two-stage", 0.8)),
        "set_scores": tuple(("Fréchet distance", method, 96.5 - 17.3 * place, indicative) for place, method in enumerate(methods)),
        "left_out": {"fid": "needs the weights of Inception-v3; put them in the cache with: pathorestore metrics fetch fid"},
        "failures": (
            ("tile-007 z=3.2", "coarse", "the method gave values that are not finite"),
            ("tile-019 z=0.8", "two-stage", "out of memory"),
        ),
        "run": {
            "created_utc": "2026-01-31T12:00:00+00:00",
            "model": {"id": "mop-tiny", "weights_sha256": "5f0c" * 16, "steps": 4},
            "seed": 0,
            "setting": "ideal",
            "distances_um": list(distances),
            "tile_px": 256,
            "deterministic": True,
            "device": None,
        },
    }
    return Summary(**(facts | changes))


def made_pictures(folder: Path, *, count: int = 3, side_px: int = 256, methods: Sequence[str] = METHODS) -> list[PictureSet]:
    """Tissue, blurred less by each method."""
    why = ("largest gain of two-stage: +7.31 dB", "smallest gain of two-stage: -0.12 dB", "evenly spread")
    sets = []
    for case in range(count):
        clean = tissue(40 + case, side_px, side_px)
        pictures = {"clean": save(folder / f"{case}-clean.png", clean)}
        for place, method in enumerate(methods):
            pictures[method] = save(folder / f"{case}-{place}.png", cv2.GaussianBlur(clean, (0, 0), 3.2 - 0.65 * place))
        scores = {
            method: {"psnr_db": 24.1 + 1.63 * place, "ssim": 0.61 + 0.05 * place, "area": math.nan} for place, method in enumerate(methods)
        }
        z = DISTANCES_UM[case % len(DISTANCES_UM)]
        sets.append(
            PictureSet(
                case=f"tile-{7 * case:03d} z={z:g}",
                degraded_by=f"z {z:g} \u00b5m",
                why=why[case % 3],
                pictures=pictures,
                scores=scores,
                pixel_um=0.25,
            )
        )
    return sets


def _column(rows: Sequence[ScoreRow], method: str, key: str, z: float | None = None) -> np.ndarray:
    return np.array([row.scores[key] for row in rows if row.method == method and z in (None, row.z_um)])


def _interval(numbers: np.ndarray) -> Interval:
    known = numbers[np.isfinite(numbers)]
    half = 1.96 * known.std() / math.sqrt(len(known))
    return Interval(float(known.mean()), float(known.mean() - half), float(known.mean() + half))


def _compared(values: dict[tuple[str, str], np.ndarray], column: Column, method: str, other: str) -> Compared:
    differences = values[method, column.key] - values[other, column.key]
    interval = _interval(differences)
    good = differences if column.better == "higher" else -differences
    clear = interval.low * interval.high > 0
    p = math.exp(-0.5 * (interval.mean / ((interval.high - interval.low) / 3.92)) ** 2)
    return Compared(
        column=column.key,
        method=method,
        other=other,
        difference=interval,
        median_difference=float(np.nanmedian(differences)),
        n=31,
        unit="image",
        p=p,
        p_holm=min(1.0, 12 * p),
        images=len(good),
        wins=int((good > 0).sum()),
        ties=0,
        verdict=("better" if good.mean() > 0 else "worse") if clear and 12 * p < 0.01 else "",
        reason="",
    )


def _agreements(methods: Sequence[str]) -> list[Agreement]:
    rng = np.random.default_rng(1)
    found = []
    for quantity, label, unit, size in (("count", "Nuclei in an image", "", 60.0), ("area", "Mean area of a nucleus", "µm²", 38.0)):
        for place, method in enumerate(methods):
            mean = rng.normal(size, size / 6, 124)
            difference = rng.normal(size / 12 * (3 - place) / 3, size / (10 + 4 * place), 124)
            bias, sd = float(difference.mean()), float(difference.std(ddof=1))
            points = tuple(zip(mean.tolist(), difference.tolist(), strict=True))
            found.append(
                Agreement(
                    quantity=quantity,
                    label=label,
                    unit=unit,
                    method=method,
                    bias=bias,
                    lower=bias - 1.96 * sd,
                    upper=bias + 1.96 * sd,
                    points=points,
                )
            )
    return found


def _risk(method: str, power: float) -> RiskCurve:
    coverage = tuple(np.linspace(0.02, 1, 50).tolist())
    return RiskCurve(
        method=method,
        coverage=coverage,
        error=tuple(7 - 3 * (1 - x) ** power for x in coverage),
        oracle=tuple(7 * x**0.8 for x in coverage),
        mean_error=7.0,
        spearman=0.7 - 0.1 * power,
        images=124,
    )
