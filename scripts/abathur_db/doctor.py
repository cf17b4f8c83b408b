"""The doctor: what is wrong with a database and its host, the evidence, and the one command that repairs it.

Answers the design document's troubleshooting (section 8) and its common relatives. It changes nothing. What
needs SQLite is examined as the database's owner; processes are seen by root, or as far as the owner may.
"""

from __future__ import annotations

import json
import os
import sqlite3
import stat
import time
from contextlib import suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from abathur_db import (
    ailments,
    catalog,
    database,
    failover,
    foreign,
    guarded,
    host,
    interruption,
    processes,
    replica,
    replication,
    requirements,
    rescue,
    runs,
    schema,
    status,
)
from abathur_db.config import Config
from abathur_db.result import Check, Exit, Failure, Result, counted, shell
from abathur_db.weights import heaviest_first

ACKNOWLEDGED = "acknowledged.json"
"""The warnings that somebody has accepted, by check, with their sentence."""

DISK_ALARM_PERCENT = 10
"""Free share of a disk under which it is called low (design document, section 7.2)."""

LOOKS = 5
"""Times the write lock is looked at: one look may fall between two transactions of a writer that hogs it."""


def doctor(config: Config, accept: bool = False) -> Result:
    """Examine the database and its host; each check that fails is a diagnosis.

    `accept`: the warnings of now are known, and are no warnings from now on. `measured` says what is wrong with its
    evidence, `hint` is the one command that repairs it.
    Raises Failure (USAGE) for somebody who is neither root nor the owner.
    """
    if os.geteuid() != 0:
        host.become(config.owner)
    elif config.owner:
        host.account(config.owner)
    checks = host.checked("fence", lambda: _fence(config))
    settings, fenced = _settings(config), bool(config.owner and host.fenced())
    # A standby's copy is Litestream's, and no application runs on it.
    if not (settings and settings.standby):
        files = host.checked("owner", lambda: _files(config))
        checks += files
        if not fenced:
            checks += host.checked("database", lambda: _database(config)) if all(each.ok for each in files) else []
            checks += host.checked("backup_age", lambda: _backups(config))
            checks += status.application(config)
    checks += host.checked("disks", lambda: _disks(config))
    # What a fence keeps stopped is no finding of its own.
    if not fenced or (settings and settings.standby):
        checks += host.checked("jobs", lambda: _jobs(config))
        checks += host.checked("replication", lambda: replication.check(config))
    checks.append(_sqlite())
    checks = host.as_owner(config.owner, partial(_acknowledged, config, checks, accept))["checks"]
    checks = [Check(**each) for each in checks]
    wrong = heaviest_first([check for check in checks if not check.ok], lambda check: check.id)
    findings = [{"id": each.id, "wrong": each.measured, "repair": each.hint} for each in wrong]
    if not wrong:
        warned = sum(check.warning for check in checks)
        also = f", {counted(warned, 'warning')}" if warned else ""
        return Result("doctor", f"nothing is wrong: {len(checks)} things examined{also}", checks=checks)
    more = f" (and {len(wrong) - 1} more)" if len(wrong) > 1 else ""
    summary = f"{wrong[0].measured}{more}"
    return Result("doctor", summary, checks=checks, data={"findings": findings}, hint=wrong[0].hint)


def _settings(config: Config) -> replica.Settings | None:
    """Return the settings of the replica; none as well where they cannot be read, which the checks of it tell."""
    with suppress(Failure):
        return replica.settings(config)
    return None


def _fence(config: Config) -> list[Check]:
    found = host.as_owner(config.owner, lambda: {"checks": [asdict(each) for each in failover.check(config)]})
    return [Check(**each) for each in found["checks"]]


def _files(config: Config) -> list[Check]:
    """Check owner and mode of the database's files: those of another user lock the application out (trap 12)."""
    uid = host.account(config.owner).pw_uid if config.owner else os.geteuid()
    user = guarded.user_name(uid).split()[0]
    found = {each: guarded.facts(each) for each in database.files(config.database)}
    there = {each: facts for each, facts in found.items() if facts and stat.S_ISREG(facts.st_mode)}
    foreign = {each: facts.st_uid for each, facts in there.items() if facts.st_uid != uid}
    open_to_others = {each: stat.S_IMODE(facts.st_mode) for each, facts in there.items() if facts.st_mode & 0o077}
    listed = ", ".join(f"{each.name} belongs to {guarded.user_name(other)}" for each, other in foreign.items())
    modes = ", ".join(f"{each.name} has mode {mode:04o}" for each, mode in open_to_others.items())
    return [
        Check(
            "owner",
            not foreign,
            f"every file of the database belongs to {user}",
            listed or f"{len(there)} files of {user}",
            shell("chown", "--no-dereference", f"{user}:", *foreign),
        ),
        # Only a warning: it harms nobody's work, and validate insists on it.
        Check(
            "mode",
            True,
            "nothing for other users",
            modes or "closed to other users",
            config.command("init"),
            warning=bool(open_to_others),
        ),
    ]


def _database(config: Config) -> list[Check]:
    gone = processes.deleted(config.database)
    if gone:
        # Everything else would be said of a file that the application does not use.
        names = ", ".join(sorted({host.process_name(each.pid) for each in gone}))
        said = f"{names} has the deleted {config.database.name} open: its rows are lost when that ends; restart nothing"
        return [Check("deleted_file", False, "everybody uses the file that is there", said, config.command("rescue"))]
    # Before anything is opened: the last connection to close writes the log back and deletes it.
    log = _wal(config)
    written = _written_now(config)
    answer = host.as_owner(config.owner, lambda: _as_owner(config, written))
    return [_locked(config, answer["locked"]), log, *(Check(**each) for each in answer["checks"])]


def _written_now(config: Config) -> bool:
    """Tell whether somebody holds the write lock, at one of a few looks."""
    for _ in range(LOOKS):
        if processes.writers(config.database):
            return True
        time.sleep(0.05)
    return False


def _as_owner(config: Config, written: bool) -> dict[str, Any]:
    """Try the write lock if somebody has it, then examine the inside; runs as the owner, its answer is JSON."""
    try:
        with rescue.advised(config):
            schema.refuse_stranger(config)
            # Before the lock is tried: there has to be something to lock.
            database.require(config.database)
        locked = written and ailments.locked(config)
        checks = ailments.examine(config)
    except Failure as failure:
        if failure.code is Exit.BUSY:
            return {"locked": True, "checks": []}
        said = [Check("database", False, "can be opened", str(failure), failure.hint)]
        return {"locked": False, "checks": [asdict(each) for each in said]}
    return {"locked": locked, "checks": [asdict(each) for each in checks]}


def _locked(config: Config, locked: bool) -> Check:
    seconds = f"{config.busy_timeout_ms / 1000:g} s"
    holders = processes.writers(config.database) if locked else []
    names = ", ".join(map(host.process_name, holders)) or "a process that is gone by now or cannot be seen from here"
    repair = processes.repair(holders[0], _units(config)) if holders else shell("fuser", "-v", config.database)
    measured = f"the database was locked for {seconds} by {names}" if locked else "the write lock is to be had"
    return Check("locked", not locked, f"a writer waits less than {seconds}", measured, repair)


def _units(config: Config) -> list[str]:
    """Return the units whose processes may have the database open for long."""
    return [*config.application_units, replica.UNIT]


def _wal(config: Config) -> Check:
    """Compare the write-ahead log with its limit, and name who keeps it from being used again."""
    index = processes.wal_index(config.database) or processes.WalIndex(0, 0, ())
    size = database.wal_bytes(config.database)
    good = size <= config.wal_limit_mb * host.MB
    behind = [each for each in processes.readers(config.database, index) if each.frame < index.frames]
    said = f"the write-ahead log has {host.readable(size)}, {index.written_back} of {index.frames} frames written back"
    # While it replicates Litestream alone can shorten it.
    shorten = f"systemctl restart {replica.UNIT}" if _settings(config) else config.command("checkpoint")
    repair = processes.repair(behind[0].pid, _units(config)) if behind else shorten
    if behind and not good:
        said += f"; {host.process_name(behind[0].pid)} reads a snapshot of frame {behind[0].frame} and pins the rest"
    elif not good:
        said += "; no reader pins it"
    return Check("wal", good, f"at most {config.wal_limit_mb} MB", said, repair)


def _disks(config: Config) -> list[Check]:
    """Check the free space of each file system that the bundle writes to."""
    seen: set[int] = set()
    paths = (config.database, config.backup_directory, config.state_directory)
    return [check for path in paths for check in host.checked("disk", partial(_disk, config, path, seen))]


def _disk(config: Config, path: Path, seen: set[int]) -> list[Check]:
    there = host.existing(path)
    device = os.stat(there).st_dev
    if device in seen:
        return []
    seen.add(device)
    space = os.statvfs(there)
    mount = host.mount_point(there)
    free, whole = space.f_bavail * space.f_frsize, max(space.f_blocks * space.f_frsize, 1)
    percent = 100 * free / whole
    good = free >= config.minimum_free_mb * host.MB
    # Evidence only: what was kept may be the only copy of rows, so whether it goes is for people to say.
    facts = {each.name: guarded.facts(each) for each in catalog.kept_aside(config)}
    kept = ", ".join(name for name, found in facts.items() if found and found.st_dev == device)
    stopped = ": jobs do not start"
    stopped += f"; former databases kept there, for you to delete when no longer needed: {kept}" if kept else ""
    return [
        Check(
            f"disk_{len(seen)}",
            good,
            f"at least {config.minimum_free_mb} MB and {DISK_ALARM_PERCENT} % free",
            f"{host.readable(free)} ({percent:.0f} %) free at {there}{'' if good else stopped}",
            f"{shell('du', '-xah', mount)} | sort -h | tail",
            warning=good and percent < DISK_ALARM_PERCENT,
        )
    ]


def _jobs(config: Config) -> list[Check]:
    """Check the timers, and the last result of each job."""
    if not config.owner:
        return []
    found = status.timers(config, [])
    if not found:
        return [Check("timers", False, "timers", "no timer is installed", "ansible-playbook deploy.yml")]
    checks = []
    lasts = status.last_runs(config, found)
    for job, timer in found.items():
        check = status.timer_checks({job: timer})[0]
        repair = f"systemctl enable --now abathur-db@{job}.timer"
        said = f"the timer of {job} is {check.measured}"
        checks.append(Check(check.id, check.ok, check.expected, said, repair))
        last = lasts[job]
        if last is not None and not last["ok"]:
            says = f" (it says: {last['hint']})" if last["hint"] else ""
            soon = timer["NextElapseUSecRealtime"]
            says += f"; it runs again by itself at {soon}" if soon else ""
            said = f"{job} failed at {last['finished']}: {last['summary']}{says}"
            checks.append(Check(f"job_{job}", False, "succeeded", said, f"systemctl start abathur-db@{job}"))
    return checks


def _backups(config: Config) -> list[Check]:
    if not config.owner:
        return []
    if gone := catalog.directory_check(config):
        return [gone]
    age = catalog.age_check(config, catalog.newest_verified(config))
    said = age.measured if age.ok else f"the newest verified backup is too old or absent: {age.measured}"
    return [Check(age.id, age.ok, age.expected, said, "systemctl start abathur-db@backup")]


def _acknowledged(config: Config, checks: list[Check], accept: bool) -> dict[str, Any]:
    """Let warnings that somebody has accepted be none; runs as the owner. `accept`: those of now are."""
    path = config.state_directory / ACKNOWLEDGED
    try:
        known = foreign.record(guarded.read_text(path))
    except (OSError, Failure, ValueError):
        known = {}
    if accept:
        known = {each.id: each.measured for each in checks if each.warning}
        guarded.directory(config.state_directory)
        with interruption.change("the warnings of now were accepted"):
            runs.write_whole(path, json.dumps(known, indent=2) + "\n", durable=True)
    # Another sentence is another matter, and so it is with another number in it.
    told = [
        replace(each, warning=False, measured=f"{each.measured} (accepted)")
        if each.warning and known.get(each.id) == each.measured
        else each
        for each in checks
    ]
    return {"checks": [asdict(each) for each in told]}


def _sqlite() -> Check:
    """Warn of a SQLite whose two checkpoints at one moment can corrupt the log (schema facts, trap 13)."""
    fixed = requirements.wal_reset_fix(sqlite3.sqlite_version_info)
    defect = "lacks the fix of the WAL-reset defect: two checkpoints at one moment can corrupt the database"
    return Check(
        "sqlite_wal_reset",
        True,
        "SQLite 3.51.3, 3.50.7, 3.44.6 or later",
        f"SQLite {sqlite3.sqlite_version} {'has the fix of the WAL-reset defect' if fixed else defect}",
        "let one process alone checkpoint, as the jobs leave it to the application, or give that a SQLite of its own; "
        "no Debian release has the fix yet; once you know, to hear no more of it: abathur-db doctor --accept",
        warning=not fixed,
    )
