"""The backup directory in the hands of a user of its own, with the backups that the database's owner had made."""

from __future__ import annotations

import errno
import os
import re
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

from abathur_db import catalog, guarded, host, interruption, packing, runs
from abathur_db.config import LARGEST, Config
from abathur_db.manifest import Manifest
from abathur_db.result import Failure, Result, counted

MODE, SWEEPING = 0o750, 0o710
MOVING, FORMER = "moving", "former"


def take_over(config: Config, dry_run: bool = False) -> Result:
    """Give the backup directory to the user of its own, as root; what the owner had in it is copied and compared.

    A directory that was the owner's gets another name first and stays, because a file keeps its owner, and whoever has
    it open, wherever it goes. One that has to stay where it is, a mount or of the lower layer of an overlay, keeps its
    name: what is in it goes into one below it. Can be run again after it was killed. Raises Failure when the space is
    not there.
    """
    if not config.backup_owner:
        return Result("take-over", "backups have no user of their own")
    directory, account = config.backup_directory, host.account(config.backup_owner)
    found, owner = guarded.facts(directory), host.account(config.owner).pw_uid
    # Killed before the end it has this mode, and another deploy goes on.
    swept = found is not None and found.st_uid == account.pw_uid and found.st_mode & 0o7777 == SWEEPING
    owners = swept or (found is not None and found.st_uid == owner)
    stays = swept or _is_mount(directory)
    waiting = _aside(directory / directory.name if stays else directory, MOVING)
    if dry_run:
        said = f"would give {directory} to {config.backup_owner}, with the backups in it"
        return Result("take-over", said, changed=bool(owners or waiting or found is None))
    if owners:
        lister = config.owner if found and found.st_uid == owner else config.backup_owner
        needed: int = host.as_owner(lister, lambda: {"bytes": _bytes(directory)})["bytes"]
        host.require_free(directory, needed + config.minimum_free_mb * host.MB, "taking the backups over")
        stays = stays or not _renamed(directory, _free(directory, MOVING))
        if stays:
            aside = _free(directory / directory.name, MOVING)
            _give(directory, account.pw_uid, account.pw_gid, SWEEPING)
            host.as_owner(config.backup_owner, lambda: _sweep(directory, aside, owner))
        waiting = _aside(directory / directory.name if stays else directory, MOVING)
    base = directory / directory.name if stays else directory
    changed = (not stays and _give(directory, account.pw_uid, account.pw_gid, MODE)) or bool(waiting)
    taken = 0
    left: list[str] = []
    kept: list[Path] = []
    for each in waiting:
        host.as_owner(config.owner, lambda source=each: _let_read(config, source))  # type: ignore[misc]
        answer = host.as_owner(config.backup_owner, lambda source=each: _copy_all(config, source))  # type: ignore[misc]
        taken, left = taken + answer["taken"], left + answer["left"]
        kept.append(_free(base, FORMER))
        # A name is changed by whoever owns the directory that it is in.
        host.as_owner(config.backup_owner if stays else "", lambda source=each: _keep(source, kept[-1]))  # type: ignore[misc]
    changed = (stays and _give(directory, account.pw_uid, account.pw_gid, MODE)) or changed
    summary = f"{directory} belongs to {config.backup_owner}"
    summary += f"; took {counted(taken, 'backup')} over from {', '.join(map(str, kept))}, which stays" if kept else ""
    summary += f"; not taken: {'; '.join(left)}" if left else ""
    return Result("take-over", summary, changed=changed, data={"taken": taken, "left": left})


def _is_mount(directory: Path) -> bool:
    """Tell whether a directory is a mount by the mount's number: one of the same file system has no other device."""
    return directory.exists() and host.mount_number(directory) != host.mount_number(directory.parent)


def _renamed(directory: Path, aside: Path) -> bool:
    """Rename a directory; return false where it is of an overlay's lower layer, as in a container, and cannot be."""
    try:
        with interruption.change(f"{directory} was moved to {aside}"):
            directory.rename(aside)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        return False
    return True


def _keep(source: Path, target: Path) -> dict[str, Any]:
    with interruption.change(f"{source} was moved to {target}"):
        source.rename(target)
        guarded.sync(target.parent)
    return {}


def _sweep(directory: Path, aside: Path, owner: int) -> dict[str, Any]:
    """Put what is the owner's into a directory of our own beside it; runs as the backups' user.

    A directory of somebody else can be given another name by whoever has the one above it, but not another place.
    """
    theirs = [each for each in sorted(directory.iterdir()) if each.lstat().st_uid == owner]
    if theirs:
        guarded.directory(aside, MODE)
    for each in theirs:
        each.rename(_free(each, FORMER) if stat.S_ISDIR(each.lstat().st_mode) else aside / each.name)
    return {}


def give_back(config: Config) -> None:
    """Give the directory to the database's owner, for a release that knows no user of the backups' own; as root."""
    account = host.account(config.owner)
    _give(config.backup_directory, account.pw_uid, account.pw_gid, 0o700)


def _bytes(directory: Path) -> int:
    """Return the size of the files in a directory, in bytes: at least what copies of the backups among them need."""
    return sum(each.lstat().st_size for each in directory.iterdir())


def _aside(directory: Path, state: str) -> list[Path]:
    named = re.compile(rf"{re.escape(directory.name)}\.{state}(_\d+)?")
    return sorted(each for each in host.existing(directory.parent).iterdir() if named.fullmatch(each.name))


def _free(directory: Path, state: str) -> Path:
    """Return a name beside the directory that nothing has."""
    path, number = directory.with_name(f"{directory.name}.{state}"), 1
    while os.path.lexists(path):
        number += 1
        path = directory.with_name(f"{directory.name}.{state}_{number}")
    return path


def _give(directory: Path, uid: int, gid: int, mode: int) -> bool:
    """Make a directory, or give away one that is there, itself alone: not what is in it."""
    guarded.directory(directory)
    found = directory.stat()
    if (found.st_uid, found.st_gid, found.st_mode & 0o7777) == (uid, gid, mode):
        return False
    # The mode first: killed in between, the next run finds the former owner's, and begins again.
    directory.chmod(mode)
    os.chown(directory, uid, gid, follow_symlinks=False)
    return True


def _let_read(config: Config, source: Path) -> dict[str, Any]:
    """Let the group read the owner's backups, and what is known of their checks; runs as the owner."""
    if source.stat().st_uid == os.geteuid():
        source.chmod(MODE)
    for each in [*source.iterdir(), config.state_directory / catalog.CHECKS]:
        try:
            descriptor = guarded.opened(each, os.O_RDONLY)
        except (Failure, OSError):
            # What is no plain file of the owner's is no backup either; the copy below says so.
            continue
        if os.fstat(descriptor).st_uid == os.geteuid():
            os.fchmod(descriptor, 0o640)
        os.close(descriptor)
    return {}


def _copy_all(config: Config, source: Path) -> dict[str, Any]:
    """Copy each backup that counts, the oldest first, and tell which did not, and why; runs as the backups' user."""
    left, taken = [], 0
    with runs.locked(config.records("backup"), "take-over", config.lock_wait_seconds):
        there = {each.id for each in catalog.backups(config)}
        for each in reversed(catalog.entries(replace(config, backup_directory=source))):
            fault = each.fault
            if each.sound and each.id not in there:
                fault = _copy(config, source, each.sound)
                taken += not fault
            left += [f"{each.id}, {fault}"] if fault else []
    return {"taken": taken, "left": left}


def _copy(config: Config, source: Path, manifest: Manifest) -> str:
    """Copy one backup; return why it is not as its manifest says, empty when it is and counts now."""
    # The owner could have written any number; the one after it has to count as well.
    if manifest.sequence > LARGEST:
        return f"its manifest says sequence = {manifest.sequence}"
    host.require_free(config.backup_directory, manifest.bytes + config.minimum_free_mb * host.MB, "a copied backup")
    partial = config.backup_directory / catalog.PACKED
    guarded.clear(partial)
    try:
        descriptor = guarded.opened(source / manifest.file, os.O_RDONLY)
    except Failure as failure:
        return str(failure)
    except FileNotFoundError:
        return f"its file {manifest.file} is gone"
    with os.fdopen(descriptor, "rb") as stream, packing.Sink(partial) as sink:
        while sink.size <= manifest.bytes and (chunk := stream.read(packing.CHUNK)):
            sink.write(chunk)
    if (sink.size, sink.digest.hexdigest()) != (manifest.bytes, manifest.sha256):
        partial.unlink()
        return f"the SHA-256 of {manifest.file} is not that of its manifest"
    try:
        catalog.publish(config, partial, manifest)
    except Failure as failure:
        partial.unlink(missing_ok=True)
        return str(failure)
    return ""
