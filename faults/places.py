"""Small file systems in the place of a directory: full, without inodes, or read-only. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

FILLER = "filler"


def mount(*arguments: str | Path) -> None:
    """Run a command of mount or umount. Raises CalledProcessError."""
    subprocess.run([*map(str, arguments)], check=True, capture_output=True)


@contextmanager
def small(directory: Path, megabytes: int, inodes: int = 0) -> Iterator[None]:
    """Put a file system of its own, in memory, in the place of a directory and what is in it."""
    aside = directory.with_name(directory.name + "-aside")
    directory.mkdir(parents=True, exist_ok=True)
    directory.rename(aside)
    directory.mkdir()
    mount("mount", "-t", "tmpfs", "-o", f"size={megabytes}m,mode=0700,nr_inodes={inodes}", "tmpfs", directory)
    try:
        shutil.copytree(aside, directory, dirs_exist_ok=True, symlinks=True)
        yield
    finally:
        mount("umount", "--lazy", directory)
        shutil.rmtree(aside)


@contextmanager
def mounted(directory: Path, kind: str) -> Iterator[None]:
    """Mount an empty file system in memory, ramfs or tmpfs, at a directory for a while."""
    mount("mount", "-t", kind, kind, directory)
    try:
        yield
    finally:
        mount("umount", directory)


@contextmanager
def bound(source: Path, directory: Path) -> Iterator[None]:
    """Let a directory be seen at another one for a while."""
    mount("mount", "--bind", source, directory)
    try:
        yield
    finally:
        mount("umount", directory)


@contextmanager
def read_only(directory: Path) -> Iterator[None]:
    """Make a directory read-only for a while, for root too."""
    mount("mount", "--bind", directory, directory)
    try:
        mount("mount", "-o", "remount,ro,bind", directory)
        yield
    finally:
        mount("umount", directory)


def free(directory: Path) -> int:
    """Return the bytes that are free where the directory is."""
    found = os.statvfs(directory)
    return found.f_bavail * found.f_frsize


def fill(directory: Path, left: int) -> None:
    """Fill a small file system up to `left` bytes."""
    with (directory / FILLER).open("wb") as stream:
        while (size := free(directory) - left) > 0:
            # Whoever works there meanwhile may have taken of what was free; then nothing is allocated.
            with suppress(OSError):
                os.posix_fallocate(stream.fileno(), 0, size)
                return


@contextmanager
def filled(directory: Path, left: int) -> Iterator[None]:
    """Fill a small file system up to `left` bytes for a while."""
    fill(directory, left)
    try:
        yield
    finally:
        (directory / FILLER).unlink()


@contextmanager
def filled_meanwhile(directory: Path, after: int, left: int) -> Iterator[None]:
    """Fill a small file system up to `left` bytes as soon as somebody has written `after` bytes to it."""
    begin, ending = free(directory), threading.Event()

    def watch() -> None:
        while not ending.wait(0.0005):
            if begin - free(directory) >= after:
                fill(directory, left)
                return

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield
    finally:
        ending.set()
        watcher.join()
        (directory / FILLER).unlink(missing_ok=True)


@contextmanager
def no_inodes(directory: Path, left: int) -> Iterator[None]:
    """Use up the inodes of a small file system for a while, but for `left`."""
    folder = directory / FILLER
    folder.mkdir()
    for number in range(os.statvfs(directory).f_favail - left):
        (folder / str(number)).touch()
    try:
        yield
    finally:
        shutil.rmtree(folder)
