"""Backups: a hot copy in one step, checked, compressed, and renamed into place only when good."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from abathur_db import (
    __version__,
    catalog,
    database,
    guarded,
    handover,
    host,
    objects,
    packing,
    progress,
    release,
    retention,
    schema,
    soundness,
)
from abathur_db.config import Config
from abathur_db.manifest import Manifest, fitting
from abathur_db.result import Check, Failure, Result, afterwards, shell


def backup(config: Config, dry_run: bool = False, handed: int | None = None) -> Result:
    """Back the configured database up; only what passed its check gets its final name. Then prune.

    What cannot be deleted, before or after, is a warning: the backup counts.
    `handed`: descriptor of a copy that the database's owner handed over; without one the database itself is copied.
    Raises Failure when the space is not there, the copy does not pass, or the disk fills; the
    directory is then as it was before.
    """
    size = database.size(config.database) if handed is None else os.fstat(handed).st_size
    if dry_run:
        return Result("backup", f"would copy {host.readable(size)} to {config.backup_directory}", changed=True)
    guarded.directory(config.backup_directory)
    # The plain copy and, at worst, a packed one as large; which has the place of what was handed over.
    needed = (2 * size if handed is None else size) + config.minimum_free_mb * host.MB
    host.require_free(config.backup_directory, needed, "a backup")
    begun = time.monotonic()
    stamp = datetime.now(UTC)
    plain = config.backup_directory / f".{catalog.PREFIX}new.db.partial"
    packed = config.backup_directory / catalog.PACKED
    partials = [*database.files(plain), packed]
    besides: list[Check] = []
    try:
        for leftover in partials:
            guarded.clear(leftover)
        for unfinished in _unfinished(config):
            with afterwards(besides, "unfinished", "what a killed backup left deleted"):
                for leftover in unfinished:
                    guarded.clear(leftover)
        # One after the other, though they could run side by side: the application needs a processor too.
        with host.half_of_the_processors():
            if handed is None:
                with progress.shown("copy", size) as done:
                    database.snapshot(config.database, plain, config.busy_timeout_ms, done)
            else:
                handover.copy_whole(handed, plain, size)
                host.require_free(config.backup_directory, needed, "a backup")
            facts, checks = _facts(config, plain, full=config.backup_check == "full")
            facts |= packing.pack(plain, packed, config.backup_compression)
        found = catalog.entries(config)
        identity = _identity(found, stamp)
        kept = Manifest(
            id=identity,
            sequence=catalog.next_sequence(config, found),
            file=f"{catalog.PREFIX}{identity}{catalog.SUFFIXES[config.backup_compression]}",
            created=stamp.isoformat(timespec="seconds"),
            sqlite_version=sqlite3.sqlite_version,
            tool_version=__version__,
            check=config.backup_check,
            seconds=round(time.monotonic() - begun, 3),
            **facts,
        )
        catalog.publish(config, packed, kept)
    except OSError as error:
        raise Failure(
            f"the backup could not be written: {error.strerror or error}; nothing was kept of it, "
            "older backups are untouched",
            f"free space there: {shell('df', '-h', config.backup_directory)}",
        ) from error
    finally:
        for leftover in partials:
            # Whatever went wrong is told already; the next run clears what could not be cleared here.
            with contextlib.suppress(OSError):
                leftover.unlink(missing_ok=True)
    summary = (
        f"{kept.file}: {host.readable(kept.plain_bytes)} as {host.readable(kept.bytes)} in {kept.seconds:.1f} s, "
        f"{kept.check} check passed"
    )
    said = ""
    with afterwards(besides, "prune", "older backups pruned"):
        pruned = _prune(config, [kept, *catalog.sound(found)])
        besides += [replace(each, ok=True, warning=True) for each in pruned.checks]
        said = pruned.summary if pruned.changed or pruned.checks else ""
    said = said or (besides[0].measured if besides else "")
    return Result(
        "backup",
        f"{summary}; {said}" if said else summary,
        changed=True,
        checks=[*checks, *besides],
        data=asdict(kept),
        hint=besides[0].hint if besides else "",
    )


def prune(config: Config, dry_run: bool = False) -> Result:
    """Remove the backups that no rule keeps, sparing those that a rollback needs."""
    return _prune(config, catalog.backups(config), dry_run)


def _prune(config: Config, found: list[Manifest], dry_run: bool = False) -> Result:
    return retention.prune(config, found, never=release.spared(config), dry_run=dry_run)


def _facts(config: Config, plain: Path, *, full: bool) -> tuple[dict[str, Any], list[Check]]:
    """Check a closed copy; return what its manifest says of its content, and what is to be known of it.

    Raises Failure when it could not be restored.
    """
    with database.opened(plain, 0, immutable=True) as copy:
        found = soundness.findings(copy, full=full)
        if found.damage:
            raise Failure(
                f"the copy of the database is corrupt: {found.damage[0]}; no backup was kept",
                f"check the database: {config.command('integrity-check')}",
            )
        schema.refuse_unfit(copy, config.database)
        facts = {
            "user_version": database.pragma(copy, "user_version"),
            "application_id": database.pragma(copy, "application_id"),
            "page_count": database.pragma(copy, "page_count"),
            "rows": fitting(objects.row_counts(copy)),
        }
    # Each is in the backup as it is in the database, and a restore makes indexes of their tables again.
    said = [found.astray] if found.indexes else []
    said += [f"not checked: {'; '.join(found.unchecked)}"] if found.unchecked else []
    hint = f"see what it is: {config.command('integrity-check')}"
    return facts, [Check("content", True, "all of it sound", each, hint, warning=True) for each in said]


def _identity(found: list[catalog.Entry], stamp: datetime) -> str:
    """Return the stamp of the design's name, abathur_YYYYmmdd_HHMMSS, with a number where it is taken."""
    taken = {each.id for each in found}
    stamped = f"{stamp:{catalog.STAMP}}"
    number = 1
    identity = stamped
    while identity in taken:
        number += 1
        identity = f"{stamped}_{number}"
    return identity


def _unfinished(config: Config) -> list[list[Path]]:
    """Return what runs that were killed while they named a backup have left: the file, then its manifest's partial.

    Only the partial says that the file is ours to delete; so it goes last.
    """
    found: list[list[Path]] = []
    for partial in sorted(config.backup_directory.glob(f".{catalog.PREFIX}*.json.partial")):
        name = partial.name.removeprefix(".").removesuffix(".partial")
        files = []
        if catalog.NAME.fullmatch(name) and not (config.backup_directory / name).exists():
            stem = name.removesuffix(".json")
            files = [config.backup_directory / f"{stem}{suffix}" for suffix in catalog.SUFFIXES.values()]
        found.append([*files, partial])
    return found
