"""Shared by the unit tests: a configuration for a database of one's own, and the tool's command line."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from abathur_db import config, resources
from abathur_db.cli import main
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
    """Return a configuration for tmp_path/abathur.db."""
    return configuration(tmp_path / "abathur.db")


def configuration(database: Path) -> Config:
    """Return the development profile for a database, with short waits, little space asked for, any speed."""
    return replace(
        config.development(resources.development_profile(), database),
        busy_timeout_ms=100,
        lock_wait_seconds=0,
        minimum_free_mb=1,
        vacuum_pause_ms=0,
        validation_sessions=[2],
        validation_seconds=1,
        validation_p99_ms=60_000,
    )


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run the tool's command line, in this process, for one of its own costs as much as most tests.

    Returns exit code, output, errors.
    """

    def run(*arguments: str | Path, **variables: str) -> Answer:
        with monkeypatch.context() as patch, redirect_stdout(StringIO()) as out, redirect_stderr(StringIO()) as errors:
            patch.chdir(ROOT / "scripts")
            for name, value in variables.items():
                patch.setenv(name, value)
            umask = os.umask(0o022)
            try:
                code = int(main([*map(str, arguments)]))
            except SystemExit as refused:
                code = int(refused.code or 0)
            finally:
                os.umask(umask)
        return code, out.getvalue(), errors.getvalue()

    return run
