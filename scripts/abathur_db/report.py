"""The report: what is known of a host, gathered as data, and written as one page; several hosts as a fleet."""

from __future__ import annotations

import os
import socket
import sqlite3
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from abathur_db import (
    __version__,
    catalog,
    database,
    fleet_page,
    foreign,
    guarded,
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

HEAD = {"generated": str, "version": str, "database": str, "ok": bool, "checks": list, "status": dict, "faults": dict}
CHECK = {"id": str, "ok": bool, "expected": str, "measured": str, "hint": str, "warning": bool}
"""What a page begins with, and each of its checks. The rest of a report is the matter of the part that shows it."""

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
    """Return all that the page shows. A part that cannot be read is empty, and `faults` says why, by its section."""
    health = status.status(config)
    faults: dict[str, str] = {}

    def read(section: str, part: Callable[[], Any], instead: Any) -> Any:
        try:
            with host.translated():
                return part()
        except Failure as failure:
            faults[section] = str(failure)
        except foreign.MALFORMED as error:
            faults[section] = f"what was kept of it is not as this tool writes it ({type(error).__name__})"
        return instead

    settings = read("growth", lambda: replica.settings(config), None)
    jobs: dict[str, Any] = read("jobs", lambda: _jobs(config, health.data["jobs"]), {})
    return {
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
        "queries": read("latency", lambda: _queries(config), []),
        "jobs": jobs,
        "backups": read("backups", lambda: _backups(config), []),
        "drills": read("drills", lambda: _drills(jobs), []),
        "series": read("growth", lambda: _inside(config, series.courses), []),
        "drift": read("schema", lambda: _inside(config, schema_diff.diff), None),
        "faults": faults,
    }


def _inside(config: Config, read: Callable[[sqlite3.Connection], Any]) -> Any:
    with database.opened(config.database, config.busy_timeout_ms, read_only=True) as connection:
        return read(connection)


def _jobs(config: Config, known: dict[str, Any]) -> dict[str, Any]:
    """Return the history of each job, and when it runs next."""
    return {
        name: {"next_run": known.get(name, {}).get("next_run"), "runs": runs.history(config.records(name), name)}
        for name in sorted({*known, *_remembered(config)})
    }


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
        descriptor, unnamed = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        try:
            # JSON can name half a letter, which is no text and which no file of UTF-8 can hold.
            with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as stream:
                stream.write(text)
            Path(unnamed).replace(target)
        except BaseException:
            Path(unnamed).unlink(missing_ok=True)
            raise
    except OSError as error:
        user = guarded.user_name(os.geteuid())
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
        try:
            # The page of an earlier run would look like news.
            source.with_name(PAGE).unlink(missing_ok=True)
            if "unreachable" not in found:
                write_page(source.with_name(PAGE), page.render(found))
        except (Failure, OSError) as error:
            found["unreachable"] = f"its page cannot be written: {error}"
        gathered.append(found)
    ordered = sorted(gathered, key=fleet_page.badness)
    target = directory / "fleet.html"
    write_page(target, fleet_page.render(ordered, runs.now()))
    sick = [each["name"] for each in ordered if "unreachable" in each or not page.healthy(each)]
    said = f"{counted(len(ordered), 'host')}, {len(sick)} in need of attention{': ' if sick else ''}{', '.join(sick)}"
    data = {"hosts": [each["name"] for each in ordered], "attention": sick}
    return Result("fleet", f"wrote {target}: {said}", changed=True, data=data)


def _read(source: Path) -> dict[str, Any]:
    try:
        found = foreign.record(source.read_bytes())
        return found if "unreachable" in found else _checked(found)
    except FileNotFoundError:
        return {"unreachable": "nothing was gathered from it yet"}
    except (OSError, ValueError) as error:
        return {"unreachable": f"{source.name} cannot be read: {error}"}


def _checked(found: dict[str, Any]) -> dict[str, Any]:
    """Return a report that has what a page begins with. Raises ValueError for another."""
    # A host with an older release tells of no faults.
    whole = {"faults": {}, **found}
    _require(whole, HEAD)
    for each in whole["checks"]:
        _require(each, CHECK)
    foreign.moment(whole["generated"])
    return whole


def _require(value: Any, kinds: dict[str, type]) -> None:
    wrong = [name for name, kind in kinds.items() if not isinstance(value, dict) or type(value.get(name)) is not kind]
    if wrong:
        raise ValueError(f"it is not a report of this version: {', '.join(wrong)}")
