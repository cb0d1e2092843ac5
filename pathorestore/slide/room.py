"""What a slide takes of the machine: room on disks, memory, and where its journal lies."""

import hashlib
import os
import resource
import shutil
import sys
import tempfile
from pathlib import Path

from pathorestore.atomic import make_folder
from pathorestore.slide.codec import TileCodec
from pathorestore.slide.plan import OUT_TILE_PX, SlidePlan
from pathorestore.slide.source import SlideSource

_KIB = 2**10
_MOST_NAME_BYTES = 180


def journal_path(target: Path, work_dir: Path | None) -> Path:
    """Where the journal of an output lies: beside it, hidden, or in a folder of the user's choice."""
    if work_dir is None:
        return target.parent / f".{short(target.name)}.pathorestore-journal"
    where = hashlib.sha256(os.fsencode(target.resolve())).hexdigest()[:12]
    return work_dir / f"{short(target.name)}.{where}.pathorestore-journal"


def output_bytes(size_px: tuple[int, int], codec: TileCodec, sample_bytes: int, *, tissue: float) -> int:
    """A careful guess at the size of a written slide: with its smaller levels, glass taking a tenth of what tissue does.

    tissue: its share of the tiles. sample_bytes: of a colour of a pixel.
    """
    return int(size_px[0] * size_px[1] * 4 / 3 * sample_bytes * codec.bytes_per_px * (0.1 + 0.9 * tissue)) + (1 << 16)


def part_path(target: Path) -> Path:
    """Where an output is written before it has its name; one place, so that what a killed run left is found."""
    return target.parent / f".{short(target.name)}.pathorestore-part"


def memory_bytes(plan: SlidePlan, source: SlideSource, *, stages: int) -> int:
    """What the engine holds of a slide at most, beside the program, the model and the reader's cache: it grows with the width alone.

    Of the source the rows of tiles that the stages look at and a strip read ahead; of each stage a row of finished tiles, what is carried
    into the next row, and the rows that the next stage or the encoder has not taken yet, all 16 bits; two rows of tiles being encoded.
    """
    width, tile, overlap = plan.padded_px[1], plan.tile_px, plan.overlap_px
    strip = source.facts.stored_tile_px[0]
    pixel = 3 * source.facts.dtype.itemsize
    of_source = (tile + (stages - 1) * (tile - overlap) + 3 * strip) * pixel
    of_stage = (tile - overlap) * 6 + 2 * overlap * 12 + (tile + OUT_TILE_PX) * 6
    encoding = 2 * OUT_TILE_PX * 6
    return width * (of_source + stages * of_stage + encoding)


def check_room(target: Path, journal: Path, needed: int) -> None:
    """Refuse before any work is done: folders that cannot be written to, disks that will be too small for output and journal."""
    by_disk: dict[int, tuple[Path, int]] = {}
    kept = journal.stat().st_size if journal.is_file() else 0
    for folder, bytes_needed in ((target, needed), (journal.parent, max(0, needed - kept))):
        make_folder(folder)
        try:
            with tempfile.NamedTemporaryFile(dir=folder, prefix=".pathorestore-"):
                pass
        except OSError as error:
            raise OSError(error.errno, f"cannot be written to: {error.strerror}", str(folder)) from error
        disk = folder.stat().st_dev
        by_disk[disk] = (folder, by_disk.get(disk, (folder, 0))[1] + bytes_needed)
    for folder, bytes_needed in by_disk.values():
        free = shutil.disk_usage(folder).free
        if free < bytes_needed:
            wanted, there = (f"{size / 2**20:,.0f} MiB" for size in (bytes_needed, free))
            raise OSError(
                28, f"no room: about {wanted} needed, {there} free; make room, or take --work-dir or -o on another disk", str(folder)
            )


def peak_mib() -> int:
    """The most memory that this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return int(peak // (_KIB * _KIB) if sys.platform == "darwin" else peak // _KIB)


def short(name: str) -> str:
    """A file name that leaves room for a suffix; a shortened one ends with a hash of what it was, so that no two become one."""
    if len(os.fsencode(name)) <= _MOST_NAME_BYTES:
        return name
    mark = hashlib.sha256(os.fsencode(name)).hexdigest()[:12]
    while len(os.fsencode(name)) > _MOST_NAME_BYTES - 13:
        name = name[:-1]
    return f"{name}.{mark}"
