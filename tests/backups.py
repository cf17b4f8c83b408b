"""Helpers of the unit tests: backups damaged in ways that a disk, a person or an attacker damages them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from abathur_db.config import Config


def manifest(conf: Config, identity: str) -> Path:
    """Return the path of a backup's manifest."""
    return conf.backup_directory / f"abathur_{identity}.json"


def file(conf: Config, identity: str) -> Path:
    """Return the path of a backup's file."""
    return conf.backup_directory / str(json.loads(manifest(conf, identity).read_text())["file"])


def copies(conf: Config, identity: str, count: int) -> list[str]:
    """Lay copies of a backup beside it, one per hour before now; return their IDs, the oldest first."""
    now = datetime.now(UTC).replace(microsecond=0)
    found = json.loads(manifest(conf, identity).read_text())
    made = []
    for number in range(1, count + 1):
        moment = now - timedelta(hours=count - number + 1)
        copied = f"{moment:%Y%m%d_%H%M%S}_7"
        name = f"abathur_{copied}.db.zst"
        os.link(file(conf, identity), conf.backup_directory / name)
        said = {**found, "id": copied, "sequence": number, "file": name, "created": moment.isoformat()}
        manifest(conf, copied).write_text(json.dumps(said, indent=2))
        made.append(copied)
    edit(conf, identity, sequence=count + 1)
    return made


def edit(conf: Config, identity: str, **changes: Any) -> None:
    """Change what a manifest says."""
    path = manifest(conf, identity)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip(conf: Config, identity: str) -> None:
    """Change one bit in the middle."""
    path = file(conf, identity)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def repack(conf: Config, identity: str, change: Callable[[Path], object]) -> None:
    """Change the database inside a backup, and let its manifest fit."""
    path = file(conf, identity)
    plain = path.with_suffix("")
    subprocess.run(["zstd", "-dq", path], check=True)
    change(plain)
    digest = hashlib.sha256(plain.read_bytes()).hexdigest()
    size = plain.stat().st_size
    subprocess.run(["zstd", "-qf", "--rm", plain], check=True)
    packed = path.read_bytes()
    sha256 = hashlib.sha256(packed).hexdigest()
    edit(conf, identity, sha256=sha256, bytes=len(packed), plain_sha256=digest, plain_bytes=size)
