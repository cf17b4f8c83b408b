"""The validation: the live database looked at read only, and an application's work rehearsed on a clone."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Any

from abathur_db import clones, database, examination, guarded, maintenance, rehearsal, runs, schema, soundness, status
from abathur_db.config import Config
from abathur_db.result import Check, Result, shell, summarize


def validate(config: Config, jobs: list[str]) -> Result:
    """Prove that the database is what the design promises; production rows are never written.

    `jobs`: the names that must have a timer, whether or not it is installed.
    Raises Failure when the database cannot be opened or the clone finds no space.
    """
    with database.opened(config.database, config.busy_timeout_ms, read_only=True) as connection:
        compared = schema.checks(config, connection)
        mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
        checks = [*compared, status.journal_mode(config, mode)]
        sizes = maintenance.sizes(config, connection)
        checks.append(status.wal_size(config, sizes["wal_bytes"]))
    checks += _modes(config)
    timers = status.timers(config, jobs)
    checks += status.timer_checks(timers)
    checks += _backup_job(config) if "backup" in timers else []
    with clones.clone(config) as copy:
        # On the copy, as everything that takes its time: a long read of the live file holds its log open.
        sound = _sound(config, copy)
        # Nothing can be rehearsed on tables that are not there.
        whole = all(each.ok for each in [*sound, *compared])
        rehearsed, latencies = _rehearsed(config, copy) if whole else ([], [])
    checks += sound + rehearsed
    summary, hint = summarize("validate", checks)
    data = {**sizes, "latencies": latencies}
    table = _latency_table(latencies, config.validation_p99_ms)
    return Result("validate", summary, checks=checks, data=data, hint=hint, table=table)


def _sound(config: Config, copy: Path) -> list[Check]:
    """Let SQLite check a closed copy quickly; its rows are looked at only when it is sound."""
    with database.opened(copy, 0, immutable=True) as connection:
        found = soundness.findings(connection)
        check = examination.soundness(config, "quick_check", found)
        return [check, *(examination.content(config, connection, found, whole=False) if check.ok else [])]


def _rehearsed(config: Config, copy: Path) -> tuple[list[Check], list[dict[str, Any]]]:
    """Rehearse an application's work on the clone; what only its own connections could do is a warning."""
    try:
        return rehearsal.rehearse(config, copy)
    except database.Refused as refusal:
        said = f"not rehearsed: {refusal}"
        return [Check("rehearsal", True, "an application's work, on a clone", said, refusal.hint, warning=True)], []


def _latency_table(latencies: list[dict[str, Any]], limit: float) -> list[str]:
    """Return a line per query: half of the runs beside the query's budget, the 99th percentile beside its limit."""
    if not latencies:
        return []
    lines = ["", f"{'query':20} {'sessions':>8} {'samples':>8} {'p50 / budget ms':>17} {'p99 / limit ms':>17}"]
    for row in latencies:
        half, most = f"{row['p50_ms']:.2f} / {row['budget_ms']:g}", f"{row['p99_ms']:.2f} / {limit:g}"
        over = "  over" if row["p50_ms"] > row["budget_ms"] or row["p99_ms"] >= limit else ""
        lines.append(f"{row['query']:20} {row['sessions']:8} {row['count']:8} {half:>17} {most:>17}{over}")
    return [*lines, ""]


def _modes(config: Config) -> list[Check]:
    """Check that nobody but the owner reads or writes the data (design document, section 2.1: 0700)."""
    files = [config.database, *database.sidecars(config.database)]
    wanted = {config.database.parent: 0o700} if config.owner else {}
    checks = []
    for path in [*wanted, *files]:
        found = guarded.facts(path)
        if found is None:
            continue
        mode = stat.S_IMODE(found.st_mode)
        good = found.st_uid == os.geteuid() and not mode & 0o077
        checks.append(
            Check(
                f"mode_{path.name}",
                good,
                f"{guarded.user_name(os.geteuid())}, nothing for others",
                f"{guarded.user_name(found.st_uid)}, {mode:04o}",
                _repair(path),
            )
        )
    return checks


def _repair(path: Path) -> str:
    user = guarded.user_name(os.geteuid()).split()[0]
    return f"{shell('chown', '--no-dereference', f'{user}:', path)} && {shell('chmod', 'go=', path)}"


def _backup_job(config: Config) -> list[Check]:
    last = runs.last(config, "backup")
    through_unit = runs.known(config, "unit", "backup")
    return [
        Check(
            "backup_job",
            last is not None and last["ok"] and through_unit is not None,
            "succeeded, and has run through its unit",
            f"{last['finished']}: {last['summary']}" if last else "never ran",
            "systemctl start abathur-db@backup; journalctl -u abathur-db@backup -n 50",
        )
    ]
