"""Helpers of the unit tests: what the roles say of their variables."""

from __future__ import annotations

from typing import Any

import yaml
from databases import ROOT


def load(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


def defaults(role: str) -> dict[str, Any]:
    found: dict[str, Any] = load(f"roles/{role}/defaults/main.yml")
    return found


def specs(role: str) -> dict[str, Any]:
    entries = load(f"roles/{role}/meta/argument_specs.yml")["argument_specs"].values()
    return {name: option for entry in entries for name, option in entry["options"].items()}
