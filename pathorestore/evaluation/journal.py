"""The rows of an evaluation on the disk, one transaction each, so that a killed run goes on with the next image."""

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Self

import torch
from torch import Tensor

from pathorestore.atomic import make_folder
from pathorestore.evaluation.results import ScoreRow
from pathorestore.pipelines.batch import PlanError
from pathorestore.pipelines.lock import lock_file

JOURNAL = "evaluation.sqlite"
_FORMAT = 1
_TABLES = """
create table if not exists meta (name text primary key, value text not null);
create table if not exists rows (place integer primary key, item text not null, method text not null, failed integer not null,
  value text not null, unique (item, method));
create table if not exists arrays (kind text not null, item text not null, method text not null, data blob not null,
  primary key (kind, item, method));
"""
Kind = Literal["features", "risk"]


class Journal:
    """The open journal in a folder, locked for this process. settings: what must be the same for a run to go on, JSON-able.

    fresh: throw away what an earlier run left. Rows that failed are forgotten, to be tried again. Raises JobLocked if another process has
    it, PlanError if it is of an evaluation with other settings or no journal.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, fresh: bool = False):
        make_folder(folder)
        self.path = folder / JOURNAL
        self._lock = lock_file(self.path.with_name(f"{JOURNAL}.lock"), folder, doing="written")
        self._connection: sqlite3.Connection | None = None
        try:
            if fresh:
                self.path.unlink(missing_ok=True)
            self._connection = sqlite3.connect(self.path, isolation_level=None, timeout=0)
            self._open(settings)
        except sqlite3.OperationalError as error:
            self.close()
            raise OSError(5, f"the journal cannot be written: {error}", str(self.path)) from error
        except sqlite3.DatabaseError as error:
            self.close()
            raise PlanError(f"{self.path}: is no journal that can be read ({error}); --overwrite begins anew, -o names another") from error
        except BaseException:
            self.close()
            raise

    def _open(self, settings: Mapping[str, Any]) -> None:
        self._db.executescript(_TABLES)
        self._db.execute("delete from rows where failed")
        record = json.dumps({"format": _FORMAT, **settings}, sort_keys=True)
        known = self.remember("settings", record)
        if known != record:
            before, now = json.loads(known), json.loads(record)
            changed = [name for name in sorted(before | now) if before.get(name) != now.get(name)]
            told = "; ".join(f"{name} was {_short(before.get(name))}, is {_short(now.get(name))}" for name in changed)
            raise PlanError(
                f"{self.path.parent}: holds an evaluation with other settings ({told}); --overwrite begins anew, -o names another"
            )

    @property
    def _db(self) -> sqlite3.Connection:
        assert self._connection is not None
        return self._connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, row: ScoreRow, arrays: Mapping[Kind, Tensor] | None = None) -> None:
        """Keep a row, and what there is many numbers of: features d, risk n 2. Raises OSError if the disk does not take it."""
        case, method = _storable(row.case), _storable(row.method)
        try:
            self._db.execute("begin immediate")
            for kind, array in (arrays or {}).items():
                data = array.detach().cpu().float().contiguous().numpy().tobytes()
                self._db.execute("insert or replace into arrays values (?, ?, ?, ?)", (kind, case, method, data))
            values = (case, method, bool(row.error), json.dumps(asdict(row)))
            self._db.execute("insert or replace into rows (item, method, failed, value) values (?, ?, ?, ?)", values)
            self._db.execute("commit")
        except sqlite3.Error as error:
            with suppress(sqlite3.Error):
                self._db.execute("rollback")
            raise OSError(5, f"the journal cannot be written: {error}; what is finished is kept", str(self.path)) from error

    def has(self, case: str, method: str) -> bool:
        """Whether the row of a case under a method is kept."""
        found = self._db.execute("select 1 from rows where item = ? and method = ?", (_storable(case), _storable(method)))
        return found.fetchone() is not None

    def rows(self) -> Iterator[ScoreRow]:
        """The rows in the order in which they came, one in memory at a time."""
        for (value,) in self._db.execute("select value from rows order by place"):
            yield ScoreRow(**json.loads(value))

    def arrays(self, kind: Kind, method: str) -> list[Tensor]:
        """The arrays of one kind of a method's rows, flat, in float32."""
        found = self._db.execute("select data from arrays where kind = ? and method = ? order by item", (kind, _storable(method)))
        return [torch.frombuffer(bytearray(data), dtype=torch.float32) for (data,) in found]

    def remember(self, name: str, value: str) -> str:
        """Keep a value under a name unless there is one already; returns the one that is kept."""
        self._db.execute("insert or ignore into meta values (?, ?)", (name, value))
        return self.recall(name) or value

    def recall(self, name: str) -> str | None:
        """The value kept under a name, None if there is none."""
        found = self._db.execute("select value from meta where name = ?", (name,)).fetchone()
        return None if found is None else str(found[0])

    def close(self) -> None:
        """Close it; what is in it stays."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1


def _storable(text: str) -> str:
    """Text that SQLite takes: file names may hold bytes that are no text."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
