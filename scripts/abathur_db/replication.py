"""Replicating: the service that sends every change, the job that proves their arrival, and what status says of both."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from abathur_db import database, foreign, guarded, host, replica, runs, standby, wal, watch
from abathur_db.config import Config
from abathur_db.replica import UNIT
from abathur_db.result import Check, Failure, Result, summarize

LOG = f"see why: journalctl -u {UNIT.removesuffix('.service')} -n 50"

FIRST_COPY_SECONDS = 900
"""Time in which the first copy of a lineage may still be on its way: 10 GB took some 200 s."""

RECENT_SECONDS = 120
"""Age up to which a failed start is the one that matters: systemd tries again every 10 s."""

NOTHING: dict[str, Any] = {"lineage": 0, "lag_seconds": None, "arrived": None, "unsent_bytes": 0}
"""What is known before the first run of the job."""


def replicate(config: Config) -> Result:
    """Run Litestream, which sends every change to the database's lineage until it is stopped; systemd calls this.

    Raises Failure where there is nothing to replicate, when a new lineage cannot be begun, and as watch.run does.
    """
    found = replica.required(config)
    database.require(config.database)
    number = replica.lineage(config, found)
    path = replica.home(config) / "litestream.yml"
    # Each step of its way through the log is looked at: watch.py. JSON is YAML.
    told = replica.configuration(config, found, number, "debug")
    runs.write_whole(path, json.dumps(told, indent=2) + "\n")
    watch.run(config, number, [str(found.litestream), "replicate", "-no-expand-env", "-config", str(path)])
    return Result("replicate", f"stopped; {config.database} is not replicated")


def replication(config: Config) -> Result:
    """Prove that the last change has arrived at the replica, and record how long that took.

    The lag is the age of the newest state known to be there. Fails when it is over the limit, or when nothing
    replicates.
    """
    found = replica.required(config)
    begun, started = time.time(), time.monotonic()
    limit = found.maximum_lag_seconds
    fault = standby.level(config, found, limit)[0] if found.standby else wait(config, found, limit)
    last = begun if not fault else arrived(config, found)
    # The clock may have been set meanwhile. Set back, what has arrived seems to be of a time to come: as far from now
    # as it seems, its age is not known.
    age = time.monotonic() - started if not fault else time.time() - last if last else None
    lag = None if age is None else abs(age)
    first = _first(config, found, fault) if last is None else _copies(config, found, age)
    known = _known(config, found)
    data = {
        "lineage": known.get("lineage", 0),
        "url": found.url,
        "lag_seconds": None if lag is None else round(lag, 3),
        "arrived": None if last is None else f"{datetime.fromtimestamp(last, UTC):%Y-%m-%dT%H:%M:%S+00:00}",
        "unsent_bytes": _unsent(config),
    }
    since = "nothing has arrived yet" if lag is None else f"the last change that arrived is {lag:.0f} s old"
    if age is not None and age < 0:
        since = f"the clock was set back: by it the last change arrives {lag:.0f} s from now"
    check = Check(
        "replication_lag",
        first or (lag is not None and lag <= limit),
        f"every change at the replica within {limit} s",
        f"{since}: {'a whole copy is on its way' if first else fault}" if fault else f"{lag:.1f} s",
        replica.HINTS.get(fault.rpartition(": ")[2], LOG),
        warning=bool(fault),
    )
    checks = [check, *([] if found.standby else _of_primary(config, found, fault))]
    summary, hint = summarize("replication", checks)
    if not hint and not fault:
        summary = f"the last change arrived within {lag:.1f} s, in lineage {data['lineage']:04}"
    elif not hint:
        summary = check.measured
    return Result("replication", summary, checks=checks, data=data, hint=hint)


def _known(config: Config, found: replica.Settings) -> dict[str, Any]:
    return standby.known(config, found) if found.standby else replica.last_lineage(config) or {}


def _first(config: Config, found: replica.Settings, fault: str) -> bool:
    """Tell whether the first copy may still be on its way."""
    if found.standby:
        return standby.first_copy_age(config) < FIRST_COPY_SECONDS
    slow = fault in (replica.SILENT, replica.TAKES_NOTHING) and _uptime(config, found) < FIRST_COPY_SECONDS
    return slow and not _has_any(config, found)


def _has_any(config: Config, found: replica.Settings) -> bool:
    """Tell whether something of this host's lineage is at the store: its first file is the whole copy."""
    try:
        return bool(replica.changes(config, found, int(_known(config, found).get("lineage", 0)) or 1))
    except Failure:
        return False


def _copies(config: Config, found: replica.Settings, age: float | None) -> bool:
    """Tell whether a standby, which starts with a new copy each time it is started, is at that, and not for long."""
    copies = standby.copies(config) if found.standby else []
    return bool(copies) and copies[0] != standby.current(config) and age is not None and 0 <= age < FIRST_COPY_SECONDS


def _of_primary(config: Config, found: replica.Settings, fault: str) -> list[Check]:
    """Check what only a primary has. A store that did not answer just now is not waited for once more."""
    alone = [] if fault in replica.UNANSWERED else _alone(config, found)
    return [*alone, _readable(config)]


def _alone(config: Config, found: replica.Settings) -> list[Check]:
    """Check that no other host has begun a newer lineage; a store that does not answer is told of by the lag."""
    try:
        newer = replica.newer(config, found)
    except Failure:
        return []
    said = f"lineage {newer:04} has begun after this host's: another host believes that it is the primary as well"
    hint = "let one alone write: ansible-playbook playbooks/failover.yml fences this host, playbooks/rejoin.yml then"
    return [Check("sole_primary", not newer, "one primary", said if newer else "one", f"{hint} makes it a standby")]


def _readable(config: Config) -> Check:
    """Check that Litestream can read back what it has sent: a store may lose what it took."""
    why = replica.noted_unreadable(config)
    return Check("replica_readable", not why, "a replica that can be restored", why or "read back", replica.ANEW)


def wait(config: Config, found: replica.Settings, seconds: float) -> str:
    """Wait until what is committed has arrived, for `seconds`; return what went wrong, empty for nothing."""
    deadline = time.monotonic() + seconds
    path = replica.socket(config)
    # Just after its start the service does not answer yet.
    while not _answers(path):
        if time.monotonic() > deadline:
            return f"replication is not running{_refused(config)}"
        time.sleep(0.2)
    while True:
        try:
            wal.arrive(config, found, deadline - time.monotonic())
        except Failure as failure:
            fault = str(failure).partition("cannot be read: ")[2] or str(failure)
            if fault != replica.ASTRAY or time.monotonic() >= deadline:
                return fault
            _begin_anew(config, found)
        else:
            return ""


def _refused(config: Config) -> str:
    """Return why the service did not come up at its last try, if that was just now; empty for no such reason."""
    last = runs.known(config, "last", "replicate")
    if last is None or last["ok"]:
        return ""
    seconds = (datetime.now(UTC) - foreign.moment(last["finished"])).total_seconds()
    return f": {last['summary']}" if 0 <= seconds < RECENT_SECONDS else ""


def _answers(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(str(path))
        except OSError:
            return False
    return True


def _told(config: Config, found: replica.Settings) -> dict[str, Any]:
    """Return what the running Litestream tells of itself; empty when it does not."""
    options = ("-json", "-timeout", "5", "-socket", str(replica.socket(config)))
    try:
        return foreign.record(replica.run(found, "info", *options, seconds=10))
    except (Failure, ValueError):
        return {}


def _uptime(config: Config, found: replica.Settings) -> float:
    seconds = _told(config, found).get("uptime_seconds")
    return seconds if foreign.is_number(seconds) else FIRST_COPY_SECONDS


def arrived(config: Config, found: replica.Settings) -> float | None:
    """Return when the replica, or a standby's copy, was last proven to have everything, by this job, in this lineage.

    In seconds since 1970; None when that is not known.

    Litestream's own last_sync_at does not say it: it moves on while Litestream fails to read the log.
    """
    success = runs.known(config, "success", "replication")
    wanted = {"lineage": _known(config, found).get("lineage"), "url": found.url}
    if not success or any(success["data"].get(name) != value for name, value in wanted.items()):
        return None
    try:
        return foreign.moment(success["data"].get("arrived")).timestamp()
    except ValueError:
        return None


def _begin_anew(config: Config, found: replica.Settings) -> None:
    """End Litestream, which is then started on an emptied log."""
    pid = _told(config, found).get("pid")
    if type(pid) is int and pid > 0:
        os.kill(pid, signal.SIGTERM)


def _unsent(config: Config) -> int:
    """Return the bytes of changes that Litestream keeps on the host: those to send, and those of the last 5 minutes."""
    return sum(facts.st_size for facts in map(guarded.facts, replica.home(config).rglob("*.ltx")) if facts)


def state(config: Config) -> dict[str, Any] | None:
    """Return what the last run of the job found: `lineage`, `url`, `lag_seconds`, `arrived`, `unsent_bytes`.

    None where nothing is replicated. What is no such record, which the database's owner could write, is as if the job
    had not run.
    """
    found = replica.settings(config)
    if found is None:
        return None
    last = runs.known(config, "last", "replication")
    known = {**NOTHING, **({name: last["data"].get(name) for name in NOTHING} if last else {})}
    return {**(known if _sound(known) else NOTHING), "url": found.url}


def _sound(known: dict[str, Any]) -> bool:
    if type(known["lineage"]) is not int or type(known["unsent_bytes"]) is not int:
        return False
    if known["arrived"] is None:
        return known["lag_seconds"] is None
    try:
        foreign.moment(known["arrived"])
    except ValueError:
        return False
    return foreign.is_number(known["lag_seconds"])


def check(config: Config) -> list[Check]:
    """Check that the service runs; the job's own result tells of the lag."""
    if replica.settings(config) is None:
        return []
    unit = replica.FOLLOW if standby.is_one(config) else UNIT
    active = host.unit_properties(unit, "ActiveState").get("ActiveState", "unknown")
    return [Check("replication", active == "active", "active", f"{unit} is {active}", f"systemctl restart {unit}")]


def line(known: dict[str, Any]) -> str:
    """Return the sentence of status."""
    lag = known["lag_seconds"]
    said = "nothing is known to have arrived" if lag is None else f"{lag:.1f} s behind at {known['arrived']}"
    return f"replica: {known['url']}, lineage {known['lineage']:04}, {said}"
