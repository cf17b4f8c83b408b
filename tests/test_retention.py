"""Retention: which backups stay, which go, and what is never touched."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from abathur_db import backup, catalog, proof, release, retention, schema
from abathur_db.config import Config
from abathur_db.manifest import Manifest
from abathur_db.retention import Verdict
from backups import edit, flip
from databases import picture
from hypothesis import given
from hypothesis import strategies as st

NOW = datetime(2026, 11, 24, 12, tzinfo=UTC)
FACTS: dict[str, Any] = {
    "file": "",
    "sha256": "",
    "bytes": 1,
    "plain_sha256": "",
    "plain_bytes": 1,
    "page_count": 1,
    "user_version": 1,
    "application_id": 0,
    "rows": {},
    "sqlite_version": "",
    "tool_version": "",
    "check": "quick",
    "seconds": 1.0,
}


def manifests(moments: list[datetime]) -> list[Manifest]:
    """Return backups of these moments in the order made, the newest (last made) first."""
    numbered = [
        Manifest(id=f"{number}", sequence=number, created=moment.isoformat(), **FACTS)
        for number, moment in enumerate(moments, 1)
    ]
    return numbered[::-1]


def judged(
    found: list[Manifest],
    numbers: tuple[int, ...],
    *,
    bad: Collection[str] = (),
    never: Collection[str] = (),
    now: datetime = NOW,
) -> list[Verdict]:
    """Judge by the counts daily, weekly, monthly and the minimum; `bad`: IDs that failed their last check."""
    *counts, minimum = numbers
    by_name = dict(zip(("daily", "weekly", "monthly"), counts, strict=True))
    good = {each.id for each in found} - set(bad)
    return retention.judge(found, good, by_name, minimum=minimum, never=never, now=now)


def staying(verdicts: list[Verdict]) -> set[str]:
    return {each.manifest.id for each in verdicts if each.keep}


def kept(moments: list[datetime], daily: int, weekly: int, monthly: int, minimum: int = 0) -> list[datetime]:
    verdicts = judged(manifests(moments), (daily, weekly, monthly, minimum))
    return [each.manifest.moment for each in verdicts if each.keep]


def days(*ago: int) -> list[datetime]:
    return [NOW - timedelta(days=each) for each in ago]


def test_the_last_backup_of_each_of_the_last_days_stays() -> None:
    assert kept(days(4, 3, 2, 1, 0), daily=3, weekly=0, monthly=0) == days(0, 1, 2)


def test_of_several_backups_of_a_day_the_last_stays() -> None:
    day = [NOW.replace(hour=hour) for hour in (1, 5, 9)]
    assert kept(day, daily=2, weekly=0, monthly=0) == day[2:]


def test_days_without_a_backup_do_not_use_the_count_up() -> None:
    assert kept(days(100, 50, 0), daily=3, weekly=0, monthly=0) == days(0, 50, 100)


def test_weeks_and_months_reach_further_back() -> None:
    every = days(*range(400, -1, -1))
    found = kept(every, daily=30, weekly=8, monthly=12)
    assert len([each for each in found if each > NOW - timedelta(days=30)]) == 30
    assert 30 + 3 + 9 <= len(found) <= 30 + 8 + 12
    assert min(found) < NOW - timedelta(days=320)


def test_the_floor_holds_whatever_the_counts_say() -> None:
    assert kept(days(9, 8, 7), daily=0, weekly=0, monthly=0, minimum=2) == days(7, 8)


def test_a_stamp_from_the_future_neither_counts_nor_goes() -> None:
    ahead = NOW + timedelta(days=400)
    assert kept([ahead, *days(2, 1)], daily=1, weekly=0, monthly=0) == [*days(1), ahead]


def test_of_a_day_whose_last_backup_is_bad_the_last_good_one_stays_too() -> None:
    early, middle, late = (NOW.replace(hour=hour) for hour in (1, 5, 9))
    found = manifests([early, middle, late])
    verdicts = judged(found, (1, 0, 0, 0), bad={found[0].id})
    assert [each.manifest.moment for each in verdicts if each.keep] == [late, middle]


def test_days_with_bad_backups_alone_do_not_use_up_the_days_of_the_good_ones() -> None:
    found = manifests(days(5, 4, 3, 2, 1, 0))
    bad = {each.id for each in found[:3]}
    assert staying(judged(found, (2, 0, 0, 0), bad=bad)) == {each.id for each in [*found[:2], *found[3:5]]}


def test_the_floor_is_made_of_good_backups() -> None:
    found = manifests(days(6, 5, 4, 3, 2))
    bad = {each.id for each in found[:3]}
    assert {each.id for each in found[3:5]} <= staying(judged(found, (0, 0, 0, 2), bad=bad))


# Often several of one day, and any of some years.
moments = st.one_of(st.integers(-240, 48), st.integers(-25_000, 10_000)).map(lambda each: NOW + timedelta(hours=each))
numbers = st.tuples(*[st.integers(0, 40)] * 4)


def history_of(made: list[tuple[datetime, bool]]) -> tuple[list[Manifest], set[str]]:
    """Return backups, and the IDs of those that are known to be bad."""
    found = manifests([moment for moment, _ in made])
    return found, {each.id for each, (_, good) in zip(found, reversed(made), strict=True) if not good}


histories = st.lists(st.tuples(moments, st.booleans())).map(history_of)


@given(histories, numbers, st.data())
def test_whatever_the_history_retention_keeps_what_it_promises(
    history: tuple[list[Manifest], set[str]], numbers: tuple[int, int, int, int], data: st.DataObject
) -> None:
    found, bad = history
    daily, weekly, monthly, minimum = numbers
    never = data.draw(st.sets(st.sampled_from([each.id for each in found]))) if found else set()
    verdicts = judged(found, numbers, bad=bad, never=never)
    stay = staying(verdicts)
    present = [each for each in found if each.moment <= NOW + retention.FUTURE]
    good = [each for each in present if each.id not in bad]
    assert [each.manifest for each in verdicts] == found
    assert never <= stay
    assert {each.id for each in found} - {each.id for each in present} <= stay
    assert {each.id for each in good[:minimum]} <= stay
    days_kept = {each.moment.date() for each in good if each.id in stay}
    assert len(days_kept) >= min(daily, len({each.moment.date() for each in good}))
    assert len([each for each in present if each.id in stay]) <= 2 * (daily + weekly + monthly + minimum) + len(never)
    # Judging what stayed again lets nothing more go.
    again = judged([each for each in found if each.id in stay], numbers, bad=bad, never=never)
    assert all(each.keep for each in again)


@given(histories, numbers)
def test_every_period_that_counts_keeps_its_last_backup_and_its_last_good_one_and_says_why(
    history: tuple[list[Manifest], set[str]], numbers: tuple[int, int, int, int]
) -> None:
    """Said anew in other words: of each period the last made, of the newest periods as many as the count."""
    found, bad = history
    *wanted, minimum = numbers
    periods: tuple[Callable[[Manifest], Any], ...] = (
        lambda each: each.moment.date(),
        lambda each: each.moment.isocalendar()[:2],
        lambda each: (each.moment.year, each.moment.month),
    )
    verdicts = judged(found, numbers, bad=bad)
    present = [each for each in found if each.moment <= NOW + retention.FUTURE]
    needed = {each.id for each in found if each not in present}
    for among in (present, [each for each in present if each.id not in bad]):
        needed |= {each.id for each in among[:minimum]}
        for count, period_of in zip(wanted, periods, strict=True):
            lasts: dict[Any, str] = {}
            for each in among:
                lasts.setdefault(period_of(each), each.id)
            needed |= set(list(lasts.values())[:count])
    assert staying(verdicts) == needed
    assert all(bool(each.reason) for each in verdicts)
    assert {each.reason for each in verdicts if not each.keep} <= {"out of every period"}


@given(histories, numbers)
def test_what_is_said_of_backups_being_bad_lets_none_go_that_would_stay_without_it(
    history: tuple[list[Manifest], set[str]], numbers: tuple[int, int, int, int]
) -> None:
    found, bad = history
    assert staying(judged(found, numbers)) <= staying(judged(found, numbers, bad=bad))


@given(histories, numbers)
def test_keeping_more_never_lets_more_go_and_the_newest_goes_only_where_nothing_is_kept(
    history: tuple[list[Manifest], set[str]], numbers: tuple[int, int, int, int]
) -> None:
    found, bad = history
    assert staying(judged(found, numbers, bad=bad)) <= staying(
        judged(found, tuple(each + 1 for each in numbers), bad=bad)
    )
    present = [each for each in found if each.moment <= NOW + retention.FUTURE]
    assert not present or not any(numbers) or present[0].id in staying(judged(found, numbers, bad=bad))


@given(histories, numbers, st.timedeltas(timedelta(0), timedelta(days=4000)))
def test_a_clock_set_back_lets_nothing_go_that_was_kept_and_one_far_ahead_keeps_the_newest(
    history: tuple[list[Manifest], set[str]], numbers: tuple[int, int, int, int], off: timedelta
) -> None:
    found = [each for each in history[0] if each.moment <= NOW]
    bad = history[1]
    kept_now, back, ahead = (
        staying(judged(found, numbers, bad=bad, now=moment)) for moment in (NOW, NOW - off, NOW + off)
    )
    # Nothing is judged by its age, only by its order: ahead is as now, and back takes the newer ones out.
    assert ahead == kept_now
    assert {each.id for each in found if each.moment > NOW - off + retention.FUTURE} <= back


def calls(work: Callable[[], object]) -> int:
    """Count the functions that some work calls: a measure of it that is the same on every machine."""
    count = 0

    def called(_: object, event: str, __: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(called)
    try:
        work()
    finally:
        sys.setprofile(None)
    return count


def test_twice_the_backups_are_judged_with_twice_the_work() -> None:
    few, many = (manifests([NOW - timedelta(hours=each) for each in range(count, 0, -1)]) for count in (500, 1000))
    assert calls(lambda: judged(many, (30, 8, 12, 3))) < 2.2 * calls(lambda: judged(few, (30, 8, 12, 3)))


@pytest.fixture
def few(conf: Config) -> Config:
    """Return a configuration that keeps the two newest backups only."""
    schema.init(conf)
    return replace(conf, backup_keep_daily=0, backup_keep_weekly=0, backup_keep_monthly=0, backup_keep_minimum=2)


def names(conf: Config) -> list[str]:
    return [each.id for each in catalog.backups(conf)]


def test_a_good_backup_prunes_older_ones_and_says_so(few: Config) -> None:
    made = [backup.backup(few) for _ in range(3)]
    assert names(few) == [made[2].data["id"], made[1].data["id"]]
    assert "removed 1 of 3 backups" in made[2].summary
    assert len(list(few.backup_directory.iterdir())) == 4


def test_a_failed_backup_prunes_nothing(few: Config) -> None:
    many = replace(few, backup_keep_minimum=9)
    for _ in range(4):
        backup.backup(many)
    few.database.unlink()
    with pytest.raises(Exception, match="there is no database"):
        backup.backup(few)
    assert len(names(few)) == 4


def test_a_dry_run_lists_what_would_go_and_why_and_deletes_nothing(few: Config) -> None:
    made = [backup.backup(replace(few, backup_keep_minimum=9)).data["id"] for _ in range(3)]
    before = picture(few.backup_directory)
    result = backup.prune(few, dry_run=True)
    assert result.summary.startswith("would remove 1 of 3 backups")
    assert f"go    {made[0]:22} out of every period" in result.report()
    assert picture(few.backup_directory) == before


def test_the_newest_verified_backup_stays_behind_newer_ones_that_failed(few: Config) -> None:
    made = [backup.backup(replace(few, backup_keep_minimum=9)).data["id"] for _ in range(4)]
    for each in made[1:]:
        catalog.remember_check(few, each, "verify", fault="flipped")
    backup.prune(few)
    assert names(few) == [made[3], made[2], made[0]]


def test_nothing_but_the_newest_and_the_newest_verified_stays_in_any_case(few: Config) -> None:
    made = [backup.backup(replace(few, backup_keep_minimum=9)).data["id"] for _ in range(4)]
    catalog.remember_check(few, made[3], "verify", fault="flipped")
    backup.prune(replace(few, backup_keep_minimum=0))
    assert names(few) == [made[3], made[2]]


def test_the_good_backup_of_a_day_stays_when_the_later_one_of_that_day_failed_its_check(few: Config) -> None:
    """The scene of a night: two backups of one day, the later one damaged, and more days after it."""
    daily = replace(few, backup_keep_minimum=1, backup_keep_daily=9)
    early, late, *_ = (backup.backup(replace(few, backup_keep_minimum=9)).data["id"] for _ in range(4))
    for identity, hour in ((early, 2), (late, 3)):
        edit(few, identity, created=f"2026-11-20T{hour:02}:00:00+00:00")
    flip(few, late)
    assert not proof.verify(few, "all").ok
    backup.prune(daily)
    assert {early, late} <= set(names(few))


def test_the_backup_that_a_rollback_needs_stays(few: Config) -> None:
    first = backup.backup(replace(few, backup_keep_minimum=9)).data["id"]
    (few.install_directory / "kept").mkdir(parents=True)
    (few.install_directory / "kept" / release.RECORD).write_text(json.dumps({"backup": first}))
    for _ in range(3):
        backup.backup(few)
    assert first in names(few)


def test_what_the_bundle_did_not_write_is_never_touched(few: Config) -> None:
    few.backup_directory.mkdir()
    foreign = ("abathur_20200101_000000.db.zst", "notes.txt", "abathur_old.json.deleting")
    for name in foreign:
        (few.backup_directory / name).write_text("mine")
    for _ in range(3):
        backup.backup(few)
    assert all((few.backup_directory / name).read_text() == "mine" for name in foreign)


def in_the_way(few: Config, name: str) -> None:
    """Put a directory where pruning deletes or renames a file, as one that cannot be deleted."""
    (few.backup_directory / name / "something").mkdir(parents=True)


@pytest.mark.parametrize(("name", "count"), [("abathur_{}.db", 2), ("abathur_{}.json.deleting", 3)])
def test_one_file_that_cannot_be_deleted_stops_neither_pruning_nor_a_backup(few: Config, name: str, count: int) -> None:
    """The reproduction made a file immutable; a directory in its way is as stubborn, and needs no privilege."""
    made = [backup.backup(replace(few, backup_keep_minimum=9)).data["id"] for _ in range(5)]
    in_the_way(few, name.format(made[0]))
    for _ in range(2):
        result = backup.backup(few)
        assert result.ok
        assert [(check.id, check.warning) for check in result.checks] == [("prune", True)]
        assert f"abathur_{made[0]}" in result.summary
        assert "cannot be deleted" in result.summary
        assert names(few)[0] == result.data["id"]
        assert len(names(few)) == count
    result = backup.prune(few)
    assert result.exit_code == 1
    assert f"abathur_{made[0]}" in result.summary


def test_what_a_rollback_needs_and_cannot_be_read_prunes_nothing_and_fails_no_backup(few: Config) -> None:
    made = [backup.backup(replace(few, backup_keep_minimum=9)).data["id"] for _ in range(3)]
    (few.install_directory / "kept").mkdir(parents=True)
    (few.install_directory / "kept" / release.RECORD).write_text("half of a rec")
    result = backup.backup(few)
    assert result.ok
    assert f"kept/{release.RECORD} cannot be read" in result.summary
    assert result.hint.startswith("move it away, then deploy again: mv ")
    assert names(few) == [result.data["id"], *made[::-1]]


def test_what_a_killed_backup_left_and_cannot_be_deleted_fails_no_other(few: Config) -> None:
    few.backup_directory.mkdir()
    in_the_way(few, "abathur_20261124_020000.db.gz")
    partial = few.backup_directory / ".abathur_20261124_020000.json.partial"
    partial.touch()
    result = backup.backup(few)
    assert result.ok
    assert [(check.id, check.warning) for check in result.checks] == [("unfinished", True)]
    assert "abathur_20261124_020000.db.gz is a directory" in result.summary
    assert partial.exists()


def test_a_removal_that_was_killed_half_way_is_finished_by_the_next(
    few: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [backup.backup(replace(few, backup_keep_minimum=9)).data["id"] for _ in range(3)]
    monkeypatch.setattr(retention, "_finish", lambda *_: None)
    backup.prune(few)
    assert made[0] not in names(few)
    assert (few.backup_directory / f"abathur_{made[0]}.db.zst").exists()
    monkeypatch.undo()
    backup.prune(few)
    assert [each.name for each in few.backup_directory.iterdir() if made[0] + "." in each.name] == []
