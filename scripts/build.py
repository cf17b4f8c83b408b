"""Builds the one artefact: abathur-db, a zip application that needs nothing but Python on a host.

Reproducible: the same sources give the same bytes, so its name can carry a hash of them and a
release is never overwritten by another. Prints one JSON line: path, release, sha256.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import re
import sys
import zipfile
from importlib import metadata
from pathlib import Path
from typing import Any

import controller

ROOT = Path(__file__).resolve().parents[1]
# Isolated mode: neither the caller's directory nor PYTHON* variables reach a tool that root may run.
SHEBANG = b"#!/usr/bin/python3 -I\n"
# A deploy changes what the link on the caller's path leads to, also while a job starts: all is read from one release.
MAIN = b"""import os
import sys

sys.path[0] = os.path.realpath(sys.path[0])

from abathur_db.__main__ import run

sys.exit(run())
"""
BUNDLED = ("aiosqlite", "tqdm")
"""Pure-Python distributions that travel in the archive."""
OWN = re.compile(r"\w[\w-]*\.(py|css|toml|txt|sql|json)")
"""Names of the project's own files: what an editor or a person left beside them makes no other release."""
EPOCH = (1980, 1, 1, 0, 0, 0)
"""The earliest moment that a zip archive can hold."""


def sources() -> dict[str, bytes]:
    """Return every file of the archive by its name in it: the package, sql/, what is bundled with its licence.

    Exits with a sentence when a bundled distribution is absent or not the version that the lock file pins.
    """
    package = ROOT / "scripts" / "abathur_db"
    found = {f"abathur_db/{each.name}": each.read_bytes() for each in package.iterdir() if OWN.fullmatch(each.name)}
    for each in (ROOT / "sql").rglob("*"):
        if OWN.fullmatch(each.name):
            found[f"abathur_db/sql/{each.relative_to(ROOT / 'sql').as_posix()}"] = each.read_bytes()
    found["__main__.py"] = MAIN
    for name in BUNDLED:
        found |= _distribution(name)
    return found


def _distribution(name: str) -> dict[str, bytes]:
    lock = (ROOT / "requirements.txt").read_text(encoding="utf-8")
    pinned = re.search(rf"^{name}==(\S+)", lock, re.MULTILINE)
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        sys.exit(f"build: {name} is not installed for {sys.executable}. Next: {controller.ENVIRONMENT}")
    if pinned is None or distribution.version != pinned[1]:
        wanted = pinned[1] if pinned else "no version"
        said = f"build: {name} {distribution.version} is installed for {sys.executable}, requirements.txt pins {wanted}"
        sys.exit(f"{said}. Next: {controller.ENVIRONMENT}")
    wanted_files = re.compile(rf"{name}/[a-z_]+\.py|{name}-[^/]+/(licenses/)?LICEN[CS]E")
    return {
        each.as_posix(): Path(str(each.locate())).read_bytes()
        for each in distribution.files or []
        if wanted_files.fullmatch(each.as_posix())
    }


def archive(files: dict[str, bytes]) -> bytes:
    """Return the zip application: sorted names, one fixed time, one fixed mode.

    Stored, not deflated: compressed bytes differ between two versions of zlib, and 150 kB are no burden.
    """
    buffer = io.BytesIO()
    buffer.write(SHEBANG)
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as packed:
        for name in sorted(files):
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.external_attr = 0o644 << 16
            packed.writestr(entry, files[name])
    return buffer.getvalue()


def build() -> dict[str, Any]:
    """Write the artefact to --output unless it is there already; return its path, release and SHA-256."""
    parser = argparse.ArgumentParser(description="Builds the zip application abathur-db.")
    parser.add_argument(
        "--output", type=Path, help="directory, default: dist, or the cache where that cannot be written"
    )
    parser.add_argument(controller.LOOKUP, action="store_true", help="why it fails is part of the answer")
    place = parser.parse_args().output or controller.writable(ROOT / "dist")
    files = sources()
    version = re.search(rb'__version__ = "(.+)"', files["abathur_db/__init__.py"])
    if version is None:
        sys.exit("build: scripts/abathur_db/__init__.py states no __version__")
    built = archive(files)
    digest = hashlib.sha256(built).hexdigest()
    release = f"{version[1].decode()}-{digest[:12]}"
    # What several checkouts share has a place for each release.
    target = (place / release if place == controller.cache() else place) / "abathur-db"
    if not target.exists() or target.read_bytes() != built:
        controller.put(target, built)
    return {"path": str(target), "release": release, "sha256": digest}


if __name__ == "__main__":
    controller.answer(build)
