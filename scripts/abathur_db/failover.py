"""Failover: a host is fenced, so that nothing writes on it; a standby is promoted; a former primary follows."""

from __future__ import annotations

import json
import os
import shutil
import time
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from abathur_db import (
    database,
    foreign,
    guarded,
    host,
    interruption,
    progress,
    proof,
    release,
    replica,
    replication,
    restore,
    runs,
    shape,
    standby,
)
from abathur_db.config import Config
from abathur_db.result import Check, Exit, Failure, Result, shell

DROP_IN = "abathur-db-fenced.conf"
UNIT_TYPES = (".service", ".socket", ".timer", ".path", ".target", ".mount", ".slice", ".scope", ".swap", ".device")
ASSERTION = f"""# Written by abathur-db fence: of a primary and its standbys one alone may write.
[Unit]
AssertPathExists=!{host.FENCE}
"""


REJOIN = "ansible-playbook playbooks/rejoin.yml"


def refuse(config: Config, command: str) -> None:
    """Refuse a command that would write on a host that is fenced. Raises Failure always."""
    check = may_write(config)
    raise Failure(f"{command} is the primary's work: {check.measured}", check.hint)


def may_write(config: Config) -> Check:
    """Check that this host is not fenced."""
    since = host.fenced() if config.owner else ""
    measured, hint = "not fenced", ""
    if since and standby.is_one(config):
        measured = "this host is a standby"
        hint = "work on the primary; to make this host the primary: ansible-playbook playbooks/failover.yml"
    elif since:
        measured = f"this host is fenced since {since}: its application and its jobs do not start"
        taken_back = "if it was a mistake, take it back: abathur-db unfence"
        # Where the settings cannot be read, a replica is taken for granted: the playbook refuses without one.
        hint = f"if another host is the primary, make this one its standby: {REJOIN}; {taken_back}"
        with suppress(Failure):
            hint = hint if replica.settings(config) else f"no other host can replace this one; {taken_back}"
    return Check("fence", not since, "a host that may write", measured, hint)


def check(config: Config) -> list[Check]:
    """Check that a standby has a copy that answers; of a host that is replicated, or fenced, that it may write."""
    if standby.is_one(config):
        return standby.checks(config)
    fence = may_write(config)
    return [fence] if config.owner and (replica.settings(config) or not fence.ok) else []


def _drop_ins(config: Config) -> list[Path]:
    # systemd takes a name without a type for a service, everywhere but here.
    names = [unit if unit.endswith(UNIT_TYPES) else f"{unit}.service" for unit in config.application_units]
    return [host.UNITS / f"{name}.d" / DROP_IN for name in names]


def _replicates() -> bool:
    """Tell whether replication starts at boot: until it has sent all, it does."""
    return (host.UNITS / "multi-user.target.wants" / replica.UNIT).is_symlink()


def complete(config: Config) -> bool:
    """Tell whether the fence is there, every unit of the application asks for it, and replication has ended."""
    return bool(host.fenced()) and all(each.is_file() for each in _drop_ins(config)) and not _replicates()


def fence(
    config: Config, lose_rows: bool, yes: bool = True, not_replicated: bool = False, dry_run: bool = False
) -> Result:
    """Stop what writes on this host, jobs, application and replication, and keep it from starting, also at boot.

    Replication is stopped once all that was committed has arrived; with `lose_rows` in any case. Asks at a terminal,
    unless `yes`. `not_replicated`: also where no other host could take over. Runs as root. Raises Failure when it has
    not arrived: all but replication is stopped then.
    """
    if complete(config):
        return Result("fence", f"fenced already, since {host.fenced()}")
    if not host.fenced() and not not_replicated and replica.settings(config) is None:
        raise Failure(
            "this host is not replicated, so no other one could take over, and a fence would only stop it; "
            "nothing was changed",
            f"to stop its application alone: {_stop_application(config)}; to fence it all the same: "
            "abathur-db fence --not-replicated",
            Exit.USAGE,
        )
    stopped = ", ".join(["every job", *config.application_units, "replication"])
    if dry_run:
        return Result("fence", f"would stop {stopped}, and keep them stopped", changed=True)
    if not yes and not progress.agreed(f"This stops {stopped} on this host, also at boot, until abathur-db unfence."):
        raise Failure("nothing was changed", "to do it without the question: abathur-db fence --yes", Exit.USAGE)
    if not host.fenced():
        told = "".join(f"{each}\n" for each in [runs.now(), *_timers()])
        with interruption.change("this host is fenced"):
            runs.write_whole(host.FENCE, told, durable=True, mode=0o644)
    for each in _drop_ins(config):
        guarded.made(each.parent)
        runs.write_whole(each, ASSERTION, durable=True, mode=0o644)
        each.parent.chmod(0o755)
    host.control("daemon-reload")
    if timers := _timers():
        host.control("disable", "--now", *timers)
    host.control("stop", "abathur-db@*.service", *_application(config))
    if _replicates():
        found = replica.settings(config)
        # A standby has nothing of its own to send.
        if found and not found.standby and not lose_rows:
            host.as_owner(config.owner, lambda: _sent(config, found))
        host.control("disable", "--now", replica.UNIT)
    summary = "jobs, application and replication are stopped, and stay so, until abathur-db unfence"
    return Result("fence", summary, changed=True)


def unfence(config: Config, dry_run: bool = False) -> Result:
    """Take a fence back: timers, application and replication run again as they did before. Runs as root.

    Raises Failure on a standby, and where another host is the primary by now, or may be.
    """
    since, timers = host.fenced(), host.fence_lines()[1:]
    if not since:
        return Result("unfence", "this host is not fenced")
    if standby.is_one(config):
        raise Failure(
            "this host is a standby: its fence keeps its application off the copy of another one's database",
            "to make it the primary: ansible-playbook playbooks/failover.yml",
        )
    replicated = replica.settings(config) is not None
    back = [*_application(config), *([replica.UNIT] if replicated else []), *timers]
    if dry_run:
        return Result("unfence", f"would start {', '.join(back)}", changed=True)
    if replicated:
        # Which refuses where another host has begun a newer lineage.
        promote(config, lose_rows=False, alone=False)
    else:
        units = _application(config)
        release.note(config, units)
        _unfence(config)
        release.start(config, units)
    hint = "" if timers else "its timers come with a deploy: ansible-playbook deploy.yml"
    summary = f"the fence of {since} is gone; started: {', '.join(back)}"
    return Result("unfence", summary, changed=True, data={"started": back}, hint=hint)


def _timers() -> list[str]:
    return [f"abathur-db@{job}.timer" for job in host.enabled_timers()]


def _stop_application(config: Config) -> str:
    return shell("systemctl", "stop", *(config.application_units or ["UNIT"]))


def _sent(config: Config, found: replica.Settings) -> dict[str, Any]:
    """Return nothing, once all has arrived. Raises Failure when it does not."""
    if fault := replication.wait(config, found, standby.LEVEL_SECONDS):
        raise Failure(
            f"jobs and application are stopped, but the last changes are not at the replica: {fault}",
            "run this again; to do without them: -e abathur_db_failover_lose_rows=true, by hand: abathur-db fence "
            "--lose-rows; or let this host go on as the primary: abathur-db promote",
        )
    return {}


def _application(config: Config) -> list[str]:
    """Return the application's units that this host has."""
    found = host.properties_of(config.application_units, "LoadState")
    return [name for name, unit in found.items() if unit["LoadState"] == "loaded"]


def _unfence(config: Config) -> None:
    """Take the fence away, and let the timers that it has switched off run again."""
    timers = host.fence_lines()[1:]
    for each in _drop_ins(config):
        each.unlink(missing_ok=True)
    with interruption.change("the fence was taken away"):
        host.FENCE.unlink(missing_ok=True)
    host.control("daemon-reload")
    if there := [each for each in timers if (host.UNITS / each).exists()]:
        host.control("enable", "--now", *there)


def _sole(config: Config, found: replica.Settings) -> dict[str, Any]:
    """Return which other primary could not be seen.

    Raises Failure when another host has begun a newer lineage than this host's own, or may have.
    """
    try:
        newer = replica.newer(config, found)
    except Failure as failure:
        # Until the fence is complete no playbook promotes another host, and a store that is away must not stop both.
        if not _replicates():
            raise
        return {"added": f"whether another host was promoted could not be seen: {failure}"}
    if newer:
        raise Failure(
            f"lineage {newer:04} is newer than this host's: another host is the primary",
            "make this one a standby: ansible-playbook playbooks/rejoin.yml; to go on with this one instead, "
            "fence the other, then here: abathur-db promote --new-lineage",
        )
    return {"added": "one that was promoted a moment ago, whose first copy has not arrived yet, could not be seen"}


def promote(config: Config, lose_rows: bool, alone: bool, new_lineage: bool = False, dry_run: bool = False) -> Result:
    """Make a standby the primary: last changes, full check, its own lineage, the application started. Runs as root.

    On a fenced primary that no other one has replaced, the fence goes. `lose_rows`: also when the copy is behind the
    replica by more than the limit of the lag. `alone`: its primary is fenced or off, which a standby cannot see.
    `new_lineage`: on a primary, begin one newer than another host's, which is fenced, or than its own, when
    that cannot be read back. Can be run again after it was killed. Raises Failure where another host is the primary, or
    may be.
    """
    if host.fenced() and replica.settings(config) is None:
        raise Failure(f"this host is not replicated, and fenced since {host.fenced()}", "abathur-db unfence")
    found = replica.required(config)
    own = host.as_owner(config.owner, lambda: {"exists": database.exists(config.database)})["exists"]
    # A fenced host has no timers, nor has a standby.
    fenced, timers = bool(host.fenced()), host.fence_lines()[1:]
    added = ", and the fence is gone" if fenced else ""
    if own and not found.standby and not new_lineage:
        added += f"; {host.as_owner(config.owner, lambda: _sole(config, found))['added']}"
    if own and not new_lineage and not fenced and not release.stopped(config):
        return Result("promote", f"{config.database} is this host's own already: it is a primary")
    if not own and not alone:
        raise Failure(
            "the primary may be at work, and nobody said that it is not; nothing was done",
            "on the primary: abathur-db fence; or see that it is off; then here: abathur-db promote --alone",
        )
    if dry_run:
        said = {} if own else host.as_owner(config.owner, lambda: _caught_up(config, found, lose_rows))
        return Result("promote", "would make this host the primary", changed=True, data=said)
    data: dict[str, Any] = {}
    if own and new_lineage:
        # Asked before anything is stopped: the store may be away.
        last = host.as_owner(config.owner, lambda: {"lineage": replica.newest(config, found), "url": found.url})
        host.control("stop", replica.UNIT)
        host.as_owner(config.owner, lambda: replica.remember(config, last))
        added += f"; its replication begins lineage {last['lineage'] + 1:04}"
    if not own:
        begun = time.monotonic()
        host.control("start", replica.FOLLOW)
        data = host.as_owner(config.owner, lambda: _caught_up(config, found, lose_rows))
        host.control("stop", replica.FOLLOW)
        data["seconds_to_catch_up"] = round(time.monotonic() - begun, 3)
        data |= host.as_owner(config.owner, lambda: _take(config, found))
    if found.standby:
        release.forget(config)
    # Before it is no standby any more: killed then, it goes on at the next try, also while the store is away.
    host.control("enable", replica.UNIT)
    _note(standby_now=False)
    # Killed before they run, this goes on at the next try.
    units = [replica.UNIT, *_application(config)]
    release.note(config, units)
    _unfence(config)
    if (host.UNITS / replica.FOLLOW).exists():
        host.control("disable", "--now", replica.FOLLOW)
    host.control("enable", "--now", replica.UNIT)
    release.start(config, units)
    told = (
        f"the copy of lineage {data['lineage']:04}, with all until {data['recovery_point']}, is the database now"
        f" (last changes {data['seconds_to_catch_up']:.1f} s, full check {data['seconds_to_check']:.1f} s)"
        f"{'; it may lack changes of the replica: ' + data['fault'] if data['fault'] else ''}"
        if data
        else f"{config.database} is this host's own{added}"
    )
    bare = data or (fenced and not timers)
    hint = "its timers come with a deploy: ansible-playbook deploy.yml" if bare else ""
    return Result("promote", f"this host is the primary: {told}", changed=True, data=data, hint=hint)


def _caught_up(config: Config, found: replica.Settings, lose_rows: bool) -> dict[str, Any]:
    """Return what the copy has, once it has all of the replica. Raises Failure when it lacks more than the limit."""
    if standby.current(config) is None:
        raise Failure(f"{standby.place(config)} has no copy that has caught up once", standby.LOG)
    if (version := standby.version(config)) > shape.latest():
        raise Failure(
            f"the copy has schema version {version}, newer than this host's tool, which knows {shape.latest()}",
            "deploy this standby: ansible-playbook deploy.yml --limit HOST",
        )
    fault, moment = standby.level(config, found, standby.LEVEL_SECONDS)
    copy = standby.known(config, found)
    if not fault:
        return {"lineage": copy["lineage"], "recovery_point": moment, "fault": ""}
    last = replication.arrived(config, found)
    arrived = "an unknown time" if last is None else datetime.fromtimestamp(last, UTC).isoformat()
    lag = float("inf") if last is None else time.time() - last
    # Of a time to come, by a clock that was set back: how long ago is not known.
    if abs(lag) > found.maximum_lag_seconds and not lose_rows:
        ago = "of a time to come" if lag < 0 else f"more than {found.maximum_lag_seconds} s ago"
        raise Failure(
            f"the standby had all of the replica at {arrived}, {ago}: {fault}",
            "wait until it has caught up (abathur-db status); to do without what it lacks: "
            "ansible-playbook playbooks/failover.yml -e abathur_db_failover_lose_rows=true",
        )
    return {"lineage": copy["lineage"], "recovery_point": arrived, "fault": fault}


def _take(config: Config, found: replica.Settings) -> dict[str, Any]:
    """Check the copy fully and put it in the database's place; one that may be torn is fetched anew first.

    Litestream notes a change once it has written all of its pages: stopped in between, it leaves a part of it, which no
    check of SQLite's has to find. A primary that goes on writing does that.
    """
    begun = time.monotonic()
    copy = standby.current(config)
    if copy is None:
        raise Failure(f"{standby.place(config)} has no copy any more", standby.LOG)
    point = _anew(config, found, copy) if standby.level(config, found, 0)[0] else None
    name = f"the copy {copy.path}"
    try:
        proof.examine(copy.path, name)
    except Failure:
        point = point or _anew(config, found, copy)
        if point is None:
            raise
        proof.examine(copy.path, name)
    copy.path.chmod(0o600)
    restore.to_wal(copy.path)
    # One that was cut off from its controller, and goes on while this was begun anew: its application writes by now.
    if database.exists(config.database):
        raise Failure(f"{config.database} is there by now: another promotion was faster", "see it: abathur-db status")
    # Else one that this host, once a primary, has not begun would look like another primary's.
    taken = {"lineage": point.lineage, "url": found.url} if point else standby.known(config, found)
    replica.remember(config, taken)
    with interruption.change(f"the copy of the replica became {config.database}"):
        os.rename(copy.path, config.database)
        guarded.sync(config.database.parent)
    shutil.rmtree(standby.place(config))
    fetched = {"lineage": point.lineage, "recovery_point": point.moment.isoformat(), "fault": ""} if point else {}
    return {**fetched, "seconds_to_check": round(time.monotonic() - begun, 3)}


def _anew(config: Config, found: replica.Settings, copy: standby.Copy) -> replica.Point | None:
    """Put the newest state of the replica in the place of a copy; None, with the copy as it was, when there is none."""
    fetched = copy.folder / "fetched"
    try:
        if point := replica.point(config, found):
            replica.fetch(config, found, point, fetched)
            os.replace(fetched, copy.path)
    except Failure:
        guarded.clear(fetched)
        return None
    return point


def _note(*, standby_now: bool) -> None:
    """Say in the settings what this host is from now on: the next deploy says the same, from its inventory."""
    values = foreign.record(replica.SETTINGS.read_text(encoding="utf-8"))
    before = replica.SETTINGS.stat()
    text = json.dumps({**values, "standby": standby_now}, sort_keys=True) + "\n"
    with interruption.change(f"this host is {'a standby' if standby_now else 'a primary'} from now on"):
        runs.write_whole(replica.SETTINGS, text, durable=True, mode=0o640)
    os.chown(replica.SETTINGS, before.st_uid, before.st_gid)


def rejoin(config: Config, dry_run: bool = False) -> Result:
    """Make a former primary ready to be a standby: fenced, its database kept aside whole. Runs as root.

    Raises Failure on the primary itself, which has the newest lineage.
    """
    found = replica.settings(config)
    own = host.as_owner(config.owner, lambda: {"exists": database.exists(config.database)})["exists"]
    if not own:
        return Result("rejoin", "this host has no database of its own")
    if found is None or not host.as_owner(config.owner, lambda: {"newer": replica.newer(config, found)})["newer"]:
        raise Failure(
            f"{config.database} may be the newest there is: no other host has begun a lineage after this one's",
            "fail over first (playbooks/failover.yml), or take this host out of the inventory group abathur_standby",
        )
    if dry_run:
        return Result("rejoin", f"would fence this host and keep {config.database} aside", changed=True)
    # What it has not sent is in its own database, which is kept.
    fence(config, lose_rows=True)
    kept = host.as_owner(config.owner, lambda: {"kept": _aside(config)})["kept"]
    _note(standby_now=True)
    return Result("rejoin", f"this host's own database is kept in {kept}", changed=True, data={"kept": kept})


def _aside(config: Config) -> str:
    with restore.alone(config.database, config.application_units):
        return str(restore.put_aside(config.database))
