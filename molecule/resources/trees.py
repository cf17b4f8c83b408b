"""Cached Debian trees that test hosts are overlays over; what testhost.py and testvm.py share to make them."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "abathur-ops"
CHECKOUT = f"{ROOT.name}-{hashlib.sha256(str(ROOT).encode()).hexdigest()[:8]}"
"""Names this checkout: two checkouts on one machine do not share hosts."""
PACKAGES = ("systemd", "systemd-sysv", "dbus", "python3", "openssh-server", "zstd")


def die(what: str, following: str) -> NoReturn:
    """End with what failed and the next command."""
    sys.exit(f"testhost: {what}\nnext: {following}")


def say(text: str) -> None:
    """Tell progress, away from standard output."""
    print(f"testhost: {text}", file=sys.stderr, flush=True)


def run(*command: str | Path) -> str:
    """Run a command; return its output. Ends with its error output when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        die(
            f"{command[0]} failed with {done.returncode}: {done.stderr.strip()[-2000:]}", "read it, then run this again"
        )
    return done.stdout


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Let one process at a time build a tree or change a host."""
    CACHE.mkdir(parents=True, exist_ok=True)
    path = CACHE / f"{name}.lock"
    while True:
        with path.open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            # `destroy --all` deletes locks: one that was deleted meanwhile keeps nobody out.
            if path.exists() and os.path.samestat(os.fstat(stream.fileno()), path.stat()):
                yield
                return


def tree(suite: str, packages: tuple[str, ...] = PACKAGES) -> Path:
    """Return the cached root tree of a Debian suite, built first when its recipe is new."""
    recipe = hashlib.sha256(repr((suite, packages)).encode()).hexdigest()[:12]
    target = CACHE / "trees" / f"{suite}-{recipe}"
    with locked(f"tree-{suite}"):
        if not target.exists():
            say(f"building the tree of Debian {suite} (once, about 20 s)")
            partial = target.with_name(target.name + ".partial")
            if partial.exists():
                shutil.rmtree(partial)
            partial.parent.mkdir(parents=True, exist_ok=True)
            run("mmdebstrap", "--quiet", "--variant=apt", f"--include={','.join(packages)}", suite, partial)
            # Unmasked by default, these wait for a network that an nspawn host shares with the machine.
            for unit in ("systemd-networkd-wait-online.service", "apt-daily.timer", "apt-daily-upgrade.timer"):
                (partial / "etc/systemd/system" / unit).symlink_to("/dev/null")
            partial.rename(target)
    return target
