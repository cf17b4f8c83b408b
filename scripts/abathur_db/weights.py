"""What a finding weighs: the heaviest is the one that is told first, and a cause comes before what it causes."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from fnmatch import fnmatchcase
from typing import TypeVar

Finding = TypeVar("Finding")

GROUPS = (
    # Rows are lost, or about to be.
    ("deleted_file", "database", "damage", "quick_check", "integrity_check", "schema_version", "tables", "columns"),
    # The application cannot write, or must not.
    ("fence", "standby", "sole_primary", "owner", "mode_*", "locked", "journal_mode"),
    ("disk*", "*free_space", "wal", "wal_size"),
    # Nothing is there that was proven to restore.
    ("backup_directory", "restore", "replica*", "backup_age", "backup*", "job_backup", "job_drill"),
    # Something that has to run does not.
    ("*.service", "*.socket", "*.timer", "timers", "timer_backup", "timer_*", "job_*"),
)
"""Patterns of the identifiers of checks by weight, the heaviest group first; within one, by their order."""


def heaviest_first(findings: Iterable[Finding], identity: Callable[[Finding], str]) -> list[Finding]:
    """Return findings by weight; those of no group are drift, and come last in the order that they have."""
    patterns = [pattern for group in GROUPS for pattern in group]

    def weight(finding: Finding) -> int:
        name = identity(finding)
        return next((place for place, each in enumerate(patterns) if fnmatchcase(name, each)), len(patterns))

    return sorted(findings, key=weight)
