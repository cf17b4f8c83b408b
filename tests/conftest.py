"""Shared by the unit tests: a configuration for a database of one's own, and the tool as a program."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from abathur_db import config, resources
from abathur_db.config import Config
from databases import ROOT
from hypothesis import settings

# No test fails by the speed of a machine.
settings.register_profile("any speed", deadline=None)
settings.load_profile("any speed")
# What its checks compare is shown when they fail, as in a test module.
pytest.register_assert_rewrite("pages")

Answer = tuple[int, str, str]
Cli = Callable[..., Answer]


@pytest.fixture(autouse=True)
def _umask() -> Iterator[None]:
    """Begin with the usual umask: the tool sets its own, also where a test before called its main."""
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.fixture
def conf(tmp_path: Path) -> Config:
    """Return the development profile for tmp_path/abathur.db, with short waits, little space asked for, any speed."""
    return replace(
        config.development(resources.development_profile(), tmp_path / "abathur.db"),
        busy_timeout_ms=100,
        lock_wait_seconds=0,
        minimum_free_mb=1,
        vacuum_pause_ms=0,
        validation_sessions=[2],
        validation_seconds=1,
        validation_p99_ms=60_000,
    )


@pytest.fixture
def cli() -> Cli:
    """Run the tool as its users do, from scripts/; return exit code, output, errors."""

    def run(*arguments: str | Path, **variables: str) -> Answer:
        done = subprocess.run(
            [sys.executable, "-m", "abathur_db", *map(str, arguments)],
            cwd=ROOT / "scripts",
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout, done.stderr

    return run
