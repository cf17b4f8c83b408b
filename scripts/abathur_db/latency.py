"""Latency of the critical queries with many sessions at work, through aiosqlite as the applications do it."""

from __future__ import annotations

import asyncio
import math
import random
import sqlite3
import time
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from abathur_db import foreign, host, resources
from abathur_db.result import Failure

THINK_SECONDS = (0.02, 0.08)
"""Pause between two operations of a session, drawn evenly: agents think, they are not a closed loop."""

WRITE_SHARE = 0.2
"""Part of the operations that write: a memory and its audit row, in one transaction."""


@dataclass
class Load:
    """What one run measured: durations in ms by query, and the errors that sessions saw."""

    sessions: int
    milliseconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    errors: list[str] = field(default_factory=list)

    def percentile(self, query: str, share: float) -> float:
        """Return the nearest-rank percentile of a query in ms."""
        ordered = sorted(self.milliseconds[query])
        return ordered[max(math.ceil(share * len(ordered)) - 1, 0)]

    @property
    def p99(self) -> float:
        """The worst query's 99th percentile in ms; a slow host may not have come to every query."""
        return max(self.percentile(query, 0.99) for query, found in self.milliseconds.items() if found)


def samples(connection: sqlite3.Connection) -> dict[str, list[dict[str, Any]]]:
    """Return parameters for each critical query, drawn from the rows that the database has."""
    return {query.name: sample(connection, query) for query in resources.queries()}


def sample(connection: sqlite3.Connection, query: resources.Query) -> list[dict[str, Any]]:
    """Return parameters for one query, drawn from the rows that the database has."""
    cursor = connection.execute(query.sample)
    names = [column[0] for column in cursor.description]
    rows = [dict(zip(names, row, strict=True)) for row in cursor]
    return rows or [dict.fromkeys(names, "none")]


def plan(connection: sqlite3.Connection, query: resources.Query) -> str:
    """Return how SQLite would run a critical query, as EXPLAIN QUERY PLAN says it."""
    names = [column[0] for column in connection.execute(query.sample).description]
    steps = connection.execute(f"EXPLAIN QUERY PLAN {query.sql}", dict.fromkeys(names))
    return "; ".join(str(step[3]) for step in steps)


def indexed(plan: str) -> bool:
    """Tell whether a plan is a search by an index, without sort and scan ("SCAN <table>", schema facts, trap 3)."""
    return "INDEX" in plan and "SCAN" not in plan and "TEMP B-TREE" not in plan


def measure(
    path: Path, parameters: dict[str, list[dict[str, Any]]], sessions: int, seconds: float, busy_timeout_ms: int
) -> Load:
    """Run `sessions` concurrent sessions of mixed reads and writes for `seconds`; writes to the file at `path`.

    Raises Failure when aiosqlite is not there (it is part of the built tool).
    """
    try:
        import aiosqlite
    except ModuleNotFoundError:
        raise Failure(
            "the package aiosqlite is not installed",
            "run the built tool (make tool), or install it: make venv",
        ) from None
    load = Load(sessions)

    async def session(number: int) -> None:
        chance = random.Random(number)
        try:
            async with aiosqlite.connect(path, isolation_level=None) as connection:
                # As everywhere in the tool: a row that is no UTF-8 is one as any other.
                connection.text_factory = foreign.words
                await connection.execute(f"PRAGMA busy_timeout = {busy_timeout_ms}")
                await connection.execute("PRAGMA foreign_keys = ON")
                end = time.perf_counter() + seconds
                while time.perf_counter() < end:
                    await asyncio.sleep(chance.uniform(*THINK_SECONDS))
                    if chance.random() < WRITE_SHARE:
                        await _write(connection, number)
                    else:
                        await _read(connection, chance, parameters, load)
        except sqlite3.Error as error:
            # Now: a moment later the disk may have space again.
            why = host.condition(path.parent)
            load.errors.append(f"{type(error).__name__}: {error}" + (f"; {why}" if why else ""))

    async def everybody() -> None:
        await asyncio.gather(*(session(number) for number in range(sessions)))

    asyncio.run(everybody())
    return load


async def _read(
    connection: Any, chance: random.Random, parameters: dict[str, list[dict[str, Any]]], load: Load
) -> None:
    query = chance.choice(resources.queries())
    values = chance.choice(parameters[query.name])
    begun = time.perf_counter()
    async with connection.execute(query.sql, values) as cursor:
        await cursor.fetchall()
    load.milliseconds[query.name].append((time.perf_counter() - begun) * 1000)


async def _write(connection: Any, number: int) -> None:
    await connection.execute("BEGIN IMMEDIATE")
    cursor = await connection.execute(
        "INSERT INTO memory_entries (namespace, key, value, memory_type, created_by, updated_by)"
        " VALUES (?, ?, '{}', 'episodic', 'validation', 'validation')",
        (f"validation:{number}", str(time.monotonic_ns())),
    )
    await connection.execute(
        # Of any task: the published DDL of the audit trail takes no row without one.
        "INSERT INTO audit (timestamp, task_id, action_type, memory_operation_type, memory_namespace, memory_entry_id)"
        " VALUES (CURRENT_TIMESTAMP, (SELECT id FROM tasks LIMIT 1), 'memory_create', 'create', ?, ?)",
        (f"validation:{number}", cursor.lastrowid),
    )
    await connection.execute("COMMIT")
