"""What a host can tell of itself at a glance."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

from abathur_db import (
    __version__,
    catalog,
    database,
    failover,
    host,
    maintenance,
    replica,
    replication,
    rescue,
    runs,
    schema,
    shape,
    standby,
)
from abathur_db.config import Config
from abathur_db.result import Check, Failure, Result, shell, summarize


def timers(config: Config, jobs: list[str]) -> dict[str, dict[str, str]]:
    """Return job -> properties of its timer, for the named jobs and all that are installed.

    A database of one's own has none, nor has a machine without systemd.
    """
    if not config.owner:
        return {}
    listed = host.systemctl("list-unit-files", "abathur-db@*.timer", "--no-legend", "--plain")
    wanted = sorted({f"abathur-db@{job}.timer" for job in jobs} | {line.split()[0] for line in listed})
    found = host.properties_of(wanted, "ActiveState", "SubState", "UnitFileState", "NextElapseUSecRealtime")
    return {job_of(unit): properties for unit, properties in found.items()}


def job_of(unit: str) -> str:
    """Return the job in the name of an instance: abathur-db@backup.timer is backup."""
    return unit.partition("@")[2].rpartition(".")[0]


def last_runs(config: Config, jobs: Iterable[str]) -> dict[str, dict[str, Any] | None]:
    """Return job -> its last run, None where it never ran.

    A job that was killed, ran out of time, or could not be started leaves no record: systemd knows of it
    until the unit runs again, or the host starts anew.
    """
    names = {f"abathur-db@{job}.service": job for job in jobs}
    wanted = ("ActiveState", "Result", "ExecMainStatus", "InvocationID", "InactiveEnterTimestampMonotonic")
    units = host.properties_of(list(names), *wanted)
    return {job: _last_run_or_why(config, job, units.get(unit, {})) for unit, job in names.items()}


def _last_run_or_why(config: Config, job: str, unit: dict[str, str]) -> dict[str, Any] | None:
    """Return the last run; where its record cannot be read, a failed one of now that says why."""
    try:
        with host.translated():
            return _last_run(config, job, unit)
    except Failure as failure:
        said = f"its result cannot be read: {failure}"
        return {**runs.RECORD, "summary": said, "hint": failure.hint, "finished": runs.now()}


def _last_run(config: Config, job: str, unit: dict[str, str]) -> dict[str, Any] | None:
    last = runs.known(config, "last", job)
    if unit.get("ActiveState") != "failed" or (last and last["invocation"] == unit["InvocationID"]):
        # What systemd has forgotten since, by a start of the host, was noted by the alert.
        return runs.last(config, job)
    # The other timestamps are texts in the host's time zone.
    ago = timedelta(seconds=time.monotonic() - int(unit["InactiveEnterTimestampMonotonic"]) / 1e6)
    ended = (datetime.now(UTC) - ago).replace(microsecond=0)
    # Run by hand since.
    if last and runs.later(last, ended.isoformat()):
        return last
    status = unit["ExecMainStatus"]
    if unit["Result"] in ("signal", "core-dump"):
        status = signal.Signals(int(status)).name
    why = f": {host.EXIT_CODES[status]}" if status in host.EXIT_CODES else ", without a word of its own"
    return {
        **runs.RECORD,
        "summary": f"ended with {unit['Result']} {status}{why}",
        "finished": ended.isoformat(),
    }


def _application(config: Config, _: dict[str, Any]) -> list[Check]:
    return application(config)


def application(config: Config) -> list[Check]:
    """Check that systemd has not given an application's unit up; one that is enabled and does not run is a warning.

    On a standby, and where a fence keeps it stopped, there is nothing to look at.
    """
    if not config.owner or host.fenced():
        return []
    checks = []
    found = host.properties_of(config.application_units, "LoadState", "ActiveState", "UnitFileState", "Type")
    for unit, state in found.items():
        if state.get("LoadState") != "loaded":
            continue
        failed = state["ActiveState"] == "failed"
        idle = state["ActiveState"] == "inactive" and state["UnitFileState"] == "enabled" and state["Type"] != "oneshot"
        said = f"{unit} failed and stands" if failed else f"{unit} is enabled and does not run" if idle else ""
        start = shell("systemctl", "restart" if failed else "start", unit)
        checks.append(Check(unit, not failed, "runs", said or state["ActiveState"], start, warning=idle))
    return checks


def timer_checks(found: dict[str, dict[str, str]]) -> list[Check]:
    """Check that each timer is enabled, active, and has a next run.

    A timer whose job runs at the moment (SubState running) has its next run only when that has ended.
    """
    checks = []
    for job, timer in found.items():
        enabled, active, following = timer["UnitFileState"], timer["ActiveState"], timer["NextElapseUSecRealtime"]
        if timer.get("SubState") == "running":
            following = "after the one that runs now"
        checks.append(
            Check(
                f"timer_{job}",
                enabled == "enabled" and active == "active" and bool(following),
                "enabled, active, with a next run",
                f"{enabled or 'absent'}, {active}, next {following or 'never'}",
                f"systemctl enable --now abathur-db@{job}.timer (if it is absent: deploy again)",
            )
        )
    return checks


def status(config: Config) -> Result:
    """Tell version, schema, sizes, WAL, and the last result and next run of each job.

    A part that cannot be looked at is a failed check, and the others are told all the same.
    """
    data: dict[str, Any] = {"version": __version__, "database": str(config.database), "free_bytes": None, "jobs": {}}
    data |= dict.fromkeys(("replication", "standby", "newest_backup", "recovery_seconds"))
    data["kept_aside"] = []
    checks: list[Check] = []
    for name, look in (
        ("database", _database),
        ("fence", _fence),
        ("free_space", _disk),
        ("jobs", _jobs),
        ("application", _application),
        ("backups", _backups),
        ("replication", _replication),
    ):
        checks += host.checked(name, partial(look, config, data))
    summary, hint = summarize("status", checks)
    return Result("status", summary, checks=checks, data=data, hint=hint, table=_table(data))


def _table(data: dict[str, Any]) -> list[str]:
    recovery = data["recovery_seconds"]
    drilled = "no drill yet" if recovery is None else f"restored by the last drill in {recovery:.1f} s"
    lines = ["", f"abathur-db {data['version']}, {data['database']}"]
    lines.append(f"newest verified backup: {data['newest_backup'] or 'none'}; {drilled}")
    lines += [f"a standby: {data['standby']}"] if data["standby"] else []
    lines += [replication.line(data["replication"])] if data["replication"] else []
    lines += [f"kept by a restore, delete it when you no longer need it: {each}" for each in data["kept_aside"]]
    if data["jobs"]:
        lines.append(f"{'job':16} {'last result':12} {'last success':26} next run")
    for name, job in data["jobs"].items():
        last = "never ran" if job["ok"] is None else "succeeded" if job["ok"] else "failed"
        following = job["next_run"] or ("after this one" if job["running"] else "never")
        lines.append(f"{name:16} {last:12} {job['last_success'] or 'never':26} {following}")
    return [*lines, ""]


def _database(config: Config, data: dict[str, Any]) -> list[Check]:
    # Where the settings of the replica cannot be read, the part that is about them says so.
    with suppress(Failure):
        if standby.is_one(config):
            return []
    with (
        rescue.advised(config),
        database.opened(config.database, config.busy_timeout_ms, read_only=True) as connection,
    ):
        data["schema_version"] = database.pragma(connection, "user_version")
        data["journal_mode"] = connection.execute("PRAGMA journal_mode").fetchone()[0]
        data.update(maintenance.sizes(config, connection))
        shaped = [check for check in schema.checks(config, connection) if check.id != "schema_version"]
    known = shape.latest()
    version = Check(
        "database",
        data["schema_version"] == known,
        f"schema version {known}",
        f"schema version {data['schema_version']}, {host.readable(data['database_bytes'])}",
        config.bring_up,
    )
    return [version, *shaped, journal_mode(config, data["journal_mode"]), wal_size(config, data["wal_bytes"])]


def _fence(config: Config, data: dict[str, Any]) -> list[Check]:
    checks = failover.check(config)
    data["standby"] = checks[0].measured if standby.is_one(config) else None
    return checks


def journal_mode(config: Config, mode: str) -> Check:
    """Check that the database is in WAL mode."""
    return Check("journal_mode", mode == "wal", "wal", mode, f"switch it back: {config.command('init')}")


def wal_size(config: Config, size: int) -> Check:
    """Compare the write-ahead log with its limit (100 MB in the design document, section 7.2)."""
    return Check(
        "wal_size",
        size <= config.wal_limit_mb * host.MB,
        f"at most {config.wal_limit_mb} MB",
        host.readable(size),
        # While it replicates Litestream alone can shorten it.
        f"let Litestream begin anew: systemctl restart {replica.UNIT}"
        if _replicates(config)
        else f"move it into the database: {config.command('checkpoint')}",
    )


def _replicates(config: Config) -> bool:
    with suppress(Failure):
        return replica.settings(config) is not None
    return False


def _disk(config: Config, data: dict[str, Any]) -> list[Check]:
    free = data["free_bytes"] = host.free_bytes(config.database)
    return [
        Check(
            "free_space",
            free >= config.minimum_free_mb * host.MB,
            f"at least {config.minimum_free_mb} MB free",
            host.readable(free),
            f"free space there: {shell('df', '-h', config.database.parent)}",
        )
    ]


def _jobs(config: Config, data: dict[str, Any]) -> list[Check]:
    found = timers(config, [])
    checks = timer_checks(found)
    lasts = last_runs(config, found)
    for name, timer in found.items():
        checks += host.checked(f"job_{name}", partial(_job, config, data, name, timer, lasts[name]))
    return checks


def _job(
    config: Config, data: dict[str, Any], name: str, timer: dict[str, str], last: dict[str, Any] | None
) -> list[Check]:
    success = runs.known(config, "success", name)
    data["jobs"][name] = {
        "ok": last["ok"] if last else None,
        "summary": last["summary"] if last else "never ran",
        "finished": last["finished"] if last else None,
        "seconds": last.get("seconds") if last else None,
        "last_success": success["finished"] if success else None,
        "running": timer.get("SubState") == "running",
        "next_run": timer["NextElapseUSecRealtime"] or None,
    }
    if last is None:
        return []
    said, hint = f"{last['finished']}: {last['summary']}", f"see why: journalctl -u abathur-db@{name} -n 50"
    return [Check(f"job_{name}", last["ok"], "succeeded at its last run", said, hint)]


def _backups(config: Config, data: dict[str, Any]) -> list[Check]:
    data["kept_aside"] = [str(each) for each in catalog.kept_aside(config)]
    data["recovery_seconds"] = runs.measured(config, "drill", "recovery_seconds")
    if gone := catalog.directory_check(config):
        return [gone]
    newest = catalog.newest_verified(config)
    data["newest_backup"] = newest.id if newest else None
    return [catalog.age_check(config, newest)] if "backup" in data["jobs"] else []


def _replication(config: Config, data: dict[str, Any]) -> list[Check]:
    data["replication"] = replication.state(config)
    return replication.check(config)
