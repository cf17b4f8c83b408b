"""Helpers of the unit tests: a replicated database, its service at work, and the programs that it takes."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sysconfig
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import litestream
import pytest
from abathur_db import failover, replica, replication, runs, schema, standby, wal, watch
from abathur_db.config import Config
from abathur_db.result import Failure, Result
from databases import until

Configure = Callable[..., None]


@cache
def pinned() -> dict[str, Any]:
    """Return where Litestream is, and what is known of it; fails the test with the next step where it is not."""
    try:
        return litestream.find()
    except SystemExit as absent:
        why = str(absent)
    pytest.fail(why, pytrace=False)


@cache
def weed() -> str:
    """Return the path of SeaweedFS's program; fails the test with the next step where it is not."""
    path = shutil.which("weed", path=sysconfig.get_path("scripts"))
    return path or pytest.fail(
        "weed: SeaweedFS is not installed for this Python\nnext: run it from the project's environment: make venv",
        pytrace=False,
    )


def settings(conf: Config, **others: Any) -> None:
    """Write the settings of a replica beside them, or with others, as the role does."""
    values = {
        "database": str(conf.database),
        "url": f"file://{replica.SETTINGS.parent}/store",
        "host_key": "",
        "litestream": pinned()["path"],
        "maximum_lag_seconds": 30,
        "keep_days": 7,
        "standby": False,
    }
    replica.SETTINGS.write_text(json.dumps({**values, **others}))


@pytest.fixture
def configure(conf: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Configure:
    """Return what writes the settings of a replica at a path, or with others."""
    monkeypatch.setattr(replica, "SETTINGS", tmp_path / "replication.yml")
    settings(conf)
    return partial(settings, conf)


@pytest.fixture
def conf(conf: Config, tmp_path: Path) -> Config:
    """Return a host's database; the address of a socket has 108 bytes at most, which a test's own path fills."""
    conf = replace(conf, state_directory=tmp_path / "state")
    schema.init(conf)
    return conf


def found(conf: Config) -> replica.Settings:
    return replica.required(conf)


def ended_by_itself(thread: threading.Thread) -> None:
    """Wait for the end of a thread that was told to end; one that never does fails the test instead of the run."""
    thread.join(120)
    assert not thread.is_alive(), "it was told to end and goes on"


@contextmanager
def service(conf: Config, monkeypatch: pytest.MonkeyPatch) -> Iterator[subprocess.Popen[str]]:
    """Run what the unit runs, until the end; yields Litestream, the first that is started."""
    started: list[subprocess.Popen[str]] = []
    handlers: list[Any] = []
    ended: list[Any] = []

    def work() -> None:
        try:
            ended.append(replication.replicate(conf))
        except Failure as failure:
            ended.append(failure)

    with monkeypatch.context() as patch:
        original = watch._started

        def start(*arguments: Any) -> subprocess.Popen[str]:
            started.append(original(*arguments))
            return started[-1]

        patch.setattr(watch, "_started", start)
        # A store on this machine answers at once.
        patch.setattr(wal, "POLL_SECONDS", 0.1)
        patch.setattr(signal, "signal", lambda _, handler: handlers.append(handler))
        thread = threading.Thread(target=work)
        thread.start()
        try:
            until(lambda: started or not thread.is_alive(), "Litestream is started")
            if ended:
                raise ended[0]
            yield started[0]
        finally:
            # None where it failed before it could have been told to end.
            for end in handlers:
                end()
            ended_by_itself(thread)


def recorded(conf: Config, result: Result) -> Result:
    """Keep a result as the command line does."""
    runs.record(
        conf.state_directory,
        {**result.as_dict(), "finished": runs.now(), "seconds": 0, "invocation": "", "exit_code": 0},
    )
    return result


def restored(conf: Config, lineage: int, target: Path) -> Path:
    replica.run(found(conf), "restore", "-o", str(target), found(conf).place(lineage), seconds=30)
    return target


def lend(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Lend a secret as systemd does."""
    (directory / "replica").write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b\n")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(directory))


def snapshot_arrives(conf: Config) -> None:
    """Wait for the first snapshot, which is what a lineage begins with."""

    def there() -> bool:
        return any(each["level"] == 9 for each in replica.changes(conf, found(conf), 1))

    until(there, "the first snapshot arrives")


def set_clock(seconds: float, patch: pytest.MonkeyPatch) -> None:
    """Set the clock forward, or with a negative number back, for the job and for what a standby and a failover ask."""
    clock = SimpleNamespace(time=lambda: time.time() + seconds, monotonic=time.monotonic, sleep=time.sleep)
    for module in (replication, standby, failover):
        patch.setattr(module, "time", clock)
