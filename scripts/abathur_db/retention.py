"""Which backups stay and which go: so many days, weeks and months, a floor, and never the newest good one."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from abathur_db import catalog, guarded, host, interruption
from abathur_db.config import Config
from abathur_db.manifest import Manifest
from abathur_db.result import Check, Result

DELETING = ".deleting"
FUTURE = timedelta(hours=1)
"""A stamp further ahead than this was made while the clock was wrong: it neither counts nor goes."""

PERIODS: tuple[tuple[str, Callable[[datetime], str]], ...] = (
    ("daily", lambda moment: f"{moment:%Y-%m-%d}"),
    ("weekly", lambda moment: f"{moment:%G-W%V}"),
    ("monthly", lambda moment: f"{moment:%Y-%m}"),
)


@dataclass(frozen=True)
class Verdict:
    """What happens to one backup, and why."""

    manifest: Manifest
    keep: bool
    reason: str


def judge(
    found: list[Manifest],
    good: Collection[str],
    counts: dict[str, int],
    *,
    minimum: int,
    never: Collection[str],
    now: datetime,
) -> list[Verdict]:
    """Judge backups, the newest first (by sequence): the last one of each of the last N days, weeks, months stays.

    Periods without a backup do not use the count up, so that a host that was off loses nothing.
    `good`: IDs of those that are not known to be bad. `never`: IDs that stay in any case.
    Pure: nothing is read or deleted.
    """
    reasons: dict[str, str] = {}
    present = []
    for each in found:
        if each.moment > now + FUTURE:
            reasons[each.id] = "its time is in the future"
            continue
        present.append(each)
        if each.id in never:
            reasons[each.id] = "the newest one, the newest verified one, or the one that a rollback needs"
    # By the same rules twice: the database's owner says which backups are good, and that may only spare some.
    _keep(present, counts, minimum, reasons, "")
    _keep([each for each in present if each.id in good], counts, minimum, reasons, ", counting good backups only")
    return [Verdict(each, each.id in reasons, reasons.get(each.id, "out of every period")) for each in found]


def _keep(among: list[Manifest], counts: dict[str, int], minimum: int, reasons: dict[str, str], which: str) -> None:
    """Add to `reasons` what keeps backups, judged among themselves; one that it keeps already has its reason."""
    for each in among[:minimum]:
        reasons.setdefault(each.id, f"one of the {minimum} newest{which}")
    for name, period_of in PERIODS:
        seen: set[str] = set()
        for each in among:
            if len(seen) == counts[name]:
                break
            period = period_of(each.moment.astimezone(UTC))
            if period not in seen:
                seen.add(period)
                reasons.setdefault(each.id, f"{name} {period}{which}")


def prune(config: Config, found: list[Manifest], *, never: Collection[str], dry_run: bool = False) -> Result:
    """Delete the backups that nothing keeps; only what has a manifest of ours is ever looked at.

    `found`: those that count, the newest first. `never`: IDs that stay in any case. A file that cannot be deleted is a
    failed check, and the others go all the same.
    """
    good = catalog.verified(config, found)
    kept = {*never, *(each.id for each in (*found[:1], *good[:1]))}
    counts = {name: getattr(config, f"backup_keep_{name}") for name, _ in PERIODS}
    verdicts = judge(
        found,
        {each.id for each in good},
        counts,
        minimum=config.backup_keep_minimum,
        never=kept,
        now=datetime.now(UTC),
    )
    go = [each.manifest for each in verdicts if not each.keep]
    faults: dict[Path, str] = {}
    if not dry_run:
        go = _mark(config, go, faults)
        _finish(config, faults)
    size = host.readable(sum(each.bytes for each in go))
    listed = [{"id": each.manifest.id, "keep": each.keep, "reason": each.reason} for each in verdicts]
    lines = [f"{'keep' if each.keep else 'go':5} {each.manifest.id:22} {each.reason}" for each in verdicts]
    summary = f"{'would remove' if dry_run else 'removed'} {len(go)} of {len(verdicts)} backups ({size})"
    checks = _check(faults)
    if checks:
        summary += f"; {checks[0].measured}"
    return Result(
        "prune",
        summary,
        changed=bool(go),
        checks=checks,
        data={"backups": listed},
        hint=checks[0].hint if checks else "",
        table=lines,
    )


def _check(faults: dict[Path, str]) -> list[Check]:
    if not faults:
        return []
    path, why = next(iter(faults.items()))
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    said = f"{path.name} cannot be deleted: {why}{more}"
    return [Check("prune", False, "every file that is to go deleted", said, f"see what keeps it: lsattr {path}")]


def _mark(config: Config, go: list[Manifest], faults: dict[Path, str]) -> list[Manifest]:
    """Let backups stop counting, each in one step; return those that did, and add the others to `faults`."""
    marked = []
    for each in go:
        path = config.backup_directory / f"{catalog.PREFIX}{each.id}.json"
        try:
            with interruption.change(f"backup {each.id} was deleted"):
                path.rename(path.with_name(path.name + DELETING))
            marked.append(each)
        except OSError as error:
            faults[path] = str(error.strerror)
    guarded.sync(config.backup_directory)
    return marked


def _finish(config: Config, faults: dict[Path, str]) -> None:
    """Delete what was marked, now or by a run that was killed: its file, then the rest of its manifest."""
    for marked in config.backup_directory.glob(f"{catalog.PREFIX}*.json{DELETING}"):
        name = marked.name.removesuffix(f".json{DELETING}")
        # One that has its manifest still counts, whatever bears the name of a mark beside it.
        if not catalog.NAME.fullmatch(f"{name}.json") or os.path.lexists(marked.with_name(f"{name}.json")):
            continue
        for each in (*(marked.with_name(name + suffix) for suffix in catalog.SUFFIXES.values()), marked):
            try:
                each.unlink(missing_ok=True)
            except OSError as error:
                # Its mark stays with it, and the next run tries again.
                faults[each] = str(error.strerror)
                break
