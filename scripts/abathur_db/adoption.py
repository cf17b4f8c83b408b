"""What an adopted database brought with it: foreign-key violations that are older than this bundle.

Applications often run with foreign_keys off, so a real database may hold violating rows. They are
the application's rows and stay; the integrity check fails only when there are more than at adoption, or than were
accepted or found since.
"""

from __future__ import annotations

import json
from pathlib import Path

from abathur_db import foreign, guarded, interruption, runs

FILE = "adopted.json"


def remember(state_directory: Path, violations: dict[str, int]) -> None:
    """Keep the number of violating rows per table that are known."""
    guarded.directory(state_directory)
    text = json.dumps({"time": runs.now(), "foreign_key_violations": violations}, indent=2)
    with interruption.change("the violated foreign keys of today were accepted"):
        runs.write_whole(state_directory / FILE, text + "\n", durable=True)


def accepted(state_directory: Path) -> dict[str, int]:
    """Return the violations per table that are known; empty for a database made by us."""
    try:
        counts = foreign.record(guarded.read_text(state_directory / FILE)).get("foreign_key_violations")
    except (FileNotFoundError, ValueError):
        return {}
    return {name: each for name, each in counts.items() if type(each) is int} if isinstance(counts, dict) else {}
