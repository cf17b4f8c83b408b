"""What a host can tell of itself at a glance."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

from abathur_db import __version__, catalog, database, failover, host, maintenance, replication, runs, schema, standby
from abathur_db.config import Config
from abathur_db.result import Check, Failure, Result, summarize


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
    return {job: _last_run(config, job, units.get(unit, {})) for unit, job in names.items()}


def _last_run(config: Config, job: str, unit: dict[str, str]) -> dict[str, Any] | None:
    last = runs.last(config, job)
    if unit.get("ActiveState") != "failed" or (last and last["invocation"] == unit["InvocationID"]):
        return last
    # The other timestamps are texts in the host's time zone.
    ago = timedelta(seconds=time.monotonic() - int(unit["InactiveEnterTimestampMonotonic"]) / 1e6)
    ended = (datetime.now(UTC) - ago).replace(microsecond=0)
    # Run by hand since.
    if last and last["finished"] > ended.isoformat():
        return last
    status = unit["ExecMainStatus"]
    if unit["Result"] in ("signal", "core-dump"):
        status = signal.Signals(int(status)).name
    return {
        **runs.RECORD,
        "summary": f"ended with {unit['Result']} {status}, without a word of its own",
        "finished": ended.isoformat(),
    }


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
    """Tell version, schema, sizes, WAL, and the last result and next run of each job."""
    data: dict[str, Any] = {"version": __version__, "database": str(config.database)}
    follows = standby.is_one(config)
    checks = [] if follows else [_database(config, data), *_wal(config, data)]
    checks += [*failover.check(config), _disk(config, data)]
    found = timers(config, [])
    data["jobs"] = _jobs(config, found)
    checks += timer_checks(found)
    for name, job in data["jobs"].items():
        if job["ok"] is not None:
            checks.append(
                Check(
                    f"job_{name}",
                    job["ok"],
                    "succeeded at its last run",
                    f"{job['finished']}: {job['summary']}",
                    f"see why: journalctl -u abathur-db@{name} -n 50",
                )
            )
    newest = catalog.newest_verified(config)
    if "backup" in found:
        checks.append(catalog.age_check(config, newest))
    checks += replication.check(config)
    data["replication"] = replication.state(config)
    data["standby"] = checks[0].measured if follows else None
    drilled = runs.known(config, "success", "drill")
    data["newest_backup"] = newest.id if newest else None
    data["recovery_seconds"] = drilled["data"].get("recovery_seconds") if drilled else None
    data["kept_aside"] = [str(each) for each in catalog.kept_aside(config)]
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


def _database(config: Config, data: dict[str, Any]) -> Check:
    try:
        with database.opened(config.database, config.busy_timeout_ms, read_only=True) as connection:
            data["schema_version"] = database.pragma(connection, "user_version")
            data["journal_mode"] = connection.execute("PRAGMA journal_mode").fetchone()[0]
            data.update(maintenance.sizes(config, connection))
    except Failure as failure:
        return Check("database", False, "can be opened", str(failure), failure.hint)
    known = schema.latest()
    return Check(
        "database",
        data["schema_version"] == known,
        f"schema version {known}",
        f"schema version {data['schema_version']}, {host.readable(data['database_bytes'])}",
        config.bring_up,
    )


def _wal(config: Config, data: dict[str, Any]) -> list[Check]:
    if "journal_mode" not in data:
        return []
    return [journal_mode(config, data["journal_mode"]), wal_size(config, data["wal_bytes"])]


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
        f"move it into the database: {config.command('checkpoint')}",
    )


def _disk(config: Config, data: dict[str, Any]) -> Check:
    free = data["free_bytes"] = host.free_bytes(config.database)
    return Check(
        "free_space",
        free >= config.minimum_free_mb * host.MB,
        f"at least {config.minimum_free_mb} MB free",
        host.readable(free),
        f"free space there: df -h {config.database.parent}",
    )


def _jobs(config: Config, found: dict[str, dict[str, str]]) -> dict[str, dict[str, Any]]:
    jobs = {}
    lasts = last_runs(config, found)
    for name, timer in found.items():
        last = lasts[name]
        success = runs.known(config, "success", name)
        jobs[name] = {
            "ok": last["ok"] if last else None,
            "summary": last["summary"] if last else "never ran",
            "finished": last["finished"] if last else None,
            "seconds": last.get("seconds") if last else None,
            "last_success": success["finished"] if success else None,
            "running": timer.get("SubState") == "running",
            "next_run": timer["NextElapseUSecRealtime"] or None,
        }
    return jobs
