"""The report: what is known of a host, gathered as data, and written as one page; several hosts as a fleet."""

from __future__ import annotations

import os
import socket
import tempfile
from pathlib import Path
from typing import Any

from abathur_db import (
    __version__,
    catalog,
    database,
    fleet_page,
    foreign,
    host,
    page,
    replica,
    resources,
    runs,
    schema_diff,
    series,
    status,
)
from abathur_db.config import Config
from abathur_db.result import Exit, Failure, Result, counted

PAGE = "report.html"
DATA = "report.json"


def report(config: Config, output: Path | None, dry_run: bool = False) -> Result:
    """Write the page of this host to `output`, default report.html in the state directory; the data is the answer.

    Says what is wrong, and still succeeds: a page about a sick host is what it is for.
    Raises Failure when the page cannot be written.
    """
    data = gather(config)
    target = (output or config.state_directory / PAGE).absolute()
    if not dry_run:
        if output is None:
            config.state_directory.mkdir(parents=True, exist_ok=True)
        write_page(target, page.render(data))
    said = "would write" if dry_run else "wrote"
    return Result("report", f"{said} {target}: {page.sentence(data)}", changed=True, data=data)


def gather(config: Config) -> dict[str, Any]:
    """Return all that the page shows; what cannot be read is absent, and the status says why."""
    health = status.status(config)
    settings = replica.settings(config)
    jobs = {}
    for name in sorted({*health.data["jobs"], *_remembered(config)}):
        last = health.data["jobs"].get(name, {})
        jobs[name] = {"next_run": last.get("next_run"), "runs": runs.history(config.records(name), name)}
    found: dict[str, Any] = {
        "host": socket.gethostname(),
        "generated": runs.now(),
        "version": __version__,
        "database": str(config.database),
        "ok": health.ok,
        "checks": [vars(each) for each in health.checks],
        "status": {name: value for name, value in health.data.items() if name != "jobs"},
        "limits": {
            "wal_bytes": config.wal_limit_mb * host.MB,
            "disk_free_bytes": config.minimum_free_mb * host.MB,
            "backup_age_hours": config.backup_maximum_age_hours,
            "replication_lag_seconds": settings.maximum_lag_seconds if settings else None,
        },
        "queries": _queries(config),
        "jobs": jobs,
        "backups": _backups(config),
        "drills": _drills(jobs),
    }
    return {**found, **_inside(config)}


def _inside(config: Config) -> dict[str, Any]:
    try:
        with database.opened(config.database, config.busy_timeout_ms, read_only=True) as connection:
            drifted = schema_diff.diff(connection)
            return {"series": series.courses(connection), "drift": drifted}
    except Failure:
        return {"series": [], "drift": None}


def _remembered(config: Config) -> list[str]:
    """Return the jobs of a database without timers: those that have a history and are worth a row."""
    known = ("analyze", "backup", "drill", "integrity-check", "vacuum")
    return [] if config.owner else [name for name in known if runs.history(config.records(name), name)]


def _queries(config: Config) -> list[dict[str, Any]]:
    """Return the critical queries with their budgets, and what the last validation measured under its largest load."""
    last = runs.known(config, "last", "validate") or {}
    measured: dict[str, dict[str, Any]] = {}
    for row in last.get("data", {}).get("latencies", []):
        measured[row["query"]] = row
    found = []
    for query in resources.queries():
        load = measured.get(query.name)
        chosen = {name: load[name] for name in ("sessions", "p50_ms", "p99_ms")} if load else None
        facts = {"name": query.name, "purpose": query.purpose, "index": query.index, "budget_ms": query.budget_ms}
        found.append({**facts, "load": chosen})
    return found


def _backups(config: Config) -> list[dict[str, Any]]:
    found = []
    for each in catalog.list_backups(config).data["backups"]:
        kept = {key: each[key] for key in ("id", "counts", "fault")}
        if each["counts"]:
            kept |= {key: each[key] for key in ("created", "bytes", "plain_bytes", "check", "verify", "drill")}
            kept["rows"] = sum(each["rows"].values())
        found.append(kept)
    return found


def _drills(jobs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {**run, "recovery_seconds": run.get("data", {}).get("recovery_seconds")}
        for run in jobs.get("drill", {"runs": []})["runs"]
    ]


def write_page(target: Path, text: str) -> None:
    """Write a page so that a reader sees the old or the new one; only its owner may read it. Raises Failure."""
    try:
        # A name of its own: in a directory that others may write to, a known one could be a symlink.
        descriptor, partial = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            # JSON can name half a letter, which is no text and which no file of UTF-8 can hold.
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(text)
            Path(partial).replace(target)
        except BaseException:
            Path(partial).unlink(missing_ok=True)
            raise
    except OSError as error:
        user = database.user_name(os.geteuid())
        raise Failure(
            f"{target} cannot be written by {user}: {error.strerror}",
            "name a file where that user may write, with --output PATH",
        ) from None


def fleet(config: Config, directory: Path, hosts: list[str]) -> Result:  # noqa: ARG001 - what every command takes
    """Write DIRECTORY/HOST/report.html from each DIRECTORY/HOST/report.json, and DIRECTORY/fleet.html of all.

    `hosts`: the names that belong to the fleet, also without an answer; none for all that are there.
    Raises Failure when there is no host at all, or a page cannot be written.
    """
    names = sorted(set(hosts) or {source.parent.name for source in directory.glob(f"*/{DATA}")})
    if not names:
        raise Failure(
            f"there is no HOST/{DATA} in {directory}", "gather them: ansible-playbook playbooks/report.yml", Exit.USAGE
        )
    gathered = []
    for name in names:
        source = directory / name / DATA
        found = {**_read(source), "name": name, "host": name}
        target = source.with_name(PAGE)
        try:
            text = "" if "unreachable" in found else page.render(found)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            found["unreachable"] = f"its {DATA} is not a report of this version: {type(error).__name__} {error}"
        if "unreachable" in found:
            # The page of an earlier run would look like news.
            target.unlink(missing_ok=True)
            found["ok"] = False
        else:
            write_page(target, text)
        gathered.append(found)
    ordered = sorted(gathered, key=fleet_page.badness)
    target = directory / "fleet.html"
    write_page(target, fleet_page.render(ordered, runs.now()))
    sick = [each["name"] for each in ordered if not each.get("ok")]
    said = f"{counted(len(ordered), 'host')}, {len(sick)} in need of attention{': ' if sick else ''}{', '.join(sick)}"
    data = {"hosts": [each["name"] for each in ordered], "attention": sick}
    return Result("fleet", f"wrote {target}: {said}", changed=True, data=data)


def _read(source: Path) -> dict[str, Any]:
    try:
        return foreign.record(source.read_bytes())
    except FileNotFoundError:
        return {"unreachable": "nothing was gathered from it yet"}
    except (OSError, ValueError) as error:
        return {"unreachable": f"{source.name} cannot be read: {error}"}
