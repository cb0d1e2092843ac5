"""The journal of a slide being restored: finished tiles, row by row, in one SQLite file, so that a killed run goes on where it was.

A row of output tiles is one transaction. Whatever the moment of a kill, the file holds whole rows only, and the output does not exist yet.
"""

import fcntl
import json
import os
import socket
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from pathorestore.pipelines.batch import JobLocked, PlanError
from pathorestore.slide.tiles import Event

_FORMAT = 1
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
        self._lock = _locked(self._lock_path, path)
        try:
            if fresh:
                self._remove()
            self._connection = sqlite3.connect(path, isolation_level=None, timeout=0, check_same_thread=False)
            self._connection.execute("pragma journal_mode = wal")
            self._connection.execute("pragma synchronous = normal")
            self._connection.executescript(_TABLES)
            self._check(job)
        except sqlite3.DatabaseError as error:
            self._release()
            raise OtherSettings(f"{path}: is no journal that can be read ({error}); --no-resume begins anew") from error
        except BaseException:
            self._release()
            raise

    def _check(self, job: Mapping[str, Any]) -> None:
        record = json.dumps({"journal_format": _FORMAT, **job}, sort_keys=True)
        known = self._connection.execute("select value from meta where name = 'job'").fetchone()
        if known is None:
            self._connection.execute("insert into meta values ('job', ?)", (record,))
        elif known[0] != record:
            before, now = json.loads(known[0]), json.loads(record)
            changed = [
                f"{name} was {before.get(name)!r}, is {now.get(name)!r}"
                for name in sorted(before | now)
                if before.get(name) != now.get(name)
            ]
            self.close()
            raise OtherSettings(
                f"{self.path}: an unfinished run with other settings ({'; '.join(changed)}); give the same again to go on, or --no-resume "
                "to begin anew"
            )

    def lines(self, level: int) -> int:
        """How many rows of tiles of a level are kept, from the top without a gap."""
        found = [line for (line,) in self._connection.execute("select line from lines where level = ? order by line", (level,))]
        return next((index for index, line in enumerate(found) if index != line), len(found))

    def keep(self, level: int, line: int, tiles: Iterable[bytes], events: Iterable[Event] = ()) -> None:
        """Keep a row of tiles, from left to right, with what happened on the way: all of it or nothing."""
        self._connection.execute("begin immediate")
        try:
            rows = ((level, line, place, data) for place, data in enumerate(tiles))
            self._connection.executemany("insert or replace into tiles values (?, ?, ?, ?)", rows)
            self._connection.executemany("insert or ignore into events values (?, ?, ?)", events)
            self._connection.execute("insert or replace into lines values (?, ?)", (level, line))
            self._connection.execute("commit")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                self._connection.execute("rollback")
            raise _disk_error(error, self.path) from error

    def line(self, level: int, line: int) -> list[bytes]:
        """The tiles of a kept row, from left to right."""
        query = "select data from tiles where level = ? and line = ? order by place"
        return [data for (data,) in self._connection.execute(query, (level, line))]

    def tiles(self, level: int) -> Iterator[bytes]:
        """All tiles of a level, row by row."""
        for line in range(self.lines(level)):
            yield from self.line(level, line)

    @property
    def tile_bytes(self) -> int:
        """Sum of the sizes of all kept tiles."""
        return int(self._connection.execute("select coalesce(sum(length(data)), 0) from tiles").fetchone()[0])

    @property
    def events(self) -> list[Event]:
        """What happened, in the order of its place."""
        return [Event(*row) for row in self._connection.execute("select kind, y, x from events order by kind, y, x")]

    def remember(self, name: str, value: str) -> str:
        """Keep a value under a name unless there is one already; returns the one that is kept."""
        self._connection.execute("insert or ignore into meta values (?, ?)", (name, value))
        return str(self._connection.execute("select value from meta where name = ?", (name,)).fetchone()[0])

    def close(self) -> None:
        """Close it; what is in it stays."""
        self._connection.close()
        self._release()

    def discard(self) -> None:
        """Close and remove it: the output is where it belongs."""
        self._connection.close()
        self._remove()
        with suppress(OSError):
            self._lock_path.unlink()
        self._release()

    def _remove(self) -> None:
        for suffix in ("", "-wal", "-shm"):
            self.path.with_name(self.path.name + suffix).unlink(missing_ok=True)

    def _release(self) -> None:
        with suppress(OSError):
            os.close(self._lock)


def _locked(lock_path: Path, path: Path) -> int:
    """A lock that the system lets go of when this process ends, however it ends."""
    handle = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        who = os.read(handle, 200).decode(errors="replace").strip() or "another process"
        os.close(handle)
        raise JobLocked(11, f"is being restored by {who}; wait for it, or stop it", str(path)) from None
    os.truncate(handle, 0)
    os.write(handle, f"process {os.getpid()} on {socket.gethostname()}\n".encode())
    return handle


def _disk_error(error: sqlite3.Error, path: Path) -> Exception:
    """SQLite's word for a full disk or a file that cannot be written, as the OSError that it is."""
    if "full" in str(error):
        return OSError(28, "No space left on device; what is finished is kept, and the same command goes on once there is room", str(path))
    return OSError(5, f"the journal cannot be written: {error}", str(path))
