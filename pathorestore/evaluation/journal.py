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
_FORMAT = 2
_PATIENCE_S = 30  # with somebody who reads
_TABLES = """
create table if not exists meta (name text primary key, value text not null);
create table if not exists rows (place integer primary key, item text not null, method text not null, stamp text not null,
  failed integer not null, value text not null, unique (item, method));
create table if not exists arrays (kind text not null, item text not null, method text not null, data blob not null,
  primary key (kind, item, method));
"""
Kind = Literal["features", "risk"]


class Journal:
    """The open journal in a folder, locked for this process. settings: what must be the same for a run to go on, JSON-able.

    A row is good for as long as its stamp, which is made of its files and its method, is the same. fresh: throw away what an earlier run
    left. Rows that failed are forgotten, to be tried again. Raises JobLocked if another process has it, PlanError if it is of an
    evaluation with other settings or no journal, OSError if the disk fails, here and in all methods.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any], *, fresh: bool = False):
        make_folder(folder)
        self.path = folder / JOURNAL
        self._lock = lock_file(self.path.with_name(f"{JOURNAL}.lock"), folder, doing="written")
        self._connection: sqlite3.Connection | None = None
        try:
            if fresh:
                self.path.unlink(missing_ok=True)
            # names of patients may be in it
            os.close(os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600))
            self._connection = sqlite3.connect(self.path, isolation_level=None, timeout=_PATIENCE_S)
            self._open(settings)
        except BaseException:
            self.close()
            raise

    def _open(self, settings: Mapping[str, Any]) -> None:
        for statement in (*_TABLES.split(";"), "delete from rows where failed"):
            self._rows(statement)
        record = json.dumps({"format": _FORMAT, **settings}, sort_keys=True)
        if not self._rows("select 1 from rows limit 1"):  # nothing is lost if a first try was mended
            self._rows("delete from meta")
        known = self.remember("settings", record)
        if known != record:
            before, now = json.loads(known), json.loads(record)
            changed = [name for name in sorted(before | now) if before.get(name) != now.get(name)]
            told = "; ".join(f"{name} was {_short(before.get(name))}, is {_short(now.get(name))}" for name in changed)
            raise PlanError(
                f"{self.path.parent}: holds an evaluation with other settings ({told}); --overwrite begins anew, -o names another"
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def add(self, row: ScoreRow, arrays: Mapping[Kind, Tensor] | None = None, *, stamp: str = "") -> None:
        """Keep a row, and what there is many numbers of: features d, risk n 2; all of it or nothing."""
        case, method = _storable(row.case), _storable(row.method)
        self._rows("begin immediate")
        try:
            self._rows("delete from arrays where item = ? and method = ?", (case, method))
            for kind, array in (arrays or {}).items():
                data = array.detach().cpu().float().contiguous().numpy().tobytes()
                self._rows("insert into arrays values (?, ?, ?, ?)", (kind, case, method, data))
            values = (case, method, stamp, bool(row.error), json.dumps(asdict(row)))
            self._rows("insert or replace into rows (item, method, stamp, failed, value) values (?, ?, ?, ?, ?)", values)
            self._rows("commit")
        except BaseException:
            with suppress(OSError):
                self._rows("rollback")
            raise

    def has(self, case: str, method: str, *, stamp: str = "") -> bool:
        """Whether the row of a case under a method is kept, and its stamp the same."""
        return self._rows("select stamp from rows where item = ? and method = ?", (_storable(case), _storable(method))) == [(stamp,)]

    def rows(self) -> Iterator[ScoreRow]:
        """The rows in the order in which they came."""
        for (value,) in self._rows("select value from rows order by place"):
            yield ScoreRow(**json.loads(value))

    def arrays(self, kind: Kind, method: str) -> dict[str, Tensor]:
        """The arrays of one kind of a method's rows by case, flat, in float32."""
        found = self._rows("select item, data from arrays where kind = ? and method = ? order by item", (kind, _storable(method)))
        return {case: torch.frombuffer(bytearray(data), dtype=torch.float32) for case, data in found}

    def remember(self, name: str, value: str) -> str:
        """Keep a value under a name unless there is one already; returns the one that is kept."""
        self._rows("insert or ignore into meta values (?, ?)", (name, value))
        return self.recall(name) or value

    def recall(self, name: str) -> str | None:
        """The value kept under a name, None if there is none."""
        found = self._rows("select value from meta where name = ?", (name,))
        return str(found[0][0]) if found else None

    def close(self) -> None:
        """Close it; what is in it stays."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _rows(self, query: str, values: tuple[Any, ...] = ()) -> list[Any]:
        assert self._connection is not None
        try:
            return self._connection.execute(query, values).fetchall()
        except sqlite3.OperationalError as error:
            raise OSError(5, f"the journal cannot be used: {error}; what is finished is kept", str(self.path)) from error
        except sqlite3.DatabaseError as error:
            raise PlanError(f"{self.path}: is no journal that can be read ({error}); --overwrite begins anew, -o names another") from error


def _storable(text: str) -> str:
    """Text that SQLite takes: file names may hold bytes that are no text."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
