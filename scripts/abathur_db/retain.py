"""The stored lifecycle policies, enforced: old episodic memories soft-deleted, old terminated sessions archived.

Nothing is ever deleted for good, and every row that is changed leaves its audit row.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

from abathur_db import database, foreign, host, objects, runs, trail
from abathur_db.config import Config
from abathur_db.result import Failure, Result, left

POLICY = ("app:abathur:config", "memory_lifecycle_policies")
"""Namespace and key of the seed that states episodic_ttl_days."""

MOST_DAYS = 36_500

SLICE_ROWS = 100
PAUSE_SECONDS = 0.05
"""Rows of one transaction, some 10 ms, and the rest after it: writers get in between."""

# Timestamps come in two formats in one column: compared as julianday, never as text (schema facts, trap 14).
# One that is no time at all is NULL there, so its row stays.
OLD_MEMORY = "memory_type = 'episodic' AND is_deleted = 0 AND julianday(updated_at) < julianday(:oldest)"
OLD_SESSION = "status = 'terminated' AND julianday(coalesce(terminated_at, last_update_time)) < julianday(:oldest)"

YOUNGER_BELOW = """EXISTS (SELECT 1 FROM memory_entries AS lower WHERE lower.namespace = memory_entries.namespace
AND lower.key = memory_entries.key AND lower.version < memory_entries.version AND lower.is_deleted = 0
AND NOT coalesce(julianday(lower.updated_at) < julianday(:oldest), 0))"""
"""A lower version that stays: without the higher one, applications would read it as the newest again."""

Row = int | bytes
Change = Callable[[sqlite3.Connection, Row], bool]


class Key(NamedTuple):
    """What tells a row of a table from the others, and the condition that finds it again by :row.

    The key of a session may be any text, also one that is no UTF-8: so it is the rowid, or that text as bytes.
    """

    column: str
    condition: str

    @classmethod
    def of(cls, connection: sqlite3.Connection, table: str) -> Key:
        """Return the key of a table, which has a rowid or was made WITHOUT one."""
        rowid = objects.rowid(connection, table)
        return cls(rowid, f"{rowid} = :row") if rowid else cls("CAST(id AS BLOB)", "id = CAST(:row AS TEXT)")


def retain(config: Config, dry_run: bool = False) -> Result:
    """Soft-delete episodic memories older than the stored episodic_ttl_days, archive sessions terminated long ago.

    Skipped when the policy is absent or was deleted. What the application's schema keeps us from is a warning. Raises
    Failure for a policy that cannot be read, on a low disk, and (BUSY) when an application holds a lock; what was done
    until then stays.
    """
    host.require_free(config.database, config.minimum_free_mb * host.MB, "retain")
    try:
        return _retain(config, dry_run)
    except database.Refused as refusal:
        return left("retain", "old memories and sessions put away", refusal)


def _retain(config: Config, dry_run: bool) -> Result:
    with database.opened(config.database, config.busy_timeout_ms, read_only=True) as connection:
        ttl_days = _ttl_days(connection)
        if ttl_days is None:
            return Result("retain", f"skipped: there is no memory {'/'.join(POLICY)}, so no policy")
        memory_age, session_age = ({"oldest": _ago(days)} for days in (ttl_days, config.retain_session_days))
        memory_key, session_key = (Key.of(connection, table) for table in ("memory_entries", "sessions"))
        old = f"memory_entries WHERE {OLD_MEMORY} AND NOT {YOUNGER_BELOW}"
        memories = _found(connection, memory_key, old, memory_age)
        sessions = _found(connection, session_key, f"sessions WHERE {OLD_SESSION}", session_age)
    done = {"memories": len(memories), "sessions": len(sessions)}
    if not dry_run:
        done = _change(
            config,
            {
                "memories": (
                    memories,
                    lambda live, row: _delete(live, memory_key, row, memory_age, ttl_days),
                ),
                "sessions": (sessions, lambda live, row: _archive(live, session_key, row, session_age)),
            },
        )
    first, second = ("would soft-delete", "archive") if dry_run else ("soft-deleted", "archived")
    summary = (
        f"{first} {done['memories']} episodic memories older than {ttl_days} days,"
        f" {second} {done['sessions']} sessions terminated {config.retain_session_days} days ago"
    )
    data = {"episodic_ttl_days": ttl_days, "session_days": config.retain_session_days, **done}
    return Result("retain", summary, changed=any(done.values()), data=data)


def _ago(days: int) -> str:
    return (datetime.now(UTC) - timedelta(days=days)).isoformat(timespec="seconds")


def _found(connection: sqlite3.Connection, key: Key, what: str, parameters: dict[str, str]) -> list[Row]:
    return [row for (row,) in connection.execute(f"SELECT {key.column} FROM {what}", parameters)]


def _ttl_days(connection: sqlite3.Connection) -> int | None:
    """Return episodic_ttl_days of the newest version of the policy, None when it is absent or deleted."""
    newest = connection.execute(
        "SELECT value, is_deleted FROM memory_entries WHERE namespace = ? AND key = ? ORDER BY version DESC LIMIT 1",
        POLICY,
    ).fetchone()
    if newest is None or newest[1]:
        return None
    try:
        days = foreign.record(newest[0]).get("episodic_ttl_days")
    except ValueError:
        days = None
    # 0 would delete what was written a moment ago; a wrong value is not guessed at.
    if type(days) is not int or not 0 < days <= MOST_DAYS:
        raise Failure(
            f"the memory {'/'.join(POLICY)} states no episodic_ttl_days from 1 to {MOST_DAYS}",
            "write a new version of it; nothing was changed",
        )
    return days


def _change(config: Config, work: dict[str, tuple[list[Row], Change]]) -> dict[str, int]:
    """Change the rows in small transactions, with a rest after each; return how many were changed, by kind."""
    done = dict.fromkeys(work, 0)
    try:
        with database.opened(config.database, config.busy_timeout_ms) as connection:
            for kind, (rows, change) in work.items():
                for start in range(0, len(rows), SLICE_ROWS):
                    with database.transaction(connection, "some of the old rows were retained as the policy says"):
                        changed = sum(change(connection, row) for row in rows[start : start + SLICE_ROWS])
                    done[kind] += changed
                    time.sleep(PAUSE_SECONDS)
    except Failure as failure:
        if not any(done.values()):
            raise
        reason = str(failure).removesuffix("; nothing was changed")
        raise Failure(
            f"{done['memories']} memories and {done['sessions']} sessions are done, the others not: {reason}",
            failure.hint,
            failure.code,
        ) from None
    return done


def _delete(connection: sqlite3.Connection, key: Key, row: Row, age: dict[str, str], ttl_days: int) -> bool:
    """Soft-delete a memory that is still as old as it was when it was found; return whether it was."""
    found = connection.execute(
        f"SELECT id, key, version, updated_at FROM memory_entries WHERE {key.condition} AND {OLD_MEMORY}",
        {"row": row, **age},
    ).fetchone()
    if found is None:
        return False
    memory, name, version, updated_at = found
    connection.execute(
        f"UPDATE memory_entries SET is_deleted = 1, updated_at = :now, updated_by = 'system' WHERE {key.condition}",
        {"now": runs.now(), "row": row},
    )
    about = {"key": name, "version": version, "updated_at": updated_at, "episodic_ttl_days": ttl_days}
    trail.note(connection, "retain", about, operation="delete", memory=memory)
    return True


def _archive(connection: sqlite3.Connection, key: Key, row: Row, age: dict[str, str]) -> bool:
    """Archive a session that is still terminated; return whether it was."""
    changed = connection.execute(
        "UPDATE sessions SET status = 'archived', archived_at = :now"
        f" WHERE {key.condition} AND {OLD_SESSION} RETURNING id",
        {"now": runs.now(), "row": row, **age},
    ).fetchall()
    for (identity,) in changed:
        trail.note(connection, "retain", {"session_id": identity, "status": "archived"})
    return bool(changed)
