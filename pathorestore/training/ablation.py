"""`pathorestore ablate`: train every row of one of the paper's ablations alike, measure them alike, and write the table."""

import logging
import platform
import shlex
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from torch import Tensor

from pathorestore.data.batches import SharpBatch
from pathorestore.data.drawing import Window
from pathorestore.data.image_cache import image_size, read_rgb
from pathorestore.data.manifest import Row as ManifestRow
from pathorestore.data.manifest import read_manifest
from pathorestore.data.synthetic import simulated_at
from pathorestore.degradations.recipes import Setting
from pathorestore.hub import weights_sha256
from pathorestore.metrics.segmenters import CachedSegmenter, Watershed
from pathorestore.pipelines.mop import default_folder
from pathorestore.training.ablation_record import Ledger, RowRecord, write_table
from pathorestore.training.ablation_rows import Bench, Row
from pathorestore.training.ablation_tables import KINDS, Kind, Table, file_sha256, side_multiple_px, table_of
from pathorestore.training.ablation_training import Workshop, checkpoints_of, load_trained, phase_steps, steps_for, trained_parameters
from pathorestore.training.datamodules import SharpImages
from pathorestore.training.parts import EMBEDDED
from pathorestore.training.stage import Stage
from pathorestore.version import __version__

PRESETS = ("tiny", "base")
_SMALLEST_CROP_PX = 32
_PIXEL_UM = 0.25  # of the simulator's ideal setting


@dataclass(frozen=True, kw_only=True)
class Ablation:
    """One run of the command.

    kind: which table. manifest: sharp images, rows told apart by split. preset: which of the package's configurations the rows follow.
    steps: of every row; or minutes: of every row on this machine, from which the steps follow. out: folder of the results, by default
    runs/ablation-KIND. parts: folder of parts trained before, or "embedded". rows: names of the rows wanted, all by default.
    images, crop_px: how many validation images at most, and the side that they are cut to. encoders: see `encoder_row`.
    """

    kind: Kind
    manifest: Path
    preset: str = "tiny"
    minutes: float | None = None
    steps: int | None = None
    out: Path | None = None
    parts: str = EMBEDDED
    seed: int = 0
    rows: tuple[str, ...] = ()
    images: int = 16
    crop_px: int = 256
    encoders: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS or self.preset not in PRESETS:
            raise ValueError(f"got ablation {self.kind!r} of preset {self.preset!r}; expected one of {KINDS} and one of {PRESETS}")
        if (self.minutes is None) == (self.steps is None):
            raise ValueError("give either --minutes, for each row, or --steps, for each row")
        if (self.minutes or self.steps or 0) <= 0:
            raise ValueError(f"--minutes and --steps must be positive; got {self.minutes if self.steps is None else self.steps}")
        if self.images < 1 or self.crop_px < _SMALLEST_CROP_PX:
            raise ValueError(f"--images={self.images} must be at least 1 and --crop={self.crop_px} at least {_SMALLEST_CROP_PX} px")

    @property
    def folder(self) -> Path:
        """Where the results go."""
        return self.out or Path("runs") / f"ablation-{self.kind}"

    @property
    def command(self) -> str:
        """The command line that says the same."""
        words: list[object] = ["pathorestore", "ablate", self.kind, "--manifest", self.manifest, "--preset", self.preset]
        words += ["--minutes", self.minutes] if self.steps is None else ["--steps", self.steps]
        words += ["--parts", self.parts, "--seed", self.seed, "--images", self.images, "--crop", self.crop_px, "--out", self.folder]
        words += ["--rows", ",".join(self.rows)] if self.rows else []
        words += [word for encoder in self.encoders for word in ("--encoder", encoder)]
        return shlex.join(str(word) for word in words)


def run_ablation(
    options: Ablation, *, say: Callable[[str], None] = print, progress: bool = False, clock: Callable[[], float] = time.perf_counter
) -> Path:
    """Train and measure the rows that are not finished yet, and write the table; returns the path of its Markdown.

    say: hears a line now and then. progress: whether to show a bar while training. clock: seconds, for turning minutes into steps.
    All rows take the same number of steps on the same crops from one seed's weights. A finished row is kept, one that was interrupted goes
    on from its last checkpoint. Raises ValueError for options, images or earlier results that do not fit, before anything is trained.
    """
    run = _Run(options, say=say, progress=progress)
    with _quietly():
        return run.through(clock)


class _Run:
    """One run of the command: what its rows share."""

    def __init__(self, options: Ablation, *, say: Callable[[str], None], progress: bool):
        self.options, self.say = options, say
        self.table = table_of(options.kind, encoders=options.encoders)
        self.rows = self.table.chosen(options.rows)
        if self.table.needs_nuclei:
            Watershed()(np.full((64, 64, 3), 255, dtype=np.uint8))  # raises ImportError with the remedy where scikit-image is missing
        self.scenes = validation_scenes(options)
        self.settings = _settings(options, self.table)
        self.bench = Bench(preset=options.preset, parts=options.parts, seed=options.seed)
        self.workshop = Workshop(manifest=options.manifest, seed=options.seed, progress=progress)

    def through(self, clock: Callable[[], float]) -> Path:
        """Bring all rows to their end; the table is written anew after each."""
        ledger = self._checked(Ledger(self.options.folder, self.settings))
        self._prove()
        steps = self.options.steps or self._steps_begun(ledger) or self._steps_affordable(clock)
        ledger = self._checked(Ledger(self.options.folder, self.settings | {"steps": steps}))
        count = len(self.rows)
        self.say(f"ablation {self.options.kind}: {count} rows of {steps} steps, {len(self.scenes)} images, results in {ledger.out}")
        for number, row in enumerate(self.rows, start=1):
            self.say(f"[{number}/{count}] {row.name}")
            record = ledger.read(row.name) or self._blank(row, ledger)
            if record.figures is None:
                record = self._finish(row, record, ledger)
            self.say(f"[{number}/{count}] {row.name}: finished, {sum(record.seconds.values()) / 60:.1f} minutes")
            path = write_table(self.table, ledger, _run_facts(self.options, ledger))
        return path

    def _finish(self, row: Row, record: RowRecord, ledger: Ledger) -> RowRecord:
        """Train and measure one row, from wherever it is."""
        ledger.write(record)
        folder = ledger.folder(row.name)
        for phase in row.phases(self.bench):
            if phase.name in record.seconds:
                load_trained(phase.stage, folder)
                continue
            seconds = self.workshop.train(phase, steps=phase_steps(phase, record.settings["steps"]), folder=folder)
            learnt = record.parameters + trained_parameters(phase.stage)
            record = replace(record, seconds={**record.seconds, phase.name: round(seconds, 1)}, parameters=learnt)
            ledger.write(record)
            shutil.rmtree(checkpoints_of(phase, folder).parent, ignore_errors=True)
        start = time.perf_counter()
        figures = measured(self.table, phase.stage, self.scenes)
        record = replace(record, figures=figures, seconds={**record.seconds, "measuring": round(time.perf_counter() - start, 1)})
        ledger.write(record)
        return record

    def _blank(self, row: Row, ledger: Ledger) -> RowRecord:
        images = [(scene.name, scene.group) for scene in self.scenes]
        settings = ledger.settings | row.facts()
        return RowRecord(name=row.name, paper=row.paper, settings=settings, minutes=self.options.minutes, images=images)

    def _checked(self, ledger: Ledger) -> Ledger:
        """The ledger, if the rows in it that are wanted now were made with its settings. Raises ValueError otherwise."""
        for row in self.rows:
            ledger.check(row.name, ledger.settings | row.facts())
        return ledger

    def _prove(self) -> None:
        """Examine the data and build the first stage of every row, so that what does not fit is found before hours of training."""
        for row in self.rows:
            multiple = side_multiple_px(next(row.phases(self.bench)).stage)
            crop_px = self.options.crop_px
            if crop_px % multiple:
                nearest = max(1, crop_px // multiple) * multiple
                raise ValueError(f"--crop={crop_px} must be a multiple of {multiple} px for row {row.name}; try {nearest}")
        SharpImages(self.options.manifest, crops=self.bench.recipe("pformer").crops).prepare_data()

    def _steps_begun(self, ledger: Ledger) -> int | None:
        """The steps that the same minutes came to before: rows of another number would be no match for those that are there."""
        return next((record.settings["steps"] for record in ledger.begun() if record.minutes == self.options.minutes), None)

    def _steps_affordable(self, clock: Callable[[], float]) -> int:
        """How many steps of the heaviest row fit into the minutes, by timing a few."""
        minutes, heaviest = cast(float, self.options.minutes), max(self.rows, key=lambda row: row.effort(self.bench))
        seconds = sum(phase.share * self.workshop.seconds_per_step(phase, clock) for phase in heaviest.phases(self.bench))
        steps = steps_for(minutes, seconds)
        self.say(f"{heaviest.name}: {seconds:.2f} s a step, so {minutes:g} minutes a row are {steps} steps")
        return steps


# --- measuring ------------------------------------------------------------------------------------------------------------------------


class Scene(NamedTuple):
    """A sharp validation image 3 s s in [0, 1]. group: patient, slide or image, whatever is known."""

    name: str
    group: str
    sharp: Tensor


def validation_scenes(options: Ablation) -> list[Scene]:
    """At most `images` sharp validation images, evenly spread over the manifest's, cut to `crop_px` around their centre.

    Images of known pixel size are brought to 0.25 um, which simulation takes for granted. Raises ValueError if none is large enough.
    """
    manifest = read_manifest(options.manifest)
    sharp = [row for row in manifest.of("val") if not row.target]
    large = [row for row in sharp if min(image_size(manifest.resolve(row.path))) >= _source_px(row, options.crop_px)]
    if not large:
        raise ValueError(
            f"{options.manifest} has {len(sharp)} sharp images (no target) with split val, of which none has {options.crop_px} px on both "
            f"sides at {_PIXEL_UM:g} um per pixel; add some, or lower --crop"
        )
    count = min(options.images, len(large))
    return [_scene(large[index * len(large) // count], manifest.resolve, options.crop_px) for index in range(count)]


def _scene(row: ManifestRow, resolve: Callable[[str], Path], crop_px: int) -> Scene:
    pixels, source_px = read_rgb(resolve(row.path)), _source_px(row, crop_px)
    top, left = ((side - source_px) // 2 for side in pixels.shape[:2])
    window = Window(top_px=top, left_px=left, source_px=source_px, side_px=crop_px)
    return Scene(row.path, row.patient or row.slide or row.path, window.cut(pixels))


def _source_px(row: ManifestRow, crop_px: int) -> int:
    return round(crop_px * _PIXEL_UM / row.mpp) if row.mpp and row.mpp > 0 else crop_px


@torch.no_grad()
def measured(table: Table, stage: Stage, scenes: Sequence[Scene]) -> dict[str, list[list[float]]]:
    """Every figure of a trained stage by name, images down, distances across; the same simulated images for every row."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    stage.to(device).eval()
    segmenter = CachedSegmenter(Watershed(mpp=_PIXEL_UM))
    figures: dict[str, list[list[float]]] = {}
    for number, scene in enumerate(scenes):
        batch = SharpBatch(scene.sharp[None].to(device), torch.tensor([number]), torch.tensor([0]))
        found = [table.measure(stage, simulated_at(batch, z, setting=Setting.ideal()), segmenter) for z in table.z_um]
        for name in found[0]:
            figures.setdefault(name, []).append([one[name] for one in found])
    return figures


# --- bookkeeping ----------------------------------------------------------------------------------------------------------------------


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what Lightning says at the start of every one of many trainings: of devices, and that frozen parts are in evaluation mode."""
    log = logging.getLogger("pytorch_lightning")
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            for message in (".*in eval mode at the start of training.*", ".*does not have many workers.*", ".*treespec.*"):
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        log.setLevel(before)


def _settings(options: Ablation, table: Table) -> dict[str, Any]:
    """All that the figures of every row depend on, but for the number of steps."""
    settings: dict[str, Any] = {
        "kind": options.kind,
        "preset": options.preset,
        "manifest": file_sha256(options.manifest),
        "seed": options.seed,
        "images": options.images,
        "crop_px": options.crop_px,
    }
    if table.uses_parts:
        settings["parts"] = weights_sha256(default_folder() if options.parts == EMBEDDED else options.parts)
    return settings


def _run_facts(options: Ablation, ledger: Ledger) -> Mapping[str, str]:
    seconds = sum(sum(record.seconds.values()) for record in ledger.begun())
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {torch.get_num_threads()} threads"
    return {
        "command": f"`{options.command}`",
        "steps of each row": str(ledger.settings["steps"]),
        "seed": str(options.seed),
        "machine": f"{device}; {platform.system()} {platform.machine()}; torch {torch.__version__}; pathorestore {__version__}",
        "wall time of all rows": f"{seconds / 60:.1f} minutes",
    }
