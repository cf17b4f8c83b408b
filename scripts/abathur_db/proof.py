"""Proving a backup: unpacked, hashed, checked by SQLite, compared with its manifest, queried."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from abathur_db import catalog, database, guarded, host, objects, packing, resources, schema, soundness
from abathur_db.config import Config
from abathur_db.manifest import Manifest, fitting
from abathur_db.result import Check, Failure, Result, afterwards, counted, summarize

CATCH_UP_SECONDS = 3600
"""After a start the timers make up for what was missed, each after its own delay (15 min) and with its own
duration: a drill that comes first says nothing against the backup that comes second."""


@contextmanager
def scratch(config: Config, name: str) -> Iterator[Path]:
    """Give a path for a throwaway database; it and what SQLite puts beside it are gone at the end."""
    guarded.directory(config.scratch_directory)
    with database.throwaway(config.scratch_directory / name) as path:
        yield path


def prove(config: Config, manifest: Manifest, target: Path) -> list[str]:
    """Unpack a backup to a new file `target` and prove it against its manifest; `target` stays when it passed.

    Returns what was mended in it. Raises Failure naming the first thing that differs; `target` is then gone.
    """
    file = config.backup_directory / manifest.file
    host.require_free(target, manifest.plain_bytes + config.minimum_free_mb * host.MB, f"unpacking {manifest.id}")
    if packing.sha256(file) != manifest.sha256:
        raise _differs(manifest, f"the SHA-256 of {manifest.file} is not that of its manifest")
    plain = packing.unpack(file, target, manifest.plain_bytes)
    try:
        if plain != manifest.plain_sha256:
            raise _differs(manifest, f"the SHA-256 of {manifest.file} unpacked is not that of its manifest")
        return examine(target, f"backup {manifest.id}", lambda connection: _compare(connection, manifest))
    except BaseException:
        target.unlink(missing_ok=True)
        raise


def examine(path: Path, name: str, also: Callable[[sqlite3.Connection], object] = lambda _: None) -> list[str]:
    """Prove that a closed copy can take the database's place; return what was mended in it.

    All that SQLite can check of it is checked. An index that differs from its table is made of the table again: it is
    no data. `also` looks at the copy as it came. Raises Failure; what it says is of `name`, because the copy is gone
    when somebody reads it.
    """
    try:
        with database.opened(path, 0, immutable=True) as connection:
            schema.refuse_unfit(connection, path)
            also(connection)
            found = soundness.findings(connection, full=True)
        mended: list[str] = []
        # One with many lines may have hidden another: again, until no new one is named.
        while (new := [each for each in found.indexes if each not in mended]) and not found.damage:
            mended += new
            with database.opened(path, 0) as connection:
                for index in new:
                    connection.execute(f"REINDEX {objects.quoted(index)}")
            with database.opened(path, 0, immutable=True) as connection:
                found = soundness.findings(connection, full=True)
        if found.fault:
            raise Failure(f"{path} is corrupt: {found.fault}", packing.ANOTHER)
    except Failure as failure:
        raise Failure(str(failure).replace(str(path), name), packing.ANOTHER) from None
    return [f"index {index} was made of its table again" for index in mended]


def _compare(connection: sqlite3.Connection, manifest: Manifest) -> None:
    found = {
        "application_id": database.pragma(connection, "application_id"),
        "user_version": database.pragma(connection, "user_version"),
        "page_count": database.pragma(connection, "page_count"),
        "rows": fitting(objects.row_counts(connection)),
    }
    for name, value in found.items():
        said = getattr(manifest, name)
        if value != said:
            raise _differs(manifest, f"{name} is {value!s:.200}, its manifest says {said!s:.200}")


def _differs(manifest: Manifest, what: str) -> Failure:
    return Failure(f"backup {manifest.id} is damaged: {what}", packing.ANOTHER)


def verify(config: Config, which: str) -> Result:
    """Prove one backup again, or all that there are; what does not count fails as well, with its reason.

    Raises Failure when there is no such backup.
    """
    wanted = catalog.entries(config) if which == "all" else [catalog.Entry.of(catalog.find(config, which))]
    if not wanted:
        raise Failure(f"there is no backup in {config.backup_directory}", f"make one: {config.job('backup')}")
    checks: list[Check] = []
    for each in wanted:
        fault, mended = each.fault, []
        if each.sound:
            try:
                with host.half_of_the_processors(), scratch(config, "proof.db") as plain:
                    mended = prove(config, each.sound, plain)
            except (Failure, FileNotFoundError) as failure:
                if catalog.pruned(config, each.sound):
                    # Pruned meanwhile, which is no fault of it.
                    continue
                fault = str(failure)
            with afterwards(checks, f"note_{each.id}", "the check of the backup noted"):
                catalog.remember_check(config, each.id, "verify", fault=fault)
        hint = f"it will not be restored; keep a good one: {config.command('backup')}"
        said = fault or "; ".join(["proven", *mended])
        checks.append(
            Check(
                each.id,
                not fault,
                "unpacks, passes its checks, is as its manifest says",
                said,
                hint,
                warning=bool(mended),
            )
        )
    summary, hint = summarize("verify", checks)
    return Result("verify", summary, checks=checks, hint=hint)


def drill(config: Config) -> Result:
    """Restore the newest backup to scratch, check it fully, run the critical queries on it, and time it.

    The time from the start to the first answer is the recovery time that is recorded. Fails also
    when the newest verified backup is too old.
    """
    newest = next(iter(catalog.backups(config)), None)
    if newest is None:
        age = catalog.age_check(config, None)
        summary, hint = summarize("drill", [age])
        return Result("drill", summary, checks=[age], hint=hint)
    begun = time.monotonic()
    fault, told = "", []
    try:
        with host.half_of_the_processors(), scratch(config, "proof.db") as plain:
            told = [*prove(config, newest, plain), *_unanswered(plain)]
    except Failure as failure:
        fault = str(failure)
    seconds = round(time.monotonic() - begun, 3)
    notes: list[Check] = []
    with afterwards(notes, f"note_{newest.id}", "the check of the backup noted"):
        catalog.remember_check(config, newest.id, "drill", fault=fault, seconds=seconds)
    restored = Check(
        "restore",
        not fault,
        "the newest backup restores, passes its checks and answers queries",
        fault or "; ".join([f"{newest.id}: {counted(sum(newest.rows.values()), 'row')} in {seconds:.1f} s", *told]),
        f"make a new one and look at the older ones: {config.command('backup')}; {config.command('verify', 'all')}"
        if fault
        else f"it restores as it is; see the database: {config.command('doctor')}",
        warning=bool(told) and not fault,
    )
    # Only now: a backup that has just failed is not the newest verified one any more.
    checks = [restored, _age_check(config), *notes]
    summary, hint = summarize("drill", checks)
    if not hint:
        summary = f"{newest.id} restored, checked and queried in {seconds:.1f} s"
    data = {"backup": newest.id, "recovery_seconds": seconds, "bytes": newest.plain_bytes}
    return Result("drill", summary, checks=checks, data=data, hint=hint)


def _age_check(config: Config) -> Check:
    """Check the age of the newest backup; just after a start, a missed backup may still be on its way."""
    age = catalog.age_check(config, catalog.newest_verified(config))
    if not age.ok and host.seconds_since_boot() < CATCH_UP_SECONDS:
        return replace(age, ok=True, warning=True)
    return age


def _unanswered(plain: Path) -> list[str]:
    """Ask the critical queries; return what the database, which is another matter than its backup, has no answer to."""
    told = []
    with database.opened(plain, 0, immutable=True) as connection:
        for query in resources.queries():
            try:
                cursor = connection.execute(query.sample)
                names = [column[0] for column in cursor.description]
                for row in cursor.fetchmany(1):
                    connection.execute(query.sql, dict(zip(names, row, strict=True))).fetchall()
            except sqlite3.OperationalError as error:
                told.append(f"{query.name} has no answer: {objects.unanswerable(error)}")
    return told
