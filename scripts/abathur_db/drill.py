"""The drill: both ways back are tried, the newest backup and the newest state of the replica."""

from __future__ import annotations

import time
from typing import Any

from abathur_db import database, objects, proof, replica, replication, wal
from abathur_db.config import Config
from abathur_db.result import Check, Failure, Result, summarize


def drill(config: Config) -> Result:
    """Restore the newest backup, and the replica where there is one, to scratch; check, compare and time each."""
    result = proof.drill(config)
    settings = replica.settings(config)
    if settings is None:
        return result
    check, found = _replica(config, settings)
    checks = [*result.checks, check]
    summary, hint = summarize("drill", checks)
    if not hint:
        summary = f"{result.summary}; {check.measured}"
    return Result("drill", summary, checks=checks, data={**result.data, **found}, hint=hint)


def _replica(config: Config, settings: replica.Settings) -> tuple[Check, dict[str, Any]]:
    begun = time.monotonic()
    fault, said, seconds = "", "", None
    try:
        with database.opened(config.database, config.busy_timeout_ms, read_only=True) as live:
            before = _state(live)
            wal.arrive(config, settings, replica.LOOK_SECONDS)
            point = replica.point(config, settings)
            if point is None:
                raise Failure(f"the replica {settings.url} has nothing that can be restored", "see abathur-db status")
            with proof.scratch(config, "replica.db") as plain:
                replica.fetch(config, settings, point, plain)
                proof.examine(plain, str(point))
                with database.opened(plain, 0, immutable=True) as connection:
                    rows = objects.row_counts(connection)
            seconds = round(time.monotonic() - begun, 3)
            said = f"{point}: {sum(rows.values())} rows in {seconds:.1f} s"
            # While somebody writes there is no saying what the replica should hold; then its own check counts.
            still = _state(live) == before
            if still and rows != before[1]:
                differing = sorted(name for name in {*rows, *before[1]} if rows.get(name) != before[1].get(name))
                fault = f"{point} differs from the database in the rows of {', '.join(differing)}"
    except Failure as failure:
        fault = str(failure)
    check = Check(
        "replica",
        not fault,
        "the replica restores, passes its checks, and has the rows of the database",
        fault or said,
        f"{replication.LOG}; where it cannot be read back, {replica.ANEW}",
    )
    return check, {} if fault else {"replica_recovery_seconds": seconds}


def _state(live: Any) -> tuple[int, dict[str, int]]:
    """Return a number that changes with every commit of another process, and the rows per table."""
    return database.pragma(live, "data_version"), objects.row_counts(live)
