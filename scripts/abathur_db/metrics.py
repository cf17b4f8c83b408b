"""The collector: values for the table metrics and for node_exporter's textfile, at no application's cost."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path

from abathur_db import database, failover, gauges, host, readings, runs, standby, textfile
from abathur_db.config import Config
from abathur_db.result import Check, Exit, Failure, Result, afterwards, shell, summarize
from abathur_db.textfile import Sample

WAIT_MS = 250
"""How long the collector waits for a lock on the database: it comes again in 5 minutes anyway."""

ALONE = ("init", "restore", "rollback")
"""Commands that put another file in the database's place: nobody else may have it open then."""


def collect(config: Config, dry_run: bool = False) -> Result:
    """Measure, insert the values into the table metrics, prune it, and write the textfile; on a standby that alone.

    What cannot be done without waiting for somebody is skipped and named in data.notes. What cannot be read beside the
    database is a warning, and a table that takes no rows a failed check; the rest is recorded.
    Raises Failure when the database is absent, corrupt or not to be read; the textfile then says so. Raises Failure on
    a fenced host that is no standby.
    """
    if standby.is_one(config):
        return _of_standby(config, dry_run)
    if config.owner and host.fenced():
        failover.refuse(config, "metrics")
    with runs.beside(config.state_directory, "metrics") as holder:
        if holder.split(" ")[0] in ALONE:
            return Result("metrics", f"skipped: {holder} has the database to itself", data={"notes": [], "samples": []})
        notes: list[str] = []
        checks: list[Check] = []
        samples = _of_host(config, checks)
        with afterwards(checks, "backups", "can be read"):
            samples += gauges.of_backups(config)
        try:
            with database.opened(config.database, WAIT_MS, read_only=True) as connection:
                samples += gauges.of_database(config, connection, notes)
        except Failure as failure:
            if failure.code is Exit.BUSY:
                return Result("metrics", f"skipped: {failure}", data={"notes": [], "samples": []})
            if not dry_run:
                _textfile(config, [*samples, Sample("up", 0)])
            raise
        if not dry_run:
            checks += _table(config, samples, notes)
            checks += _textfile(config, samples)
    return _result(samples, notes, checks, dry_run)


def _of_host(config: Config, checks: list[Check]) -> list[Sample]:
    """Return what is measured beside the database; a part that cannot be read is a warning, and left out."""
    samples = [Sample("collection_timestamp_seconds", round(time.time()))]
    with afterwards(checks, "host", "can be read"):
        samples += gauges.of_host(config)
    # A database of one's own has no jobs.
    for job, link in host.enabled_timers().items() if config.owner else ():
        with afterwards(checks, f"job_{job}", "can be read"):
            samples += gauges.of_job(config, job, link)
    with afterwards(checks, "replication", "can be read"):
        samples += gauges.of_replication(config)
    return samples


def _of_standby(config: Config, dry_run: bool) -> Result:
    # A copy that does not answer is a failure of the job replication, which leaves the first one its time.
    checks: list[Check] = []
    samples = [*_of_host(config, checks), Sample("up", float(standby.checks(config)[0].ok))]
    return _result(samples, [], [*checks, *([] if dry_run else _textfile(config, samples))], dry_run)


def _result(samples: list[Sample], notes: list[str], checks: list[Check], dry_run: bool) -> Result:
    summary, hint = summarize("metrics", checks)
    if not hint:
        summary = f"{'would record' if dry_run else 'recorded'} {len(samples)} values"
        summary += "".join(f"; {note}" for note in (*notes, *(each.measured for each in checks if each.warning)))
    by_name: dict[str, list[Sample]] = {}
    for each in samples:
        by_name.setdefault(each.name, []).append(each)
    data = {
        "samples": [asdict(each) for each in samples],
        "notes": notes,
        "journal_mode": next((each.labels["mode"] for each in by_name.get("journal_mode_info", [])), None),
        "indexes": {each.labels["query"]: each.labels["index"] for each in by_name.get("query_index_info", [])},
        "duplicate_indexes": {
            each.labels["index"]: each.labels["other"] for each in by_name.get("duplicate_index_info", [])
        },
    }
    return Result("metrics", summary, changed=True, checks=checks, data=data, hint=hint, table=list(map(str, samples)))


def _table(config: Config, samples: list[Sample], notes: list[str]) -> list[Check]:
    """Insert the values, and delete old ones once an hour; while an application writes, leave either to a later run."""
    checks: list[Check] = []
    try:
        with database.opened(config.database, WAIT_MS) as connection:
            readings.insert(connection, samples, runs.now())
    except database.Refused as refusal:
        return [Check("table", True, "values in the table metrics", str(refusal), refusal.hint, warning=True)]
    except Failure as failure:
        if failure.code is not Exit.BUSY:
            return [Check("table", False, "values in the table metrics", str(failure), failure.hint)]
        notes.append("the database was busy, so the table metrics gets its rows with the next run")
        return checks
    with afterwards(checks, "prune", "old rows of the table metrics deleted"):
        if _first_of_the_hour(config):
            with database.opened(config.database, WAIT_MS) as connection:
                readings.prune(connection, config.metrics_keep_days)
    return checks


def _first_of_the_hour(config: Config) -> bool:
    last = runs.known(config, "success", "metrics")
    return last is None or last["finished"][:13] != runs.now()[:13]


def _textfile(config: Config, samples: list[Sample]) -> list[Check]:
    if not config.metrics_textfile:
        return []
    path = Path(config.metrics_textfile)
    fault = ""
    try:
        textfile.write(path, samples)
    except OSError as error:
        fault = f"{path} cannot be written: {error.strerror}"
    hint = "its directory has to belong to the database's owner (deploy again makes it so): "
    hint += shell("ls", "-ld", path.parent)
    return [Check("textfile", not fault, f"{path} written", fault or "written", hint)]
