"""What can ail the inside of a database: journal mode, damage, schema, foreign keys, slow queries."""

from __future__ import annotations

import sqlite3
import statistics
import time
from dataclasses import replace

from abathur_db import database, examination, latency, objects, rehearsal, resources, schema, soundness
from abathur_db.config import Config
from abathur_db.result import Check, Exit, Failure

ROUNDS = 20
"""Times each critical query is run; the median is compared with its budget."""


def locked(config: Config) -> bool:
    """Tell whether a writer would get "database is locked": take the write lock and give it back at once."""
    try:
        with database.opened(config.database, config.busy_timeout_ms) as connection:
            connection.execute("BEGIN IMMEDIATE")
            connection.execute("ROLLBACK")
    except Failure as failure:
        if failure.code is not Exit.BUSY:
            raise
        return True
    return False


def examine(config: Config) -> list[Check]:
    """Look at the database, read only. Raises Failure when it cannot be opened, BUSY when it is locked."""
    with database.opened(config.database, config.busy_timeout_ms, read_only=True) as connection:
        checks = [_journal_mode(config, connection), _damage(config, connection)]
        if not checks[-1].ok:
            # Nothing that is read from a damaged file can be relied on.
            return checks
        drift = _schema(config, connection)
        checks += [*drift, _foreign_keys(config, connection)]
        lost_tables = any(not check.ok and check.id == "tables" for check in drift)
        return checks if lost_tables else checks + _queries(config, connection)


def _journal_mode(config: Config, connection: sqlite3.Connection) -> Check:
    mode = connection.execute("PRAGMA journal_mode").fetchone()[0]
    said = "WAL" if mode == "wal" else f"WAL is off: the journal mode is {mode}, readers and writers stop each other"
    return Check("journal_mode", mode == "wal", "wal", said, config.command("init"))


def _damage(config: Config, connection: sqlite3.Connection) -> Check:
    found = examination.soundness(config, "damage", soundness.findings(connection))
    said = "SQLite finds no damage" if found.ok else f"the database is damaged: {found.measured}"
    return Check("damage", found.ok, "no damage", said, found.hint)


def _schema(config: Config, connection: sqlite3.Connection) -> list[Check]:
    """Compare with sql/migrations; a column that differs is for its application to mend."""
    checks = []
    for check in schema.checks(config, connection):
        said = check.measured if check.ok and not check.warning else f"the schema differs: {check.measured}"
        repair = f"{config.command('restore', 'latest')} --dry-run" if check.id == "columns" else config.command("init")
        checks.append(replace(check, measured=said, hint=repair))
    return checks


def _foreign_keys(config: Config, connection: sqlite3.Connection) -> Check:
    check = examination.foreign_keys(config, connection)
    said = (
        f"rows name a parent that is not there: {check.measured}" if check.warning else "no row violates a foreign key"
    )
    return replace(check, measured=said)


def _queries(config: Config, connection: sqlite3.Connection) -> list[Check]:
    """Check that each critical query is a search by an index, and time it on the database as it is."""
    return [_query(config, connection, query) for query in resources.queries()]


def _query(config: Config, connection: sqlite3.Connection, query: resources.Query) -> Check:
    name = f"query_{query.name}"
    try:
        plan = rehearsal.plan(config, connection, query)
        milliseconds = _median(connection, query.sql, latency.sample(connection, query))
    except sqlite3.OperationalError as error:
        said = f"{query.name} has no answer: {objects.unanswerable(error)}"
        told = "leave it to the application, whose connections or migrations have what it takes"
        return Check(name, True, "an answer in time", said, told, warning=True)
    budget = rehearsal.budget_ms(config, query)
    measured = f"{milliseconds:.1f} ms, budget {budget:g} ms"
    slow = milliseconds > budget
    if not plan.ok:
        said, repair = (
            f"{query.name} lacks its index {query.index} ({plan.measured}): {measured}",
            config.command("init"),
        )
    elif slow:
        said, repair = f"{query.name} is slow though it uses its index: {measured}", config.command("analyze")
    else:
        said, repair = measured, ""
    return Check(name, not slow, plan.expected, said, repair, warning=bool(repair) and not slow)


def _median(connection: sqlite3.Connection, sql: str, parameters: list[dict[str, object]]) -> float:
    durations = []
    for number in range(ROUNDS):
        begun = time.perf_counter()
        connection.execute(sql, parameters[number % len(parameters)]).fetchall()
        durations.append((time.perf_counter() - begun) * 1000)
    return statistics.median(durations)
