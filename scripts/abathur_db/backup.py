"""Backups: a hot copy in one step, checked, compressed, and renamed into place only when good."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from abathur_db import database, host, runs
from abathur_db.config import Config
from abathur_db.result import Failure, Result

PREFIX = "abathur_"
SUFFIXES = {"zstd": ".db.zst", "gzip": ".db.gz", "none": ".db"}
CHUNK = 1 << 20
"""Bytes read at a time: memory stays flat whatever the size of the database."""


@dataclass(frozen=True)
class Manifest:
    """What is known of a backup; stands beside it as JSON. Sizes in bytes, duration in seconds."""

    file: str
    created: str
    sha256: str
    bytes: int
    plain_sha256: str
    plain_bytes: int
    user_version: int
    application_id: int
    check: str
    seconds: float


def backup(config: Config, dry_run: bool = False) -> Result:
    """Back the configured database up; only what passed its check gets its final name.

    Raises Failure when the space is not there, the copy does not pass, or the disk fills; the
    directory is then as it was before.
    """
    path = config.database
    database.require(path)
    size = path.stat().st_size + sum(side.stat().st_size for side in database.sidecars(path) if side.exists())
    needed = 2 * size + config.minimum_free_mb * host.MB
    if dry_run:
        return Result("backup", f"would copy {host.readable(size)} to {config.backup_directory}", changed=True)
    config.backup_directory.mkdir(parents=True, exist_ok=True)
    host.require_free(config.backup_directory, needed, "a backup")
    begun = time.monotonic()
    stamp = datetime.now(UTC)
    name = _free_name(config, stamp)
    plain = config.backup_directory / f".{PREFIX}new.db.partial"
    packed = config.backup_directory / f".{PREFIX}new.packed.partial"
    partials = [plain, packed, plain.with_name(plain.name + "-journal")]
    try:
        for leftover in partials:
            leftover.unlink(missing_ok=True)
        database.snapshot(path, plain, config.busy_timeout_ms)
        version, application = verify(plain, full=config.backup_check == "full")
        manifest = _pack(config, plain, packed, name)
        manifest.update(
            created=stamp.isoformat(timespec="seconds"),
            user_version=version,
            application_id=application,
            check=config.backup_check,
            seconds=round(time.monotonic() - begun, 3),
        )
        kept = Manifest(**manifest)  # type: ignore[arg-type]
        _publish(config, packed, kept)
    finally:
        for leftover in partials:
            leftover.unlink(missing_ok=True)
    return Result(
        "backup",
        f"{kept.file}: {host.readable(kept.plain_bytes)} as {host.readable(kept.bytes)} in {kept.seconds:.1f} s, "
        f"{kept.check} check passed",
        changed=True,
        data=asdict(kept),
    )


def backups(config: Config) -> list[Manifest]:
    """Return the backups whose manifest can be read and whose file is there, newest first."""
    found = []
    for entry in config.backup_directory.glob(f"{PREFIX}*.json") if config.backup_directory.is_dir() else ():
        try:
            manifest = Manifest(**json.loads(entry.read_text(encoding="utf-8")))
        except (ValueError, TypeError):
            continue
        if (config.backup_directory / manifest.file).is_file():
            found.append(manifest)
    return sorted(found, key=lambda each: each.created, reverse=True)


def verify(plain: Path, *, full: bool) -> tuple[int, int]:
    """Check a closed copy and return its user_version and application_id.

    Raises Failure when SQLite finds a fault in it.
    """
    with database.opened(plain, 0, immutable=True) as copy:
        if found := database.problems(copy, full=full):
            raise Failure(
                f"the copy of the database is corrupt: {found[0]}; no backup was kept",
                "check the database: abathur-db integrity-check",
            )
        return database.pragma(copy, "user_version"), database.pragma(copy, "application_id")


def _free_name(config: Config, stamp: datetime) -> str:
    """Return the design's name, abathur_YYYYmmdd_HHMMSS; the moment of an existing backup is waited out."""
    suffix = SUFFIXES[config.backup_compression]
    name = f"{PREFIX}{stamp:%Y%m%d_%H%M%S}"
    if (config.backup_directory / f"{name}.json").exists():
        name = f"{PREFIX}{stamp:%Y%m%d_%H%M%S_%f}"
    return name + suffix


def _pack(config: Config, plain: Path, packed: Path, name: str) -> dict[str, str | int | float]:
    compress: dict[str, Callable[[Path, Path], None]] = {
        "zstd": _zstd,
        "gzip": _gzip,
        "none": os.replace,
    }
    plain_bytes = plain.stat().st_size
    plain_sha256 = sha256(plain)
    try:
        compress[config.backup_compression](plain, packed)
    except OSError as error:
        raise Failure(
            f"the backup could not be written: {error.strerror}; nothing was kept of it, older backups are untouched",
            f"free space there: df -h {config.backup_directory}",
        ) from error
    database.sync(packed)
    return {
        "file": name,
        "sha256": sha256(packed),
        "bytes": packed.stat().st_size,
        "plain_sha256": plain_sha256,
        "plain_bytes": plain_bytes,
    }


def _zstd(source: Path, target: Path) -> None:
    program = shutil.which("zstd")
    if program is None:
        raise Failure(
            "backup_compression is zstd, but the program zstd is not installed",
            "apt-get install zstd, or set abathur_db_backup_compression to gzip",
        )
    done = subprocess.run(
        [program, "-q", "-3", "-T0", "-f", "-o", str(target), str(source)], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise Failure(
            f"zstd failed: {done.stderr.strip() or f'exit code {done.returncode}'}; nothing was kept of it",
            f"free space there: df -h {target.parent}",
        )


def _gzip(source: Path, target: Path) -> None:
    with source.open("rb") as plain, gzip.open(target, "wb", compresslevel=6) as packed:
        shutil.copyfileobj(plain, packed, CHUNK)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, read in chunks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _publish(config: Config, packed: Path, manifest: Manifest) -> None:
    # The manifest comes last: a file without one does not count as a backup.
    os.replace(packed, config.backup_directory / manifest.file)
    stem = manifest.file.split(".")[0]
    text = json.dumps(asdict(manifest), indent=2) + "\n"
    runs.write_whole(config.backup_directory / f"{stem}.json", text)
    database.sync(config.backup_directory)
