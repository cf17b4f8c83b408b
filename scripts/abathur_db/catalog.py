"""The backups on the disk: what is known of each, which one is meant, and which do not count, and why."""

from __future__ import annotations

import glob
import json
import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from abathur_db import foreign, guarded, host, interruption, runs
from abathur_db.config import Config
from abathur_db.manifest import Manifest, parse
from abathur_db.result import Check, Failure, Result, counted, shell

PREFIX = "abathur_"
SUFFIXES = {"zstd": ".db.zst", "gzip": ".db.gz", "none": ".db"}
NAME = re.compile(r"abathur_(?P<id>\d{8}_\d{6}(?:_\d+)?)\.(?P<kind>json|db|db\.gz|db\.zst)")
STAMP = "%Y%m%d_%H%M%S"

ASIDE = "before-restore"
CHECKS = "checks.json"
SEQUENCE = "sequence"
PACKED = f".{PREFIX}new.packed.partial"
"""What becomes a backup when it is whole."""


@dataclass(frozen=True)
class Entry:
    """A backup or what is left of one: without a fault it counts."""

    id: str
    manifest: Manifest | None
    fault: str = ""

    @classmethod
    def of(cls, manifest: Manifest) -> Entry:
        """Return the entry of a backup that counts."""
        return cls(manifest.id, manifest)

    @property
    def sound(self) -> Manifest | None:
        """The manifest when the backup counts."""
        return None if self.fault else self.manifest


def entries(config: Config) -> list[Entry]:
    """Return everything in the backup directory that bears a backup's name, the newest first, faults last.

    Opens every manifest: a command reads them once and passes them on.
    """
    found = [_entry(config, name, config.backup_directory / f"{PREFIX}{name}.json") for name in _identities(config)]
    return sorted(found, key=lambda each: (each.manifest.sequence if each.manifest else -1, each.id), reverse=True)


def _identities(config: Config) -> set[str]:
    """Return the IDs that files in the backup directory bear."""
    if not config.backup_directory.is_dir():
        return set()
    return {match["id"] for match in map(NAME.fullmatch, os.listdir(config.backup_directory)) if match}


def _entry(config: Config, name: str, path: Path) -> Entry:
    """Return what there is of a backup by its manifest at `path`."""
    try:
        manifest = parse(guarded.read_text(path))
    except FileNotFoundError:
        return Entry(name, None, f"its manifest {path.name} is gone")
    except (Failure, OSError, ValueError, TypeError) as error:
        return Entry(name, None, f"its manifest {path.name} cannot be read: {error}")
    named = NAME.fullmatch(manifest.file)
    if manifest.id != name or not named or named["id"] != name or named["kind"] == "json":
        return Entry(name, None, f"its manifest {path.name} names another backup: {manifest.file}")
    try:
        file = os.lstat(config.backup_directory / manifest.file)
    except FileNotFoundError:
        file = None
    if file is None or not stat.S_ISREG(file.st_mode):
        return Entry(name, manifest, f"its file {manifest.file} is gone")
    if file.st_size != manifest.bytes:
        return Entry(name, manifest, f"{manifest.file} has {file.st_size} bytes, its manifest says {manifest.bytes}")
    return Entry(name, manifest)


def publish(config: Config, packed: Path, manifest: Manifest) -> None:
    """Give a packed file its name as a backup, with its manifest, which is read back before it counts.

    Raises Failure when it would not count, OSError; nothing is kept then.
    """
    # The manifest comes last: a file without one does not count as a backup. Until then its partial
    # names the file as unfinished, so that a run that is killed in between leaves nothing for good.
    file = config.backup_directory / manifest.file
    final = config.backup_directory / f"{PREFIX}{manifest.id}.json"
    partial = final.with_name(f".{final.name}.partial")
    placed = [partial]
    with interruption.change(f"backup {manifest.id} was kept"):
        try:
            partial.write_text(manifest.text(), encoding="utf-8")
            guarded.sync(partial)
            os.replace(packed, file)
            placed.insert(0, file)
            guarded.sync(config.backup_directory)
            if fault := _entry(config, manifest.id, partial).fault:
                raise Failure(
                    f"the backup would not count: {fault}; nothing was kept of it, older backups are untouched",
                    f"see what keeps it from being read: {shell('ls', '-la', config.backup_directory)}",
                )
            os.replace(partial, final)
            placed.insert(0, final)
            guarded.sync(config.backup_directory)
        except BaseException:
            # The manifest goes first and its partial last, for the same reasons.
            for each in placed:
                each.unlink(missing_ok=True)
            raise


def kept_aside(config: Config) -> list[Path]:
    """Return the folders with former databases that restores kept, the oldest first; only people delete them."""
    return sorted(config.database.parent.glob(f"{glob.escape(config.database.name)}.{ASIDE}_*"))


def backups(config: Config) -> list[Manifest]:
    """Return the backups that count, the newest first."""
    return sound(entries(config))


def pruned(config: Config, manifest: Manifest) -> bool:
    """Tell whether a backup that counted has been deleted since."""
    return not os.path.lexists(config.backup_directory / f"{PREFIX}{manifest.id}.json")


def sound(found: Iterable[Entry]) -> list[Manifest]:
    """Return those that count, in their order."""
    return [each.sound for each in found if each.sound]


def verified(config: Config, found: Iterable[Manifest]) -> list[Manifest]:
    """Return those whose last check passed, in their order; making a backup counts as a check."""
    known = checks(config)
    return [each for each in found if known.get(each.id, {"ok": True})["ok"]]


def newest_verified(config: Config) -> Manifest | None:
    """Return the newest backup whose last check passed."""
    return next(iter(verified(config, backups(config))), None)


def find(config: Config, wanted: str) -> Manifest:
    """Return the backup meant by an ID, a file name, `latest`, or a moment (the last one at or before it).

    Raises Failure, naming the ones there are, when none fits or the one that fits does not count.
    """
    found = entries(config)
    named = NAME.fullmatch(wanted)
    identity = named["id"] if named else wanted.removeprefix(PREFIX)
    for each in found:
        if each.id == identity:
            if each.sound:
                return each.sound
            raise Failure(
                f"backup {each.id} does not count: {each.fault}", f"see the others: {config.command('backups')}"
            )
    counting = sound(found)
    if wanted == "latest":
        if good := verified(config, counting):
            return good[0]
        if counting:
            raise _none_verified(config, counting)
    elif (at := moment(wanted)) and (nearest := before(counting, at)):
        return nearest
    names = ", ".join(each.id for each in counting[:5]) or "none"
    wanted = f"at or before {wanted}" if moment(wanted) else wanted
    raise Failure(
        f"there is no backup {wanted} in {config.backup_directory}; the newest are: {names}",
        f"see them all: {config.command('backups')}",
    )


def _none_verified(config: Config, counting: list[Manifest]) -> Failure:
    newest = counting[0].id
    known = checks(config)[newest]
    last = max((str(known[kind]["time"]) for kind in ("verify", "drill") if kind in known), default="some time")
    return Failure(
        f"none of {counted(len(counting), 'backup')} in {config.backup_directory} is verified; "
        f"the newest, {newest}, failed its check at {last}",
        f"prove them again: {config.command('verify', 'all')}",
    )


def before(found: Iterable[Manifest], at: datetime) -> Manifest | None:
    """Return the last backup at or before a moment; `found`: the newest first."""
    return next((each for each in found if each.moment <= at), None)


def moment(text: str) -> datetime | None:
    """Return the moment that a text names, in UTC unless it says otherwise; None for another text."""
    try:
        return foreign.moment(text)
    except ValueError:
        return None


def next_sequence(config: Config, found: Iterable[Entry]) -> int:
    """Return the number of the backup after `found`, and remember it: also when every backup is gone it goes on."""
    path = config.records("backup") / SEQUENCE
    try:
        last = foreign.whole(guarded.read_text(path))
    except (FileNotFoundError, ValueError):
        last = 0
    number = max([last, *(each.manifest.sequence for each in found if each.manifest)]) + 1
    guarded.directory(path.parent)
    runs.write_whole(path, f"{number}\n")
    return number


def checks(config: Config) -> dict[str, dict[str, Any]]:
    """Return by backup ID whether its last check passed (`ok`), and the last `verify` and `drill` of each.

    Each of the two holds time, ok, summary, seconds. What cannot be read is as if nothing was checked: it is the
    database's owner who writes it, and that one stops no backup.
    """
    try:
        found = foreign.record(guarded.read_text(config.state_directory / CHECKS))
    except (Failure, OSError, ValueError):
        return {}
    return {name: each for name, each in found.items() if _is_check(each)}


def _is_check(value: Any) -> bool:
    """Tell whether a note of a backup's checks is one that this tool wrote, and not another's."""
    if not isinstance(value, dict) or type(value.get("ok")) is not bool:
        return False
    kinds = [value[kind] for kind in ("verify", "drill") if kind in value]
    return all(isinstance(each, dict) and {"ok", "time"} <= each.keys() for each in kinds)


def remember_check(config: Config, identity: str, kind: str, *, fault: str, seconds: float | None = None) -> None:
    """Keep a check of a backup, `verify` or `drill`, and forget those of backups that are gone."""
    there = _identities(config)
    known = {name: value for name, value in checks(config).items() if name in there}
    summary = fault[: runs.SUMMARY_LENGTH] or "passed"
    check = {"time": runs.now(), "ok": not fault, "summary": summary, "seconds": seconds}
    known[identity] = {**known.get(identity, {}), kind: check, "ok": not fault}
    mode = 0o640 if config.backup_owner else 0o600
    with interruption.change("the checks of backups until then were noted"):
        runs.write_whole(config.state_directory / CHECKS, _fitting(known), mode=mode)


def _fitting(known: dict[str, dict[str, Any]]) -> str:
    """Return notes as JSON that their reader takes: those of bad backups before those of good ones, the newest first.

    A backup without a note counts as good, so the notes that no longer fit change nothing.
    """
    lines: list[str] = []
    left = guarded.LIMIT - len("{\n\n}\n")
    for name in sorted(sorted(known, reverse=True), key=lambda each: bool(known[each]["ok"])):
        line = f"{json.dumps(name)}: {json.dumps(known[name])}"
        left -= len(line) + len(",\n")
        if left < 0:
            break
        lines.append(line)
    return "{\n" + ",\n".join(lines) + "\n}\n"


def directory_check(config: Config) -> Check | None:
    """Return the failed check of a backup directory that is absent, as when its disk is not mounted; None otherwise."""
    path = config.backup_directory
    if os.path.lexists(path) or not config.owner:
        return None
    mode, owner = ("0750", config.backup_owner) if config.backup_owner else ("0700", config.owner)
    made = shell("install", "-d", "-m", mode, "-o", owner, "-g", host.account(owner).pw_gid, path)
    return Check(
        "backup_directory",
        False,
        "a directory for backups",
        f"{path} is absent: its disk is not mounted, or somebody deleted it; no backup can be made",
        f"if it is a disk of its own, mount it: {shell('mount', path)}; else make it: {made}",
    )


def age_check(config: Config, newest: Manifest | None) -> Check:
    """Check that the newest verified backup is young enough; one from the future is as suspect as none."""
    limit = config.backup_maximum_age_hours
    hours = (datetime.now(UTC) - newest.moment).total_seconds() / 3600 if newest else None
    measured = f"{newest.id}, {hours:.1f} h old" if newest and hours is not None else "no verified backup"
    return Check(
        "backup_age",
        hours is not None and -1 <= hours <= limit,
        f"a verified backup of the last {limit} h",
        measured,
        f"make one: {config.job('backup')}"
        + ("; see why: journalctl -u abathur-db@backup -n 50" if config.owner else ""),
    )


def list_backups(config: Config) -> Result:
    """List the backups with age, size, rows, last check and drill, and what does not count and why."""
    known = checks(config)
    found = entries(config)
    listed = []
    lines = [f"{'id':22} {'age':>8} {'size':>9} {'rows':>9} {'made with':10} {'verify':32} drill"]
    for each in found:
        manifest = each.sound
        if manifest is None:
            listed.append({"id": each.id, "counts": False, "fault": each.fault})
            lines.append(f"{each.id:22} does not count: {each.fault}")
            continue
        verified, drilled = (known.get(each.id, {}).get(kind) for kind in ("verify", "drill"))
        rows = sum(manifest.rows.values())
        listed.append({"counts": True, "fault": "", "verify": verified, "drill": drilled, **vars(manifest)})
        lines.append(
            f"{each.id:22} {_age(manifest):>8} {host.readable(manifest.bytes):>9} {rows:9} {manifest.check:10}"
            f" {_said(verified):32} {_said(drilled)}"
        )
    good = sound(found)
    size = host.readable(sum(each.bytes for each in good))
    summary = f"{counted(len(good), 'backup')}, {size}, in {config.backup_directory}"
    if len(good) < len(found):
        summary += f"; {len(found) - len(good)} that do not count"
    return Result("backups", summary, data={"backups": listed}, table=[*lines, ""] if found else [])


def _said(check: dict[str, Any] | None) -> str:
    return f"{'passed' if check['ok'] else 'FAILED'} {check['time']}" if check else "-"


def _age(manifest: Manifest) -> str:
    hours = (datetime.now(UTC) - manifest.moment).total_seconds() / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.0f} days"
