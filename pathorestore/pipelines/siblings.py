"""Files that belong together: all of them new, or all as they were."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from pathorestore.atomic import write_atomic


@contextmanager
def all_or_as_before(paths: Sequence[Path]) -> Iterator[None]:
    """A time in which files are written; if it ends with an exception, those of `paths` are again what they were before it.

    New ones are removed. One that was replaced is written back, or removed where that fails, so that none stands beside files of another
    run. What they hold is kept in memory meanwhile. Raises OSError if one that is there cannot be read.
    """
    before = {path: path.read_bytes() if path.exists() else None for path in paths}
    try:
        yield
    except BaseException:
        for path, data in before.items():
            _put_back(path, data)
        raise


def _put_back(path: Path, data: bytes | None) -> None:
    with suppress(OSError):
        if data is not None and path.exists():
            if path.read_bytes() != data:
                path.unlink()  # first, since a disk that is full has no room for both
                write_atomic(path, data)
            return
        if data is None:
            path.unlink(missing_ok=True)
