"""Handing a copy of the database from its owner to the user that owns the backups, who may not open the database.

What is handed over stays in the owner's reach: it is opened once, as a plain file, and copied. Only the copy is
looked at.
"""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from abathur_db import clones, database, guarded, host, interruption, progress, runs
from abathur_db import config as configuration
from abathur_db.config import Config
from abathur_db.result import Exit, Failure, Result

FILE = "snapshot.db"
MODE = 0o770
"""Of the directory: the user that owns the backups, in the owner's group, takes the copy's name away."""
FRESH_SECONDS = 3600
"""A copy older than this was left by a backup that never began; the one that was to be made now is not there."""


def snapshot(config: Config) -> Result:
    """Leave a copy of the database where the user that owns the backups finds it; runs as the database's owner.

    Raises Failure as database.snapshot does, and when the space is not there.
    """
    target = config.handover_directory / FILE
    # By the owner, below a directory of its own: root, who would follow a link there, makes nothing in it.
    guarded.directory(config.handover_directory, MODE)
    guarded.clear(target)
    with clones.clone(config) as copy:
        size = copy.stat().st_size
        copy.chmod(0o640)
        with interruption.change("a copy was handed over for a backup"):
            os.replace(copy, target)
    return Result("snapshot", f"handed {host.readable(size)} over for a backup", changed=True, data={"bytes": size})


def received(config: Config) -> int | None:
    """Return the descriptor of a fresh copy, None where the backups have no user of their own.

    Root lets the owner make it; otherwise abathur-db-snapshot.service has made it, and said why when it could not.
    Raises Failure.
    """
    if not config.backup_owner:
        return None
    return _lent(config) if os.geteuid() == 0 else _taken(config)


def _lent(config: Config) -> int:
    """Have the owner make a copy, and take its descriptor: the copy has no name any more."""
    ours, theirs = socket.socketpair()

    def lend() -> dict[str, Any]:
        with runs.locked(config.state_directory, "backup", config.lock_wait_seconds), clones.clone(config) as copy:
            descriptor = guarded.opened(copy, os.O_RDONLY)
            socket.send_fds(theirs, [b"."], [descriptor])
            os.close(descriptor)
        return {}

    with ours, theirs:
        host.as_owner(config.owner, lend)
        return socket.recv_fds(ours, 1, 1)[1][0]


def _taken(config: Config) -> int:
    path = config.handover_directory / FILE
    told = runs.known(config, "last", configuration.SNAPSHOT)
    if told and not told["ok"]:
        raise Failure(told["summary"], told["hint"], Exit.BUSY if told.get("exit_code") == Exit.BUSY else Exit.FAILED)
    absent = Failure("no copy of the database was handed over", "see why: journalctl -u abathur-db-snapshot -n 50")
    try:
        descriptor = guarded.opened(path, os.O_RDONLY)
    except FileNotFoundError:
        raise absent from None
    # Its name goes at once: whatever happens to this backup, the next one does not find it.
    path.unlink(missing_ok=True)
    if time.time() - os.fstat(descriptor).st_mtime > FRESH_SECONDS:
        os.close(descriptor)
        raise absent
    return descriptor


def copy_whole(source: int, target: Path, size: int) -> None:
    """Copy the `size` bytes that a descriptor is open on to a new file, and close it: never more than was granted.

    Raises Failure when it has another size by then, OSError.
    """
    with os.fdopen(source, "rb", buffering=0) as stream, target.open("xb", buffering=0) as sink:
        done = 0
        with progress.shown("take over", size) as update:
            while copied := os.sendfile(sink.fileno(), stream.fileno(), done, min(database.STEP_BYTES, size - done)):
                done += copied
                update(copied)
        now = os.fstat(stream.fileno()).st_size
    if not done == now == size:
        raise Failure(
            f"the copy of the database that was handed over had {size} bytes and has {now} now; no backup was kept",
            "find out who changes it: the application's user alone can",
        )
