"""`pathorestore jobs`, and how `restore` is spread over processes and machines."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from pathorestore.pipelines.batch import BatchReport
    from pathorestore.slide.distributed import FileWork
    from pathorestore.slide.job_states import JobState


def fill_jobs(command: "ArgumentParser") -> None:
    """Declare the verb's own options."""
    command.add_argument("folder", type=str, metavar="FOLDER", help="output folder of one or many runs of restore")
    command.add_argument("--json", action="store_true", help="print JSON")


def run_jobs(arguments: "Namespace") -> int:
    """Tell how the jobs of a folder stand; returns 0 if all are done, 1 if some ended otherwise, 75 if work is only left."""
    from pathorestore.pipelines.report_text import aligned
    from pathorestore.slide.job_states import read_states

    found = read_states(Path(arguments.folder))
    if arguments.json:
        print(json.dumps(found.to_dict(), indent=2))
        return found.exit_code
    rows = [["output", "state", "attempt", "seconds", "Mpx", "worker", "since (UTC)", "error"], *map(_row, found.jobs)]
    print(aligned(rows, right=frozenset({2, 3, 4})))
    print(f"\n{len(found.jobs)} jobs: {', '.join(f'{count} {state}' for state, count in found.counts().items())}")
    if found.unreadable:
        print(f"{found.unreadable} lines of the manifest cannot be read and are left out")
    return found.exit_code


def fill_engine(command: "ArgumentParser") -> None:
    """Declare the options of `restore` that say who does the work."""
    engine = command.add_argument_group("many processes and machines")
    engine.add_argument("--engine", choices=("local", "ray"), default="local", help="ray: one resident model for each GPU, on Ray")
    engine.add_argument("--address", type=str, default=None, help="of a running Ray cluster, or auto; default: Ray on this machine only")
    engine.add_argument("--workers", type=int, default=None, help="default: one for each GPU, or two on CPUs, each of one core")


def batch_on(arguments: "Namespace", make: "Callable[[str], FileWork]") -> "Callable[..., BatchReport]":
    """How a batch is run: in this process or on Ray, with a manifest where the output is a folder. make: a worker's work, by device."""
    from pathorestore.pipelines.batch import names_folder, run_batch
    from pathorestore.slide.distributed import RayOptions, run_on_ray
    from pathorestore.slide.jobs import JobLog, run_logged

    folder, on_ray = names_folder(arguments.output), arguments.engine == "ray"
    if not on_ray and (arguments.address or arguments.workers is not None):
        raise ValueError("--address and --workers belong to --engine ray; add that, or leave them out")
    if on_ray and arguments.json_progress:
        raise ValueError("--json-progress tells of the slides of one process; on Ray, `pathorestore jobs` tells how far the folder is")
    if on_ray and not folder:
        raise ValueError(f"--engine ray writes into a folder; try -o {Path(arguments.output).with_suffix('')}/")
    if not folder:
        return run_batch
    log = JobLog(folder=Path(arguments.output), work_dir=Path(arguments.work_dir) if arguments.work_dir else None)
    if not on_ray:
        return partial(run_logged, log=log)
    options = RayOptions(address=arguments.address, workers=arguments.workers, device=arguments.device)
    return partial(run_on_ray, make=make, log=log, options=options)


def _row(job: "JobState") -> list[str]:
    numbers: list[Any] = [job.attempt or "", f"{job.seconds:.1f}" if job.seconds else "", f"{job.megapixels:.2f}" if job.megapixels else ""]
    cells = [job.output, job.state, *numbers, job.worker, job.time[:19].replace("T", " "), job.error]
    return ["".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in str(cell)) for cell in cells]
