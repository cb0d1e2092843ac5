"""Files that appear whole or not at all."""

import os
import uuid
from contextlib import suppress
from pathlib import Path


def write_atomic(path: Path, data: bytes) -> None:
    """Write `data` to `path`: a temporary file in the same folder, flushed to the disk, then renamed over it in one step.

    Missing parent folders are made. On any failure, interruption included, the temporary file is removed and an older file at `path`
    stays as it was. Raises OSError with the path that could not be written.
    """
    make_folder(path.parent)
    # a short name of its own, since the name of the output may be as long as names can be
    part = path.parent / f".pathorestore-{uuid.uuid4().hex}.part"
    try:
        with part.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except BaseException as error:
        with suppress(OSError):
            part.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, f"cannot be written: {error.strerror}", str(path)) from error
        raise


def refuse_existing(*paths: Path, overwrite: bool) -> None:
    """Raise ValueError for the first of some files that exists, unless it may be replaced, or that cannot lie in its folder.

    For verbs to ask before they compute anything.
    """
    for path in paths:
        if path.parent.exists() and not path.parent.is_dir():
            raise ValueError(f"{path.parent}: is a file; name a folder")
        if path.exists() and not overwrite:
            raise ValueError(f"{path}: exists already; --overwrite replaces it")


def make_folder(folder: Path) -> None:
    """Make a folder and its parents. Raises OSError naming the part of the path that is in the way."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        blocker = next(parent for parent in (folder, *folder.parents) if parent.exists() or parent.is_symlink())
        raise NotADirectoryError(error.errno, "is a file, so no folder can be made there", str(blocker)) from error
