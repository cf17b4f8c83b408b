"""Small files in directories where somebody else may have planted something: never followed, never waited for.

The data and state directories belong to the application's user. One that was broken into can put a
symlink, a FIFO or a hard link at any name in them, at any moment; so what is opened is looked at once
it is open, and what is written gets a new file.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
from collections.abc import Collection, Iterable
from pathlib import Path

from abathur_db.result import Exit, Failure, away, look, shell

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
        if error.errno == errno.EACCES and (flags & os.O_CREAT or os.stat(path.parent).st_uid == os.geteuid()):
            _refuse_anothers(path)
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


def directory(path: Path, mode: int | None = None) -> None:
    """Make a directory unless it is there; what is there must be one itself, not a link to one.

    `mode`: it has when this returns, whatever the umask; for None a new one is for its owner alone, and its group where
    the umask lets it. Raises Failure.
    """
    try:
        made(path, mode or 0o750)
    except FileExistsError:
        raise _planted(path, "is not a directory") from None
    except OSError as error:
        raise Failure(f"{path} cannot be made: {error.strerror}", look(path.parent)) from None
    if path.is_symlink():
        raise _planted(path, link(path))
    # One that its group may write serves as well, unless its mode has to be set.
    if mode is not None or not os.access(path, os.W_OK | os.X_OK, effective_ids=True):
        _refuse_anothers(path)
    if mode is not None:
        descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        try:
            os.fchmod(descriptor, mode)
        finally:
            os.close(descriptor)


def _refuse_anothers(path: Path) -> None:
    """Refuse what is another user's, as a copied host or a restored archive leaves it, though this user is to use it.

    Raises Failure; nothing of root's is refused, who may write it all.
    """
    found, user = facts(path), os.geteuid()
    if found is None or user in (0, found.st_uid):
        return
    name = user_name(user).split()[0]
    raise Failure(
        f"{path} belongs to {user_name(found.st_uid)}, and {name} has to use it",
        f"give it to {name}: {shell('chown', '--no-dereference', f'{name}:', path)}",
    )


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


def user_name(uid: int) -> str:
    """Return the user's name and number, as errors show them."""
    try:
        return f"{pwd.getpwuid(uid).pw_name} (uid {uid})"
    except KeyError:
        return f"uid {uid}"


def writable(
    components: Iterable[Path], trusted: Collection[int | None], groups: Collection[int] | None, *, links: bool = False
) -> tuple[str, str]:
    """Return which component of a path somebody else could change or swap, and the repair; empty for none.

    `trusted`: user IDs that may. `groups`: those whose write permission counts, every one for None. In a sticky
    directory nobody swaps what is another's. `links`: of a trusted user they are passed; where they lead has to be
    among the components. What is not there is passed.
    """
    for each in components:
        if (found := facts(each)) is None:
            continue
        if stat.S_ISLNK(found.st_mode):
            if links and found.st_uid in trusted:
                continue
            return f"{each} {link(each)}", f"configure the real path: readlink -f {each}"
        sticky = found.st_mode & stat.S_ISVTX
        if found.st_uid not in trusted:
            return f"{each} belongs to {user_name(found.st_uid)}", f"look who uses it: {shell('ls', '-ld', each)}"
        if found.st_mode & stat.S_IWOTH and not sticky:
            return f"{each} can be written by everybody", f"take that away: {shell('chmod', 'o-w', each)}"
        if found.st_mode & stat.S_IWGRP and not sticky and (groups is None or found.st_gid in groups):
            who = "its group" if groups is None else "the owner's group"
            return f"{each} can be written by {who}", f"take that away: {shell('chmod', 'g-w', each)}"
    return "", ""


def way(*paths: Path) -> list[Path]:
    """Return all that leads to paths from the root on, themselves included: by their names, and by each link on it."""
    found: set[Path] = set()
    ahead = [each for path in paths for each in (path, *path.parents)]
    while ahead:
        each = ahead.pop()
        if each in found:
            continue
        found.add(each)
        if each.is_symlink():
            # Not resolved at once: a link in the middle of a chain may be another user's.
            end = Path(os.path.normpath(each.parent / each.readlink()))
            ahead += [end, *end.parents]
    return sorted(found)


def roots_alone(*paths: Path) -> None:
    """Refuse what root is to act on, but somebody else can have written: root alone may change all of its path.

    Only root is protected: another user has no rights that somebody could borrow. Raises Failure (USAGE).
    """
    for path in paths if os.geteuid() == 0 else ():
        fault, hint = writable(way(path), {0}, None, links=True)
        if fault:
            raise Failure(f"{fault}, and root acts on what {path} says; nothing was changed", hint, Exit.USAGE)


def _planted(path: Path, what: str) -> Failure:
    return Failure(
        f"{path} {what}, which this tool never makes; it was not followed and nothing was changed",
        f"find out who put it there ({shell('ls', '-la', path.parent)}), then move it away: {away(path, 'planted')}",
    )
