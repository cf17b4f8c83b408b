"""Bringing back a database that was deleted while somebody has it open: the rows are there until that one ends.

The kernel keeps a deleted file for as long as a process has it open. A restart of the application, the usual next step,
throws it away for good.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from abathur_db import (
    catalog,
    database,
    guarded,
    host,
    interruption,
    objects,
    packing,
    processes,
    proof,
    replica,
    restore,
)
from abathur_db.config import Config
from abathur_db.result import Exit, Failure, Lost, Result, away, counted, shell

STOP_SECONDS = 5.0
"""How long a process may take to stand still, or to end: it does at its next return from the kernel."""


def rescue(config: Config, dry_run: bool = False) -> Result:
    """Freeze who has the deleted database open, copy it from there, check it, and put it in its place again.

    Nothing is committed after the copy: who was frozen is ended before it would go on. Where another database with rows
    stands in its place by now, the rescued one is kept beside it instead. As root the application's units are stopped
    meanwhile and started again. Raises Failure when nobody has it open, when it cannot be read, or is damaged.
    """
    held = processes.deleted(config.database)
    if not held:
        raise Failure(
            f"nobody has a deleted {config.database.name} open, so there is nothing to rescue",
            f"see what there is: {config.command('doctor')}; {config.command('backups')}",
        )
    names = ", ".join(sorted({host.process_name(each.pid) for each in held}))
    if len({each.identity for each in held}) > 1:
        raise Failure(
            f"{names} have different deleted databases of this name open; nothing was changed",
            f"take each one out by hand, as root: {'; '.join(_by_hand(each) for each in held)}",
        )
    if dry_run:
        return Result("rescue", f"would take {config.database.name} from {names} and put it in its place", changed=True)
    units = _units(config, held)
    copied = host.as_owner(config.owner, lambda: _copy(config))
    kept = Path(copied["kept"])
    try:
        if units:
            host.control("stop", *units)
        placed = host.as_owner(config.owner, lambda: _place(config, kept))
    except Failure as failure:
        raise Failure(
            f"the rescued database, with {counted(copied['rows'], 'row')}, is in {kept}, not in its place: {failure}",
            f"{failure.hint}; then: {config.command('restore', str(kept))}",
            failure.code,
        ) from None
    finally:
        if units and not host.fenced():
            host.control("start", *units)
    rows = counted(copied["rows"], "row")
    ended = f"{names} was ended" + (f" and {', '.join(units)} started again" if units else "")
    data = {"rows": copied["rows"], "kept": None if placed["placed"] else str(kept), "units": units}
    if not placed["placed"]:
        return Result(
            "rescue",
            f"rescued {rows} into {kept}; in its place stands another database, which has rows as well; {ended}",
            changed=True,
            data=data,
            hint=f"see what it would take away: {config.command('restore', str(kept))} --dry-run",
        )
    hint = "" if units else f"start the application again, then: {config.command('doctor')}"
    said = f"rescued {config.database} with {rows}, all that was committed; it is in its place again; {ended}"
    return Result("rescue", said, changed=True, data=data, hint=hint)


def advice(config: Config, lost: Failure) -> str:
    """Return the next step where the database is gone, empty or without a table: never one that loses what is left."""
    if processes.deleted(config.database):
        return f"restart nothing; take it from there: {config.command('rescue')}"
    if host.in_job():
        return f"restart nothing; see what is left of it: {config.command('doctor')}"
    running = [each for each in config.application_units if config.owner and host.is_active(each)]
    stop, start = (shell("systemctl", verb, *running) if running else "" for verb in ("stop", "start"))
    there = os.path.lexists(config.database)
    if not there and (elsewhere := processes.renamed(config.database)):
        # Whoever writes into it goes on in its own log, which belongs to it under either name.
        back = shell("mv", "--no-clobber", elsewhere, config.database)
        return f"it was renamed; give it its name again: {' && '.join(filter(None, [stop, back, start]))}"
    with suppress(Failure, OSError):
        if newest := next(iter(catalog.backups(config)), None):
            steps = [stop, config.command("restore", "latest"), start]
            moment = newest.moment.strftime("%Y-%m-%d %H:%M:%S UTC")
            return f"bring the backup of {moment} back: {' && '.join(filter(None, steps))}"
    if not config.owner or (not there and any(map(os.path.lexists, database.sidecars(config.database)))):
        return lost.hint
    # It would make another empty one at once.
    steps = [stop, away(config.database, "empty") if there else "", "ansible-playbook deploy.yml"]
    return f"there is no backup; make a new one: {' && '.join(filter(None, steps))}"


@contextmanager
def advised(config: Config) -> Iterator[None]:
    """Give what is raised of a database that is not there the next step that fits this host."""
    try:
        yield
    except Lost as lost:
        raise Failure(str(lost), advice(config, lost), lost.code) from None


def _units(config: Config, held: list[processes.Deleted]) -> list[str]:
    """Return the units of the holders; Litestream's is started by the next replication as well."""
    if not config.owner or os.geteuid() != 0:
        return []
    known = [*config.application_units, replica.UNIT]
    return sorted({unit for each in held if (unit := processes.unit_of(each.pid, known))})


def _by_hand(held: processes.Deleted) -> str:
    return "; ".join(shell("cp", link, f"/root/rescued-{held.pid}{suffix}") for suffix, link in held.links.items())


def _copy(config: Config) -> dict[str, Any]:
    """Copy the deleted database while its holders stand still, prove it, and end them; runs as the owner."""
    staged = config.database.with_name(f".{config.database.name}.rescue")
    with ExitStack() as frozen, database.throwaway(staged):
        held = processes.deleted(config.database)
        stopped = [frozen.enter_context(_frozen(each.pid)) for each in held]
        source = held[0]
        try:
            size = sum(os.stat(link).st_size for link in source.links.values())
            host.require_free(staged, 2 * size + config.minimum_free_mb * host.MB, "the rescue")
            for suffix, link in source.links.items():
                packing.unpack(link, Path(f"{staged}{suffix}"), size)
        except OSError as error:
            raise Failure(
                f"{host.process_name(source.pid)} does not let its files be read: {error.strerror}",
                f"take them out as root, before it ends: {_by_hand(source)}",
            ) from None
        restore.to_wal(staged)
        fault = ""
        try:
            proof.examine(staged, f"the deleted {config.database.name}")
        except Failure as failure:
            fault = str(failure)
        rows = 0
        if not fault:
            with database.opened(staged, 0, immutable=True) as connection:
                rows = sum(objects.row_counts(connection).values())
        with interruption.change("the deleted database was copied"):
            folder = restore.folder_aside(config.database)
            kept = folder / config.database.name
            os.rename(staged, kept)
            guarded.sync(folder)
            guarded.sync(folder.parent)
        if fault:
            # They go on: what is damaged is no reason to end them.
            raise Failure(f"{fault}; the copy is kept in {kept}", f"see the backups: {config.command('backups')}")
        for descriptor in stopped:
            with suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
        # Its files are open until it has ended, which the descriptor tells (pidfd_open(2)).
        for descriptor in stopped:
            select.select([descriptor], [], [], STOP_SECONDS)
    return {"kept": str(kept), "rows": rows}


@contextmanager
def _frozen(pid: int) -> Iterator[int]:
    """Stop a process and lend its descriptor; at the end it goes on, unless it was ended meanwhile."""
    try:
        descriptor = os.pidfd_open(pid)
        signal.pidfd_send_signal(descriptor, signal.SIGSTOP)
    except PermissionError:
        raise Failure(
            f"{host.process_name(pid)} runs as another user, who alone may take its files out; nothing was changed",
            f"see whose it is: ps -o user= -p {pid}; then, as that user, or as root: ls -l /proc/{pid}/fd",
            Exit.FAILED,
        ) from None
    try:
        deadline = time.monotonic() + STOP_SECONDS
        while host.process_state(pid) not in "Tt" and time.monotonic() < deadline:
            time.sleep(0.01)
        yield descriptor
    finally:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(descriptor, signal.SIGCONT)
        os.close(descriptor)


def _place(config: Config, kept: Path) -> dict[str, Any]:
    """Put the copy in the database's place, unless one with rows stands there; runs as the owner."""
    with suppress(Lost):
        if database.exists(config.database):
            with database.opened(config.database, config.busy_timeout_ms, read_only=True) as connection:
                if any(objects.row_counts(connection).values()):
                    return {"placed": False}
    staged = config.database.with_name(f".{config.database.name}.rescue")
    with database.throwaway(staged):
        # A second name: killed in between, it is kept all the same.
        os.link(kept, staged)
        with restore.alone(config.database, config.application_units):
            restore.swap(config.database, staged)
    kept.unlink()
    kept.parent.rmdir()
    return {"placed": True}
