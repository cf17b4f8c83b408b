"""Metrics in the text format that Prometheus' node_exporter reads from its textfile collector."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from abathur_db import runs

PREFIX = "abathur_db_"

LABELS = {"job": "job_name"}
"""Labels with another name here: `job` is Prometheus' own, and one of ours would arrive as `exported_job`."""

HELP = {
    "up": "1 when the database, on a standby its copy, could be opened and read.",
    "collection_timestamp_seconds": "When these values were collected.",
    "database_bytes": "Size of the database file.",
    "wal_bytes": "Size of the write-ahead log.",
    "wal_limit_bytes": "Size from which the write-ahead log is too large.",
    "free_page_bytes": "Size of the database's unused pages.",
    "growth_bytes_per_day": "Growth of the database over the last day.",
    "journal_mode_info": "The database's journal mode, in the label mode.",
    "disk_free_bytes": "Free space where the database is.",
    "disk_size_bytes": "Size of the file system where the database is.",
    "sessions": "Sessions by status.",
    "tasks": "Tasks by status.",
    "query_seconds": "Median duration of a critical query in this collection's samples.",
    "query_max_seconds": "Longest duration of a critical query in this collection's samples.",
    "query_budget_seconds": "Duration that a critical query may usually take.",
    "query_limit_seconds": "Duration that 99 of 100 runs of any critical query may take.",
    "query_indexed": "1 when a critical query is a search by an index, without scan and sort.",
    "query_index_info": "The index that a critical query uses, in the label index.",
    "duplicate_index_info": "An index that answers nothing that another one (label other) does not.",
    "job_ok": "1 when the last run of a job succeeded.",
    "job_seconds": "Duration of the last run of a job.",
    "job_last_success_timestamp_seconds": "When a job last succeeded, 0 for never.",
    "job_due_timestamp_seconds": "By when a job has to have succeeded again: one and a half of its periods later.",
    "backup_timestamp_seconds": "Time of the newest verified backup, 0 for none.",
    "backup_age_seconds": "Age of the newest verified backup when these values were collected.",
    "backup_maximum_age_seconds": "Age from which the newest verified backup is too old.",
    "backup_bytes": "Size of the newest verified backup, compressed.",
    "drill_seconds": "Time that the last successful drill took to restore, check and query a backup.",
    "replication_lag_seconds": "Age of the newest state known to be at the replica, when that was last proven.",
    "replication_maximum_lag_seconds": "Age from which the replica is too far behind.",
    "replication_arrived_timestamp_seconds": "When the replica last had everything, 0 for never.",
    "replication_lineage": "Number of the replica's lineage that changes go to.",
    "replication_unsent_bytes": "Size of the changes on the host: those to send, and those of the last minutes.",
    "standby": "1 on a standby, 0 on a primary that is replicated.",
}
"""Every metric that is collected, without its prefix; all of them are gauges in base units."""


@dataclass(frozen=True)
class Sample:
    """One measured value: name without prefix, labels, and since when it holds if that is not now (ISO, UTC)."""

    name: str
    value: float
    labels: dict[str, str] = field(default_factory=dict)
    since: str = ""

    def __str__(self) -> str:
        """Return the sample as a line of the text format."""
        labels = ",".join(f'{LABELS.get(name, name)}="{_escaped(value)}"' for name, value in self.labels.items())
        return f"{PREFIX}{self.name}{'{' + labels + '}' if labels else ''} {self.value!r}"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def render(samples: list[Sample]) -> str:
    """Return the samples as text, each metric together under its HELP and TYPE."""
    lines = []
    for name, text in HELP.items():
        found = [each for each in samples if each.name == name]
        if found:
            lines += [f"# HELP {PREFIX}{name} {text}", f"# TYPE {PREFIX}{name} gauge", *map(str, found)]
    return "\n".join(lines) + "\n"


def write(path: Path, samples: list[Sample]) -> None:
    """Write the textfile whole, readable for the exporter, whose user is another one. Raises OSError."""
    runs.write_whole(path, render(samples), mode=0o644, limit=None)
