"""The files that travel with the tool: sql/ and the development profile."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

from abathur_db import config, foreign


@dataclass(frozen=True)
class Migration:
    """One forward step of the schema; `number` becomes PRAGMA user_version."""

    number: int
    name: str
    sql: str


@dataclass(frozen=True)
class Query:
    """A critical query, the index that has to serve it, its budget in ms, and where its parameters come from."""

    name: str
    sql: str
    purpose: str
    index: str
    budget_ms: float
    sample: str


NAMES = {"migrations": r"\d{4}_\w+\.sql", "seeds": r"\w+\.json", "queries": r"\w+\.sql"}
"""How the files below sql/ are named, by directory; what an editor or a person left beside them is not read."""


def _directory(name: str) -> list[Traversable]:
    packaged = files("abathur_db") / "sql"
    root: Traversable = packaged if packaged.is_dir() else Path(__file__).parents[2] / "sql"
    there = (entry for entry in (root / name).iterdir() if re.fullmatch(NAMES[name], entry.name))
    return sorted(there, key=lambda entry: entry.name)


@functools.cache
def migrations() -> tuple[Migration, ...]:
    """Return the migrations in order."""
    found = []
    for entry in _directory("migrations"):
        name = entry.name.removesuffix(".sql")
        found.append(Migration(int(name.split("_")[0]), name, entry.read_text(encoding="utf-8")))
    return tuple(found)


@functools.cache
def seeds() -> tuple[dict[str, Any], ...]:
    """Return the seeds: namespace, key, memory_type and value of each."""
    return tuple(foreign.record(entry.read_text(encoding="utf-8")) for entry in _directory("seeds"))


@functools.cache
def queries() -> tuple[Query, ...]:
    """Return the critical queries; each file carries its facts in a comment header."""
    found = []
    for entry in _directory("queries"):
        text = entry.read_text(encoding="utf-8")
        facts = dict(re.findall(r"^-- (\w+): (.+)$", text, re.MULTILINE))
        body = re.sub(r"^--.*\n", "", text, flags=re.MULTILINE).strip()
        found.append(
            Query(
                name=entry.name.removesuffix(".sql"),
                sql=body,
                purpose=facts["purpose"],
                index=facts["index"],
                budget_ms=float(facts["budget_ms"]),
                sample=facts["sample"],
            )
        )
    return tuple(found)


def development_profile() -> str:
    """Return the TOML text of the development profile."""
    return (files("abathur_db") / config.DEVELOPMENT).read_text(encoding="utf-8")


def preload() -> None:
    """Read everything now: once privileges are dropped, the archive may be out of reach."""
    migrations()
    seeds()
    queries()
