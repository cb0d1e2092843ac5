"""`pathorestore qc`: what it takes, and the work that judges the focus of images and slides."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from pathorestore.models.defocus import DefocusEstimator
    from pathorestore.pipelines.batch import Job
    from pathorestore.slide.focus_report import JudgedBy, QcFiles


def fill_qc(command: "ArgumentParser") -> None:
    """Declare the verb's own options."""
    from pathorestore.slide.focus_verdict import Thresholds

    limits = Thresholds()
    inputs = "images (PNG, JPEG, TIFF, BMP), slides (SVS, NDPI, TIFF, ...) or folders of them"
    folder = "folder for NAME.qc.csv, NAME.qc.png and NAME.qc.geojson of each input, trees mirrored, and qc.csv of all"
    fine = f"least estimated contrast transfer of a fine tile; default: {limits.fine_ctf}"
    rescan = f"estimated distance to focus in um beyond which a tile asks for a new scan; default: {limits.rescan_um}"
    command.add_argument("inputs", nargs="+", type=str, metavar="INPUT", help=inputs)
    command.add_argument("-o", "--output", required=True, type=str, help=folder)
    command.add_argument("--fine-ctf", type=float, default=limits.fine_ctf, help=fine)
    command.add_argument("--rescan-um", type=float, default=limits.rescan_um, help=rescan)
    command.add_argument("--every", type=int, default=1, metavar="N", help="judge every Nth tile down and across: N times N times faster")
    command.add_argument("--tile", type=int, default=256, help="side of the tiles in px of 0.25 um")
    command.add_argument("--mpp", type=float, default=None, help="um per pixel, where the file does not say it or is wrong")
    command.add_argument("--batch", type=int, default=8, help="tiles in one pass")
    command.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="where to compute; auto takes CUDA if present")


def files_to_judge(arguments: "Namespace", bar: Callable[[int, int], None]) -> "tuple[list[Job], QcFiles]":
    """The files that the arguments name, and what is done to each. bar: hears (done, total) tiles."""
    from pathorestore.pipelines.compute import choose_device
    from pathorestore.slide.focus_qc import FocusFile, FocusOptions, TissueFocus
    from pathorestore.slide.focus_report import QcFiles, plan_qc
    from pathorestore.slide.focus_verdict import Thresholds

    thresholds = Thresholds(fine_ctf=arguments.fine_ctf, rescan_um=arguments.rescan_um)
    options = FocusOptions(
        tile_px=arguments.tile,
        every=arguments.every,
        mpp=arguments.mpp,
        batch_size=arguments.batch,
        max_pixels=arguments.max_pixels,
    )
    device = choose_device(arguments.device)
    jobs = plan_qc(arguments.inputs, arguments.output)
    estimator, judged_by = _estimator(arguments.model, arguments.revision)
    judge = FocusFile(judge=TissueFocus(estimator, device=device), options=options, thresholds=thresholds, progress=bar)
    # with --skip-existing only inputs without a table are judged, and a picture without its table is what a stopped run left
    replace = arguments.overwrite or arguments.skip_existing
    return jobs, QcFiles(folder=Path(arguments.output), judge=judge, judged_by=judged_by, overwrite=replace)


def _estimator(model: str | None, revision: str | None) -> "tuple[DefocusEstimator, JudgedBy]":
    """The estimator of a system, or one that stands alone, and what is told of it; of no other part the weights are read."""
    from pathorestore.hub import locate, weights_sha256
    from pathorestore.models.defocus import DefocusEstimator
    from pathorestore.pipelines.mop import default_folder
    from pathorestore.slide.focus_report import JudgedBy
    from pathorestore.slide.focus_verdict import UNCERTAINTY

    if model is None and revision is not None:
        raise ValueError("--revision belongs to a hub repository; name it with --model owner/name")
    system = default_folder() if model is None else locate(model, revision=revision)
    folder = system / "defocus" if (system / "defocus").is_dir() else system
    name = system.resolve().name if model is None or Path(model).exists() else model
    told = JudgedBy(model_id=name, weights_sha256=weights_sha256(folder), uncertainty=UNCERTAINTY if model is None else "")
    return DefocusEstimator.from_pretrained(folder).eval(), told
