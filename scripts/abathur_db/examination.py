"""What SQLite finds in a file, as checks with their next step: damage, indexes, rows, foreign keys."""

from __future__ import annotations

import sqlite3

from abathur_db import adoption, database, objects, rules
from abathur_db.config import Config
from abathur_db.result import Check, counted
from abathur_db.soundness import Findings

MOST = 5
"""Indexes that a hint has a command for."""


def soundness(config: Config, name: str, found: Findings) -> Check:
    """Return whether the file can be relied on; `name` is the check's."""
    repair = f"{database.RESTORE}: {config.command('restore', 'latest')}"
    if found.indexes and not found.damage:
        # A backup of it has the same indexes; they are made of the rows, which are there.
        # By name: of all of them, one that takes a collation of the application's would end it.
        again = "; ".join(config.sql(f"REINDEX {objects.quoted(each)}") for each in found.indexes[:MOST])
        more = f"; then run this again, for {len(found.indexes) - MOST} more" if found.indexes[MOST:] else ""
        repair = f"make it of the rows again, with the application stopped: {again}{more}"
    return Check(name, not found.fault, "ok", found.fault or "ok", repair)


def content(
    config: Config, connection: sqlite3.Connection, found: Findings, *, whole: bool = True, strict: bool = False
) -> list[Check]:
    """Return what is to be known of the rows of a sound file.

    `whole`: every CHECK is evaluated on every row, which takes as long as SQLite's quick check. Warnings, for they are
    the application's rows; `strict` makes a failure of foreign keys that are violated anew.
    """
    broken, unable = rules.broken(connection) if whole else ([], [])
    nameless = [f"table {each}, whose name is no UTF-8" for each in objects.unsayable(connection)]
    unchecked = [*found.unchecked, *unable, *rules.foreign_key_violations(connection)[1], *nameless]
    odd = [*found.rows, *map(str, broken)]
    checks = [foreign_keys(config, connection, strict=strict)]
    if odd:
        repair = config.sql(broken[0].repair) if broken else "see the rows, and let their application correct them"
        checks.append(
            Check("row_rules", True, "no row breaks a rule of its table", "; ".join(odd), repair, warning=True)
        )
    if unchecked:
        told = "nothing has to be done: it is backed up and restored as it is, unchecked"
        said = f"not checked: {'; '.join(unchecked)}"
        checks.append(Check("unchecked", True, "what SQLite alone can evaluate", said, told, warning=True))
    return checks


def foreign_keys(config: Config, connection: sqlite3.Connection, *, strict: bool = False) -> Check:
    """Compare the foreign-key violations with those that were accepted: at the adoption, or by an operator since."""
    known = adoption.accepted(config.state_directory)
    found, _ = rules.foreign_key_violations(connection)
    more = {table: count for table, count in found.items() if count > known.get(table, 0)}
    listing = ", ".join(f"{count} in {table}" for table, count in sorted(found.items()))
    said, repair = rules.unparented(connection, next(iter(more or found))) if found else ("", "")
    accept = f"; or accept those of today: {config.command('integrity-check --accept')}" if strict else ""
    return Check(
        "foreign_keys",
        not (more and strict),
        f"at most the {counted(sum(known.values()), 'violation')} accepted" if known else "no violation",
        f"{counted(sum(found.values()), 'violation')}: {listing}; first: {said}" if found else "none",
        f"{config.sql(repair)}{accept}",
        warning=bool(found) and not (more and strict),
    )
