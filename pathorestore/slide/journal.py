"""The journal of a slide being restored: finished tiles, row by row, in one SQLite file, so that a killed run goes on where it was.

A row of output tiles is one transaction. Whatever the moment of a kill, the file holds whole rows only, and the output does not exist yet.
"""

import json
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

from pathorestore.pipelines.batch import PlanError
from pathorestore.pipelines.lock import lock_file
from pathorestore.slide.events import Event
from pathorestore.slide.room import part_path

_FORMAT = 1
_DERIVED = {"tiles", "tiles_restored", "tiles_drawn", "mask", "height_px", "width_px"}  # of settings that are told themselves
_TABLES = """
create table if not exists meta (name text primary key, value text not null);
create table if not exists tiles (level integer, line integer, place integer, data blob not null, primary key (level, line, place));
create table if not exists lines (level integer, line integer, primary key (level, line));
create table if not exists events (kind text, y integer, x integer, primary key (kind, y, x));
"""


class OtherSettings(PlanError):
    """The journal belongs to a run with other settings, another model or another input."""


class Journal:
    """The open journal at `path`, locked for this process. job: what must be the same for a run to go on, JSON-able.

    fresh: throw away what an earlier run left. Raises JobLocked if another process has it, OtherSettings if it is of another job.
    """

    def __init__(self, path: Path, job: Mapping[str, Any], *, fresh: bool = False):
        self.path = path
        self._lock_path = path.with_name(path.name + ".lock")
        self._lock = lock_file(self._lock_path, path)
        self._connection: sqlite3.Connection | None = None
        try:
            if fresh:
                self._remove()
            # what is in it may be a patient's
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
            with self._explained():
                self._connection = sqlite3.connect(path, isolation_level=None, timeout=0, check_same_thread=False)
                self._connection.execute("pragma locking_mode = exclusive")  # no memory shared with others, which network disks cannot
                self._connection.execute("pragma journal_mode = wal")
                self._connection.execute("pragma synchronous = normal")
                self._connection.executescript(_TABLES)
            self._check(job)
        except BaseException:
            self.close()
            raise

    def _check(self, job: Mapping[str, Any]) -> None:
        record = json.dumps({"journal_format": _FORMAT, **job}, sort_keys=True)
        known = self.remember("job", record)
        if known != record:
            before, now = json.loads(known), json.loads(record)
            told = {name for name in before | now if before.get(name) != now.get(name)}
            told = told - _DERIVED or told
            changed = [f"{name} was {before.get(name)!r}, is {now.get(name)!r}" for name in sorted(told)]
            raise OtherSettings(
                f"{self.path}: an unfinished run with other settings ({'; '.join(changed)}); give the same again to go on, or --no-resume "
                "to begin anew"
            )

    def lines(self, level: int) -> int:
        """How many rows of tiles of a level are kept, from the top without a gap."""
        found = [line for (line,) in self._rows("select line from lines where level = ? order by line", (level,))]
        return next((index for index, line in enumerate(found) if index != line), len(found))

    def keep(self, level: int, line: int, tiles: Iterable[bytes], events: Iterable[Event] = ()) -> None:
        """Keep a row of tiles, from left to right, with what happened on the way: all of it or nothing."""
        rows = [(level, line, place, data) for place, data in enumerate(tiles)]
        with self._explained() as connection:
            try:
                connection.execute("begin immediate")
                connection.executemany("insert or replace into tiles values (?, ?, ?, ?)", rows)
                connection.executemany("insert or ignore into events values (?, ?, ?)", events)
                connection.execute("insert or replace into lines values (?, ?)", (level, line))
                connection.execute("commit")
            except sqlite3.Error:
                with suppress(sqlite3.Error):
                    connection.execute("rollback")
                raise

    def line(self, level: int, line: int) -> list[bytes]:
        """The tiles of a kept row, from left to right."""
        query = "select data from tiles where level = ? and line = ? order by place"
        return [data for (data,) in self._rows(query, (level, line))]

    def tiles(self, level: int) -> Iterator[bytes]:
        """All tiles of a level, row by row."""
        for line in range(self.lines(level)):
            yield from self.line(level, line)

    @property
    def events(self) -> list[Event]:
        """What happened, in the order of its place."""
        return [Event(*row) for row in self._rows("select kind, y, x from events order by kind, y, x")]

    def remember(self, name: str, value: str) -> str:
        """Keep a value under a name unless there is one already; returns the one that is kept."""
        self._rows("insert or ignore into meta values (?, ?)", (name, value))
        return str(self._rows("select value from meta where name = ?", (name,))[0][0])

    def close(self) -> None:
        """Close it; what is in it stays."""
        if self._connection is not None:
            self._connection.close()
        self._release()

    def discard(self) -> None:
        """Close and remove it: the output is where it belongs."""
        if self._connection is not None:
            self._connection.close()
        self._remove()
        with suppress(OSError):
            self._lock_path.unlink()
        self._release()

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def _release(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)
        self._lock = -1

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        with self._explained() as connection:
            return connection.execute(query, values).fetchall()

    @contextmanager
    def _explained(self) -> Iterator[Any]:
        """The connection, what it raises being told as what it is: a disk that is full or fails, or a file that is no journal."""
        try:
            yield self._connection
        except sqlite3.OperationalError as error:
            raise _disk_error(error, self.path) from error
        except sqlite3.DatabaseError as error:
            raise OtherSettings(f"{self.path}: is no journal that can be read ({error}); --no-resume begins anew") from error


def sweep(path: Path, target: Path) -> None:
    """Take away the journal at a path if its output was written, and the run killed before it could do so itself."""
    if not (path.is_file() and target.is_file()):
        return
    with suppress(OSError, sqlite3.Error):
        lock = lock_file(path.with_name(f"{path.name}.lock"), path)
        try:
            with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, timeout=0)) as connection:
                written = connection.execute("select 1 from meta where name = 'written'").fetchone()
            if written:
                part_path(target).unlink(missing_ok=True)
                for suffix in ("", "-wal", "-shm", ".lock"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
        finally:
            os.close(lock)


def _disk_error(error: sqlite3.Error, path: Path) -> Exception:
    """SQLite's word for a full disk or a file that cannot be written, as the OSError that it is."""
    if "full" in str(error):
        return OSError(28, "No space left on device; what is finished is kept, and the same command goes on once there is room", str(path))
    return OSError(5, f"the journal cannot be written: {error}", str(path))
