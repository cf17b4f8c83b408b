"""Names the variables of an inventory that no role has, each with the nearest one that there is."""

from __future__ import annotations

import difflib
import json
import sys
from pathlib import Path
from typing import Any

import controller
import yaml

ROOT = Path(__file__).resolve().parents[1]


def known() -> set[str]:
    """Return the variables that the roles have."""
    files = (ROOT / "roles").glob("*/defaults/main.yml")
    return {name for each in files for name in yaml.safe_load(each.read_text(encoding="utf-8")) or {}}


def unknown() -> dict[str, Any]:
    """Return the sentences about names, given as a JSON list in the last argument, that are no variables."""
    names = sorted(set(json.loads(sys.argv[-1])) - known())
    return {"unknown": [_sentence(name, difflib.get_close_matches(name, known(), n=1)) for name in names]}


def _sentence(name: str, near: list[str]) -> str:
    meant = f"; did you mean {near[0]}?" if near else ""
    return f"{name} is no variable of the roles, and nothing reads it{meant}"


if __name__ == "__main__":
    controller.answer(unknown)
