"""Small files in directories where somebody else may have planted something: never followed, never waited for.

The data and state directories belong to the application's user. One that was broken into can put a
symlink, a FIFO or a hard link at any name in them, at any moment; so what is opened is looked at once
it is open, and what is written gets a new file.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from abathur_db.result import Failure

LIMIT = 1 << 20
"""Bytes that a record or a manifest may have; real ones have some thousands."""


def read_text(path: Path) -> str:
    """Return the text of a small file. Raises as read_bytes does, and UnicodeDecodeError."""
    return read_bytes(path).decode("utf-8")


def read_bytes(path: Path, limit: int = LIMIT) -> bytes:
    """Return the bytes of a small file.

    Raises Failure when it is anything but a regular file of at most `limit` bytes, OSError as open() does.
    """
    with os.fdopen(opened(path, os.O_RDONLY), "rb") as stream:
        data = stream.read(limit + 1)
    if len(data) > limit:
        raise _planted(path, f"has more than {limit} bytes")
    return data


def facts(path: Path) -> os.stat_result | None:
    """Return what lstat(2) says of a file, None where there is none: SQLite and others delete theirs at any moment."""
    try:
        return os.lstat(path)
    except FileNotFoundError:
        return None


def link(path: Path) -> str:
    """Return in words what a symlink points to; somebody may have put something else in its place by now."""
    try:
        return f"is a symbolic link to {os.readlink(path)}"
    except OSError:
        return "was a symbolic link a moment ago"


def opened(path: Path, flags: int, mode: int = 0o600) -> int:
    """Open a regular file and return its descriptor: no symlink, no FIFO, no device, no second name of another file.

    `mode`: of a file that is made, less what the umask takes away.
    Raises Failure for one of those, OSError as open(2) does.
    """
    try:
        # Non-blocking: a FIFO without a writer would be waited for for ever.
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _planted(path, link(path)) from None
        if error.errno in (errno.ENXIO, errno.EISDIR):
            raise _planted(path, "is not a regular file") from None
        raise
    found = os.fstat(descriptor)
    if stat.S_ISREG(found.st_mode) and found.st_nlink <= 1:
        return descriptor
    os.close(descriptor)
    what = "is another file's second name (a hard link)" if stat.S_ISREG(found.st_mode) else "is not a regular file"
    raise _planted(path, what)


def clear(path: Path) -> None:
    """Delete what a killed run left at a path, or what was planted there; a directory is nobody's leftover.

    Raises Failure for a directory, OSError as unlink(2) does.
    """
    try:
        path.unlink(missing_ok=True)
    except (IsADirectoryError, PermissionError):
        if not path.is_dir():
            raise
        raise _planted(path, "is a directory") from None


def write_new(path: Path, text: str) -> None:
    """Write a file that is new whatever was at `path`: its group may read it where the umask lets it.

    Raises Failure when a directory is there, and OSError.
    """
    clear(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o640)
    with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
        stream.write(text)


def directory(path: Path) -> None:
    """Make a directory unless it is there; what is there must be one itself, not a link to one.

    For its owner alone, and its group where the umask lets it. Raises Failure.
    """
    try:
        made(path, 0o750)
    except FileExistsError:
        raise _planted(path, "is not a directory") from None
    except OSError as error:
        raise Failure(f"{path} cannot be made: {error.strerror}", f"look at it: ls -ld {path.parent}") from None
    if path.is_symlink():
        raise _planted(path, link(path))


def made(path: Path, mode: int = 0o777) -> None:
    """Make a directory, and those above it, unless they are there; on the disk when this returns.

    `mode`: of the directory itself, less the umask. Raises OSError.
    """
    missing = [each for each in (path, *path.parents) if not each.exists()]
    path.mkdir(parents=True, exist_ok=True, mode=mode)
    for each in missing:
        sync(each.parent)


def sync(path: Path) -> None:
    """Flush a file or a directory to the disk: what a file holds, which names a directory has. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _planted(path: Path, what: str) -> Failure:
    return Failure(
        f"{path} {what}, which this tool never makes; it was not followed and nothing was changed",
        f"find out who put it there (ls -la {path.parent}), then move it away: mv {path} {path}.planted",
    )
