"""Reports as text for a terminal."""

from collections.abc import Sequence

from pathorestore.pipelines.batch import BatchReport, FileResult
from pathorestore.pipelines.demo import METHODS, DemoRow
from pathorestore.pipelines.info import Installation


def aligned(rows: Sequence[Sequence[str]], *, right: frozenset[int] = frozenset()) -> str:
    """Rows as columns of even width, two spaces apart; columns in `right` are aligned to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    flags = [">" if column in right else "<" for column in range(len(widths))]
    lines = ("  ".join(f"{text:{flag}{width}}" for text, flag, width in zip(row, flags, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)


def result_lines(result: FileResult, *, done: str = "restored") -> str:
    """One line for a file that did not fail, and one for each note. done: the word for what was done to it."""
    numbers = f"  {result.megapixels:.2f} Mpx  {result.seconds:.1f} s" if result.status == "restored" else ""
    notes = "".join(f"\n          {note}" for note in result.notes)
    return f"{done if result.status == 'restored' else result.status:<9} {result.input} -> {result.output}{numbers}{notes}"


def batch_table(report: BatchReport, *, done: str = "restored") -> str:
    """The closing table of a batch: files, megapixels and seconds by outcome. done: the word for what was done to them."""
    rows = [["", "files", "Mpx", "seconds"]]
    for status in ("restored", "skipped", "failed"):
        chosen = [result for result in report.results if result.status == status]
        if not chosen and status != "restored":
            continue
        megapixels, seconds = sum(result.megapixels for result in chosen), sum(result.seconds for result in chosen)
        rows.append([done if status == "restored" else status, str(len(chosen)), f"{megapixels:.2f}", f"{seconds:.1f}"])
    if report.planned > len(report.results):
        rows.append(["not run", str(report.planned - len(report.results)), "", ""])
    return aligned(rows, right=frozenset({1, 2, 3}))


def demo_table(rows: Sequence[DemoRow]) -> str:
    """PSNR and SSIM by focus position and method, with the estimated defocus beside the true one."""
    lines = [["z um", "estimated um", *(name for method in METHODS for name in (f"{method} dB", "SSIM"))]]
    for row in rows:
        scores = [text for method in METHODS for text in _score_text(row, method)]
        lines.append([f"{row.z_um:.1f}", f"{row.estimated_um:.2f}", *scores])
    mean = [text for method in METHODS for text in _mean_text(rows, method)]
    return aligned([*lines, ["mean", "", *mean]], right=frozenset({0, 1, *range(2, 2 + 2 * len(METHODS))}))


def installation_text(found: Installation) -> str:
    """Versions, devices and models, a block each."""
    models = [f"  {model.name}: {model.title}, licence {model.licence}, {model.megabytes:.1f} MB" for model in found.models]
    hashes = [f"    parts {', '.join(model.parts)}; weights sha256 {model.weights_sha256}" for model in found.models]
    lines = [
        "versions",
        *(f"  {name} {version}" for name, version in found.versions.items()),
        "devices",
        *(f"  {device}" for device in found.devices),
        "models",
        *(line for pair in zip(models, hashes, strict=True) for line in pair),
    ]
    return "\n".join(lines if models else [*lines, "  none"])


def _score_text(row: DemoRow, method: str) -> tuple[str, str]:
    measured = row.scores[method]
    return f"{measured.psnr_db:.2f}", f"{measured.ssim:.3f}"


def _mean_text(rows: Sequence[DemoRow], method: str) -> tuple[str, str]:
    psnr = sum(row.scores[method].psnr_db for row in rows) / len(rows)
    ssim = sum(row.scores[method].ssim for row in rows) / len(rows)
    return f"{psnr:.2f}", f"{ssim:.3f}"
