"""Answers of the controller's scripts to a lookup of Ansible, which shows nothing of a program that fails."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

LOOKUP = "--lookup"
"""The argument with which a lookup runs a script: why it fails is then part of its answer, which the play tells."""
ENVIRONMENT = "make venv, then .venv/bin/ansible-playbook deploy.yml; or into Ansible's own environment: "
ENVIRONMENT += "pip install --require-hashes -r requirements.txt"
"""What brings the pinned packages, in the words of a next step."""


def answer(find: Callable[[], dict[str, Any]]) -> None:
    """Print what `find` returns as one JSON line; for a lookup also why it exits with a sentence, as `error`."""
    try:
        found = find()
    except (SystemExit, OSError) as error:
        if LOOKUP not in sys.argv:
            raise
        found = {"error": str(error)}
    sys.stdout.write(json.dumps(found) + "\n")


def put(program: Path, data: bytes) -> None:
    """Write a program whole, with the directories above it: two deploys from one checkout may do it at a time."""
    program.parent.mkdir(parents=True, exist_ok=True)
    partial = program.with_name(f".{program.name}.{os.getpid()}.partial")
    partial.write_bytes(data)
    partial.chmod(0o755)
    partial.replace(program)


def writable(directory: Path) -> Path:
    """Return a directory that can be written: this one, or in somebody else's checkout the caller's cache."""
    there = directory if directory.exists() else directory.parent
    if os.access(there, os.W_OK):
        return directory
    return cache()


def cache() -> Path:
    """Return the caller's own directory for what can be made or fetched again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "abathur-ops"
