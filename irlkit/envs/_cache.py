"""Evaluations on the disk, shared by processes."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from irlkit.envs._backends import Passing
from irlkit.utils.checks import checked

_TABLE = """CREATE TABLE IF NOT EXISTS evaluations (
  skeleton TEXT NOT NULL, species TEXT NOT NULL, judge TEXT NOT NULL,
  value REAL, reason TEXT, seconds REAL NOT NULL, details TEXT NOT NULL,
  PRIMARY KEY (skeleton, species, judge)) WITHOUT ROWID"""
_PART = 300
"""Keys per query, below SQLite's smallest limit of variables."""
_TIMEOUT = 60.0
"""Seconds that another process may hold the file."""

Key = tuple[str, str]
Row = tuple[float | None, str | None, float, dict[str, Any]]


class EvaluationCache:
    """Values of fillings in an SQLite file, or in memory.

    Several processes may use one file at once (write-ahead log); what is stored is on the disk when
    `store` returns, so that a killed process loses nothing of it. Failures that need not come again
    (`Passing`) are remembered by this object alone.

    Args:
        path: the file, made if missing; None keeps everything in memory.

    Raises:
        ValueError: the file is something else than such a cache.

    >>> cache = EvaluationCache()
    >>> cache.store("density", [(("sites", "11-17"), (2.2, None, 0.0, {}))])
    >>> len(cache), cache.find("density", [("sites", "11-17")])[("sites", "11-17")][0]
    (1, 2.2)
    """

    @checked
    def __init__(self, path: str | Path | None = None) -> None:
        self.path = None if path is None else Path(path)
        if self.path is not None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._memory: dict[tuple[str, str, str], Row] = {}
        try:
            self._database = sqlite3.connect(
                ":memory:" if self.path is None else self.path,
                timeout=_TIMEOUT,
                check_same_thread=False,
            )
            self._change_to_wal()
            self._database.execute("PRAGMA synchronous=FULL")
            self._database.execute(_TABLE)
            self._database.execute("SELECT value, reason, details FROM evaluations LIMIT 1")
        except sqlite3.DatabaseError as error:
            raise ValueError(f"path {self.path} is no cache of evaluations: {error}") from error

    def _change_to_wal(self) -> None:
        """Let readers and a writer work at once; SQLite itself does not wait for this change."""
        end = time.monotonic() + _TIMEOUT
        while True:
            try:
                self._database.execute("PRAGMA journal_mode=WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > end:
                    raise
            time.sleep(0.05)

    def __len__(self) -> int:
        with self._lock:
            return self._database.execute("SELECT count(*) FROM evaluations").fetchone()[0]

    def find(self, judge: str, keys: Sequence[Key]) -> Mapping[Key, Row]:
        """Return what is known of fillings: value or None, reason or None, seconds, details.

        Args:
            judge: property, backend, settings and versions.
            keys: skeleton and species.
        """
        wanted = list(dict.fromkeys(keys))
        found = {k: self._memory[*k, judge] for k in wanted if (*k, judge) in self._memory}
        missing = [key for key in wanted if key not in found]
        for i in range(0, len(missing), _PART):
            part = missing[i : i + _PART]
            places = ",".join(["(?,?)"] * len(part))
            query = (
                "SELECT skeleton, species, value, reason, seconds, details FROM evaluations "
                f"WHERE judge = ? AND (skeleton, species) IN (VALUES {places})"
            )
            with self._lock:
                rows = self._database.execute(query, [judge, *(x for k in part for x in k)])
                for skeleton, species, value, reason, seconds, details in rows.fetchall():
                    row = value, reason, seconds, json.loads(details)
                    found[skeleton, species] = self._memory[skeleton, species, judge] = row
        return found

    def store(self, judge: str, rows: Iterable[tuple[Key, Row]]) -> None:
        """Keep evaluations; those that are there already stay as they are."""
        rows = list(rows)
        with self._lock, self._database:
            self._database.executemany(
                "INSERT OR IGNORE INTO evaluations VALUES (?,?,?,?,?,?,?)",
                [
                    (*key, judge, v, why, t, json.dumps(more))
                    for key, (v, why, t, more) in rows
                    if not isinstance(why, Passing)
                ],
            )
        for key, row in rows:
            self._memory.setdefault((*key, judge), row)

    def close(self) -> None:
        """Close the file."""
        self._database.close()
