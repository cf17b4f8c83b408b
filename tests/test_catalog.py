"""The backups on the disk: which one is meant, which count, and why the others do not."""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from abathur_db import backup, catalog, guarded, metrics, proof, report, restore, runs, schema, status
from abathur_db import manifest as manifests
from abathur_db.config import Config
from abathur_db.result import Failure, Result
from backups import copies, manifest


@pytest.fixture(autouse=True)
def _database(conf: Config) -> None:
    schema.init(conf)


def made(conf: Config, **changes: Any) -> str:
    """Make a backup and change its manifest; return its ID."""
    identity: str = backup.backup(conf).data["id"]
    path = manifest(conf, identity)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return identity


def test_a_backup_is_found_by_its_id_its_name_its_file_and_as_the_latest(conf: Config) -> None:
    older, newer = made(conf), made(conf)
    for wanted in (older, f"abathur_{older}", f"abathur_{older}.db.zst"):
        assert catalog.find(conf, wanted).id == older
    assert catalog.find(conf, "latest").id == newer


def test_a_moment_means_the_last_backup_at_or_before_it(conf: Config) -> None:
    monday = made(conf, created="2026-11-23T02:00:00+00:00")
    tuesday = made(conf, created="2026-11-24T02:00:00+00:00")
    assert catalog.find(conf, "2026-11-24T01:59:59").id == monday
    assert catalog.find(conf, "2026-11-24 02:00").id == tuesday
    assert catalog.find(conf, "2026-11-24T03:00:00+02:00").id == monday
    with pytest.raises(Failure, match="there is no backup at or before 2026-11-22 in"):
        catalog.find(conf, "2026-11-22")


def test_there_is_no_latest_backup_where_none_is_verified_and_the_failed_check_of_the_newest_is_named(
    conf: Config,
) -> None:
    for identity in (made(conf), newest := made(conf)):
        catalog.remember_check(conf, identity, "verify", fault="it is damaged")
    when = catalog.checks(conf)[newest]["verify"]["time"]
    said = f"none of 2 backups in {conf.backup_directory} is verified; the newest, {newest}, failed its check at {when}"
    with pytest.raises(Failure, match=re.escape(said)) as caught:
        catalog.find(conf, "latest")
    assert caught.value.hint == f"prove them again: abathur-db verify all --database {conf.database}"


def test_an_unknown_backup_is_refused_with_the_ones_there_are(conf: Config) -> None:
    identity = made(conf)
    with pytest.raises(Failure, match=f"there is no backup yesterday in .*; the newest are: {identity}") as caught:
        catalog.find(conf, "yesterday")
    assert caught.value.hint == f"see them all: abathur-db backups {conf.database}"


def test_what_is_damaged_does_not_count_and_the_list_names_it(conf: Config) -> None:
    good, bad = made(conf), made(conf)
    manifest(conf, bad).unlink()
    assert [each.id for each in catalog.backups(conf)] == [good]
    assert catalog.find(conf, "latest").id == good
    listed = catalog.list_backups(conf)
    assert {each["id"]: each["counts"] for each in listed.data["backups"]} == {good: True, bad: False}
    assert any(f"{bad}" in line and "does not count" in line for line in listed.report())
    assert "1 backup," in listed.summary
    assert "1 that do not count" in listed.summary


def test_other_files_are_nobodys_backups(conf: Config) -> None:
    made(conf)
    for name in ("notes.txt", "abathur_old.db", "abathur_20200101_000000.tar", "my_20200101_000000.db"):
        (conf.backup_directory / name).touch()
    assert len(catalog.entries(conf)) == 1


def test_there_are_no_backups_where_there_is_no_directory(conf: Config) -> None:
    assert catalog.entries(conf) == []
    assert catalog.list_backups(conf).summary == f"0 backups, 0 B, in {conf.backup_directory}"


def test_the_sequence_goes_on_when_every_backup_is_gone_or_the_note_of_it(conf: Config) -> None:
    first = made(conf)
    for each in conf.backup_directory.iterdir():
        each.unlink()
    second = made(conf)
    assert catalog.find(conf, second).sequence == 2
    (conf.state_directory / catalog.SEQUENCE).unlink()
    assert catalog.find(conf, made(conf)).sequence == 3
    assert first <= second


def test_a_backup_whose_last_check_failed_is_not_the_newest_verified_one(conf: Config) -> None:
    older, newer = made(conf), made(conf)
    catalog.remember_check(conf, newer, "verify", fault="flipped")
    newest = catalog.newest_verified(conf)
    assert newest is not None
    assert newest.id == older
    assert any(f"{newer:22}" in line and "FAILED" in line for line in catalog.list_backups(conf).report())


def test_checks_of_backups_that_are_gone_are_forgotten(conf: Config) -> None:
    identity = made(conf)
    for name in ("20200101_000000", identity):
        catalog.remember_check(conf, name, "drill", fault="")
    catalog.remember_check(conf, identity, "drill", fault="")
    assert set(catalog.checks(conf)) == {identity}
    for text in ("[]", "half of a no", '{"20200101_000000": 5}', '{"x": {"ok": true, "drill": 5}}'):
        (conf.state_directory / catalog.CHECKS).write_text(text)
        assert catalog.checks(conf) == {}


def test_notes_of_bad_backups_are_kept_however_many_there_are_of_good_ones(conf: Config) -> None:
    names = [f"2020{number // 100 % 12 + 1:02}01_{number:06}" for number in range(7500)]
    conf.backup_directory.mkdir()
    for name in names:
        (conf.backup_directory / f"abathur_{name}.db").touch()
    passed = {"time": "2026-11-24T02:00:00+00:00", "ok": True, "summary": "passed", "seconds": None}
    notes: dict[str, Any] = {name: {"verify": passed, "ok": True} for name in names}
    bad = sorted(names)[:5]
    notes |= {name: {"verify": {**passed, "ok": False}, "ok": False} for name in bad}
    conf.state_directory.mkdir()
    (conf.state_directory / catalog.CHECKS).write_text(json.dumps(notes, separators=(",", ":")))
    assert len(catalog.checks(conf)) == len(names)
    catalog.remember_check(conf, sorted(names)[-1], "drill", fault="rows " * 100_000)
    known = catalog.checks(conf)
    assert {name for name, note in known.items() if not note["ok"]} == {*bad, sorted(names)[-1]}
    assert len(known) > 6000


@pytest.mark.parametrize(("hours", "ok"), [(0, True), (25, True), (27, False), (-2, False)])
def test_the_newest_verified_backup_may_be_neither_too_old_nor_from_the_future(
    conf: Config, hours: int, ok: bool
) -> None:
    made(conf, created=(datetime.now(UTC) - timedelta(hours=hours)).isoformat())
    check = catalog.age_check(conf, catalog.newest_verified(conf))
    assert (check.ok, check.expected) == (ok, "a verified backup of the last 26 h")


def test_no_backup_at_all_is_too_old(conf: Config) -> None:
    assert catalog.age_check(conf, None).measured == "no verified backup"
    assert catalog.age_check(conf, None).hint == f"make one: abathur-db backup {conf.database}"
    on_a_host = catalog.age_check(replace(conf, owner="abathur"), None).hint
    assert on_a_host.startswith("make one: systemctl start abathur-db@backup; see why: journalctl")


def test_old_backups_show_their_age_in_days(conf: Config) -> None:
    made(conf, created=(datetime.now(UTC) - timedelta(days=5)).isoformat())
    assert any("5 days" in line for line in catalog.list_backups(replace(conf)).report())


READS: list[str] | None = None
"""Manifests that were opened, while somebody counts."""


def _reads(event: str, arguments: tuple[Any, ...]) -> None:
    if READS is not None and event == "open" and re.search(r"/abathur_\d[^/]*\.json$", str(arguments[0])):
        READS.append(str(arguments[0]))


# An audit hook stays for good: that is why it asks.
sys.addaudithook(_reads)


@pytest.mark.parametrize(
    "command",
    [
        catalog.list_backups,
        status.status,
        metrics.collect,
        backup.prune,
        backup.backup,
        proof.drill,
        lambda conf: report.report(conf, None),
        lambda conf: proof.verify(conf, "latest"),
        lambda conf: proof.verify(conf, "all"),
        lambda conf: restore.restore(conf, "latest"),
        lambda conf: restore.restore(conf, datetime.now(UTC).isoformat()),
    ],
)
def test_a_command_opens_each_manifest_twice_at_most_however_many_there_are(
    conf: Config, command: Callable[[Config], Result], monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = replace(conf, backup_keep_daily=400)
    copies(conf, made(conf), 30)
    monkeypatch.setattr(sys.modules[__name__], "READS", [])
    assert command(conf).ok
    assert READS
    assert max(Counter(READS).values()) <= 2


def test_a_file_written_durably_is_whole(tmp_path: Path) -> None:
    runs.write_whole(tmp_path / "file", "text", durable=True)
    assert [each.name for each in tmp_path.glob("*file*")] == ["file"]


def test_notes_of_checks_that_do_not_fit_are_those_of_good_backups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guarded, "LIMIT", 100)
    known = {f"2026112{day}_020000": {"ok": day != 4} for day in range(9)}
    kept = json.loads(catalog._fitting(known))
    assert 0 < len(kept) < len(known)
    assert kept["20261124_020000"] == {"ok": False}


WRONG: dict[str, tuple[Any, ...]] = {
    "id": (1, None, [], True),
    "sequence": (True, 1.0, "1", -1, 2**63, None),
    "bytes": (True, 1.0, "1", -1, 2**63, None),
    "rows": ([], {"t": True}, {"t": 1.0}, {"t": -1}, {"t": 2**63}, {"t": "1"}, None),
    "user_version": (True, 1.0, "1", -(2**31) - 1, 2**31, None),
    "application_id": (True, 1.0, "1", -(2**31) - 1, 2**31, None),
    "seconds": (True, "1", -1, -0.5, 2**63, None),
}
RIGHT: dict[str, tuple[Any, ...]] = {
    "sequence": (0, 2**63 - 1),
    "rows": ({}, {"t": 0}, {"t": 2**63 - 1}),
    "user_version": (-(2**31), 2**31 - 1),
    "seconds": (0, 0.5, 10),
}


def test_each_value_of_a_manifest_is_of_its_kind_and_within_its_limits(conf: Config) -> None:
    schema.init(conf)
    made = json.loads(backup_of(conf).text())
    for name, values in WRONG.items():
        for value in values:
            with pytest.raises((ValueError, TypeError)):
                manifests.parse(json.dumps({**made, name: value}))
    for name, values in RIGHT.items():
        for value in values:
            assert getattr(manifests.parse(json.dumps({**made, name: value})), name) == value
    for name in made:
        with pytest.raises((ValueError, TypeError)):
            manifests.parse(json.dumps({each: value for each, value in made.items() if each != name}))


def backup_of(conf: Config) -> manifests.Manifest:
    """Return the manifest of a new backup."""
    return catalog.find(conf, backup.backup(conf).data["id"])


@pytest.mark.parametrize(
    ("note", "known"),
    [
        ({"ok": True, "verify": {"ok": True, "time": "t"}}, True),
        ({"ok": False, "drill": {"ok": False, "time": "t", "summary": "s", "seconds": None}}, True),
        ({"ok": True, "verify": {"ok": True}}, False),
        ({"ok": True, "drill": {"time": "t"}}, False),
        ({"ok": True, "drill": [], "verify": {"ok": True, "time": "t"}}, False),
        ({"ok": 1}, False),
        ({}, False),
        ([], False),
    ],
)
def test_a_note_of_checks_is_one_with_a_result_and_the_moment_of_each(conf: Config, note: Any, known: bool) -> None:
    conf.state_directory.mkdir(parents=True, exist_ok=True)
    (conf.state_directory / catalog.CHECKS).write_text(json.dumps({"some": note}))
    assert list(catalog.checks(conf)) == (["some"] if known else [])
