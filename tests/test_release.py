"""Keeping a release and going back to it: the link, the configuration, the units; and the database where needed."""

from __future__ import annotations

import json
import os
import shutil
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from abathur_db import backup, catalog, host, release, replica, resources, restore, schema, seed
from abathur_db.config import Config
from abathur_db.result import Failure
from databases import corrupt, rows, run, value


@pytest.fixture
def called(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, ...]]:
    """Record what systemd would be asked."""
    calls: list[tuple[str, ...]] = []

    def systemctl(*arguments: str) -> list[str]:
        calls.append(arguments)
        return ["ActiveState=active"] if arguments[0] == "show" else []

    monkeypatch.setattr(host, "systemctl", systemctl)
    monkeypatch.setattr(host, "control", systemctl)
    return calls


@pytest.fixture
def etc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return an /etc of one's own."""
    path = tmp_path / "etc"
    (path / "systemd/system/timers.target.wants").mkdir(parents=True)
    monkeypatch.setattr(release, "ETC", path)
    return path


@pytest.fixture
def conf(conf: Config, tmp_path: Path, etc: Path, called: list[tuple[str, ...]]) -> Config:
    """Return a host with release `one` deployed, its timers and its database."""
    conf = replace(conf, install_directory=tmp_path / "opt", application_units=["app.service"])
    conf.install_directory.mkdir()
    install(conf, etc, "one", timers=["backup", "vacuum"])
    schema.init(conf)
    seed.seed(conf)
    called.clear()
    return conf


def install(conf: Config, etc: Path, name: str, timers: list[str]) -> None:
    """Do to the files what a deploy of a release does."""
    (conf.install_directory / name).mkdir(exist_ok=True)
    link = conf.install_directory / "current"
    link.unlink(missing_ok=True)
    link.symlink_to(name)
    (etc / "abathur-db.toml").write_text(f"# of {name}\n")
    (etc / "abathur-db.toml").chmod(0o640)
    units = etc / "systemd/system"
    for old in [*units.glob("abathur-db@*.timer"), *(units / "timers.target.wants").iterdir()]:
        if old.name not in OPERATORS:
            old.unlink()
    (units / "abathur-db@.service").write_text(f"[Unit]\nDescription=Job %i of Abathur's database\n# of {name}\n")
    for job in timers:
        text = f"# Made by Abathur Ops, which removes it.\n# of {name}\n"
        (units / f"abathur-db@{job}.timer").write_text(text)
        (units / "timers.target.wants" / f"abathur-db@{job}.timer").symlink_to(units / f"abathur-db@{job}.timer")


def deploy(conf: Config, etc: Path, name: str, timers: list[str], migrate: bool = False) -> str:
    """Keep, install, and confirm; return the ID of the backup taken."""
    identity: str = backup.backup(conf).data["id"]
    release.keep(conf, identity)
    install(conf, etc, name, timers)
    if migrate:
        run(conf.database, "CREATE TABLE next (x); PRAGMA user_version = 2")
    release.confirm(conf)
    return identity


def state(conf: Config, etc: Path) -> tuple[str, str, list[str]]:
    units = etc / "systemd/system"
    return (
        os.readlink(conf.install_directory / "current"),
        (etc / "abathur-db.toml").read_text().strip(),
        sorted(each.name for each in units.glob("abathur-db*")),
    )


ONE = ("one", "# of one", ["abathur-db@.service", "abathur-db@backup.timer", "abathur-db@vacuum.timer"])
TWO = ("two", "# of two", ["abathur-db@.service", "abathur-db@backup.timer", "abathur-db@drill.timer"])


def go_back(conf: Config, to: str = "", **options: bool) -> Any:
    chosen = {"lose_rows": False, "failed_deploy": False, **options}
    return release.rollback(conf, to, **chosen)


OPERATORS = {
    "abathur-db-web.service": "[Unit]\nDescription=An application\n[Service]\nExecStart=/opt/web\n",
    "abathur-db-offsite.timer": "# Ansible managed\n[Unit]\nDescription=Backups of Abathur's database go elsewhere\n",
    "abathur-db@verify.timer": "[Unit]\nDescription=Verify each night\n[Timer]\nOnCalendar=daily\n",
}
"""Units of an operator's own, named as ours are."""


def test_units_of_an_operator_s_own_are_neither_kept_nor_removed_nor_put_back(
    conf: Config, etc: Path, called: list[tuple[str, ...]]
) -> None:
    wants = etc / "systemd/system/timers.target.wants"
    for name, text in OPERATORS.items():
        (etc / "systemd/system" / name).write_text(text)
        (wants / name).symlink_to(f"/etc/systemd/system/{name}")
    release.keep(conf, backup.backup(conf).data["id"])
    assert not [each for each in conf.install_directory.rglob("*") if each.name in OPERATORS]
    install(conf, etc, "two", ["drill"])
    for name, text in OPERATORS.items():
        (etc / "systemd/system" / name).write_text(f"{text}# changed since\n")
    release.confirm(conf)
    go_back(conf)
    for name, text in OPERATORS.items():
        assert (etc / "systemd/system" / name).read_text() == f"{text}# changed since\n"
    assert not [call for call in called if set(call) & set(OPERATORS)]


def test_a_rollback_returns_to_the_release_before_the_last_deploy_and_leaves_the_rows(
    conf: Config, etc: Path, called: list[tuple[str, ...]]
) -> None:
    deploy(conf, etc, "two", ["backup", "drill"])
    rows(conf.database, 5)
    assert state(conf, etc) == TWO
    result = go_back(conf)
    assert result.summary == "returned to release one"
    # A host that does not pull has nothing to pause.
    assert not [call for call in called if release.PULL in call]
    assert state(conf, etc) == ONE
    assert value(conf.database, "SELECT count(*) FROM memory_entries") == 8
    assert ("disable", "--now", "abathur-db@drill.timer") in called
    assert ("enable", "--now", "abathur-db@backup.timer", "abathur-db@vacuum.timer") in called
    assert ("stop", "app.service") not in called


def test_the_mode_of_what_is_returned_is_the_former_one(conf: Config, etc: Path) -> None:
    deploy(conf, etc, "two", ["backup"])
    go_back(conf)
    assert stat.S_IMODE((etc / "abathur-db.toml").stat().st_mode) == 0o640


def test_the_owner_of_what_is_returned_is_the_former_one(conf: Config, etc: Path) -> None:
    shutil.chown(etc / "abathur-db.toml", "root", "daemon")
    deploy(conf, etc, "two", ["backup"])
    go_back(conf)
    assert (etc / "abathur-db.toml").group() == "daemon"


def test_the_last_of_several_deploys_is_the_one_undone(conf: Config, etc: Path) -> None:
    deploy(conf, etc, "two", ["backup", "drill"])
    deploy(conf, etc, "three", ["backup"])
    go_back(conf)
    assert state(conf, etc) == TWO


def test_a_second_rollback_has_nothing_to_do(conf: Config, etc: Path) -> None:
    deploy(conf, etc, "two", ["backup"])
    go_back(conf)
    result = go_back(conf)
    assert (result.changed, result.summary) == (False, "release one runs already, the database stays as it is")


def test_a_dry_run_of_a_rollback_changes_nothing(conf: Config, etc: Path) -> None:
    deploy(conf, etc, "two", ["backup", "drill"])
    result = release.rollback(conf, "", lose_rows=False, failed_deploy=False, dry_run=True)
    assert result.summary == "would return to release one; the database stays as it is"
    result = release.rollback(conf, "latest", lose_rows=False, failed_deploy=False, dry_run=True)
    assert result.summary.startswith("would restore backup")
    assert state(conf, etc) == TWO


def test_a_host_without_a_former_release_says_so(conf: Config) -> None:
    with pytest.raises(Failure, match="there is no former release") as caught:
        go_back(conf)
    assert caught.value.hint.startswith("go back to a backup: abathur-db rollback --to latest (")


@pytest.fixture
def pulling(conf: Config, etc: Path, called: list[tuple[str, ...]]) -> None:
    """Let the host deploy to itself, and be at its second release."""
    deploy(conf, etc, "two", ["backup", "drill"])
    unit = etc / "systemd/system" / release.PULL
    unit.write_text("# Made by Abathur Ops\n")
    (unit.parent / "timers.target.wants" / release.PULL).symlink_to(unit)
    called.clear()


PAUSED = [("disable", "--now", release.PULL), ("stop", "abathur-pull.service")]


@pytest.mark.usefixtures("pulling")
def test_a_rollback_of_a_host_that_pulls_pauses_that_and_says_how_to_go_on(
    conf: Config, called: list[tuple[str, ...]]
) -> None:
    assert "would pause pulling" in go_back(conf, dry_run=True).summary
    assert not called
    result = go_back(conf)
    assert called[:2] == PAUSED
    assert ("enable", "--now", release.PULL) not in called
    said = "pulling is paused, or it would undo this; once the repository is right: systemctl enable --now "
    assert result.summary == f"returned to release one; {said}{release.PULL}"


@pytest.mark.usefixtures("pulling")
def test_a_rollback_that_is_refused_leaves_the_host_pulling(
    conf: Config, called: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuses(*_: Any) -> None:
        raise Failure("rows would be lost; nothing was changed", "say that they may be")

    monkeypatch.setattr(release, "_return_to", refuses)
    with pytest.raises(Failure, match="rows would be lost"):
        go_back(conf)
    assert [call for call in called if call[0] != "show"] == [*PAUSED, ("enable", "--now", release.PULL)]


def test_a_former_release_that_was_deleted_is_named(conf: Config, etc: Path) -> None:
    deploy(conf, etc, "two", ["backup", "drill"])
    (conf.install_directory / "one").rmdir()
    with pytest.raises(Failure, match=r"release one is not in .* any more"):
        go_back(conf)
    assert state(conf, etc) == TWO


@pytest.fixture
def migrated(conf: Config, etc: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Deploy a release that migrated the database; return the backup it took. The tool knows both versions."""
    identity = deploy(conf, etc, "two", ["backup", "drill"], migrate=True)
    both = (*resources.migrations(), resources.Migration(2, "0002_next", "CREATE TABLE next (x);"))
    monkeypatch.setattr(resources, "migrations", lambda: both)
    return identity


def test_a_migrated_database_goes_back_to_the_backup_that_the_deploy_took(
    conf: Config, etc: Path, migrated: str, called: list[tuple[str, ...]]
) -> None:
    result = go_back(conf)
    assert f"restored backup {migrated}; no row is lost" in result.summary
    assert value(conf.database, "PRAGMA user_version") == 1
    assert state(conf, etc) == ONE
    assert called.index(("stop", "app.service")) < called.index(("start", "app.service"))


def test_rows_written_since_the_migration_are_not_dropped_unless_told(
    conf: Config, etc: Path, migrated: str, called: list[tuple[str, ...]]
) -> None:
    rows(conf.database, 5)
    with pytest.raises(Failure, match=f"backup {migrated} was not restored: it lacks 5 rows written since") as caught:
        go_back(conf)
    assert "abathur_db_rollback_lose_rows=true" in caught.value.hint
    assert state(conf, etc) == TWO
    assert value(conf.database, "PRAGMA user_version") == 2
    assert called[-1] == ("start", "app.service")
    assert not (conf.install_directory / "stopped.json").exists()
    assert "it lacks 5 rows written since" in go_back(conf, lose_rows=True).summary
    assert value(conf.database, "PRAGMA user_version") == 1


@pytest.mark.parametrize("damage", ["missing", "corrupt"])
def test_a_database_that_cannot_be_used_is_restored_from_the_newest_backup(
    conf: Config, etc: Path, damage: str
) -> None:
    deploy(conf, etc, "two", ["backup"])
    rows(conf.database, 200)
    newest = backup.backup(conf).data["id"]
    run(conf.database, "PRAGMA wal_checkpoint(TRUNCATE)")
    if damage == "missing":
        conf.database.unlink()
    else:
        corrupt(conf.database)
    assert f"restored backup {newest}" in go_back(conf).summary
    assert value(conf.database, "SELECT count(*) FROM memory_entries") == 203
    assert state(conf, etc) == ONE


def test_a_rollback_takes_no_backup_that_failed_its_check_while_a_good_one_is_there(conf: Config, etc: Path) -> None:
    good = deploy(conf, etc, "two", ["backup"])
    bad = backup.backup(conf).data["id"]
    catalog.remember_check(conf, bad, "verify", fault="flipped")
    conf.database.unlink()
    assert release.rollback(conf, "", lose_rows=True, failed_deploy=False).data["source"] == good


def test_without_any_backup_a_broken_database_leaves_only_the_fresh_start(conf: Config, etc: Path) -> None:
    deploy(conf, etc, "two", ["backup"])
    shutil.rmtree(conf.backup_directory)
    conf.database.unlink()
    with pytest.raises(Failure, match="there is no backup for the former release") as caught:
        go_back(conf)
    assert "abathur_db_rollback_to=fresh" in caught.value.hint


def test_going_back_to_a_backup_keeps_the_release_and_brings_the_database_up(
    conf: Config, etc: Path, migrated: str
) -> None:
    rows(conf.database, 5)
    result = go_back(conf, to=migrated)
    assert f"restored backup {migrated}; it lacks 5 rows written since" in result.summary
    assert "migrated" in result.summary
    assert state(conf, etc) == TWO
    assert value(conf.database, "PRAGMA user_version") == 2


def test_fresh_gives_an_empty_database_with_its_seeds(conf: Config) -> None:
    rows(conf.database, 5)
    result = go_back(conf, to="fresh")
    assert value(conf.database, "SELECT count(*) FROM memory_entries") == 3
    assert "the former database is kept in" in result.summary


def test_a_failed_deploy_goes_back_to_what_ran_before(conf: Config, etc: Path) -> None:
    release.keep(conf, backup.backup(conf).data["id"])
    install(conf, etc, "two", ["backup", "drill"])
    assert go_back(conf, failed_deploy=True).summary == "returned to release one"
    assert state(conf, etc) == ONE
    assert list(conf.install_directory.glob("kept*")) == []


def test_where_no_deploy_is_open_there_is_nothing_to_go_back_to(conf: Config, etc: Path) -> None:
    deploy(conf, etc, "two", ["backup"])
    assert go_back(conf, failed_deploy=True).changed is False
    assert state(conf, etc)[0] == "two"


def test_what_a_cut_deploy_kept_is_not_replaced_by_its_remains(conf: Config, etc: Path) -> None:
    release.keep(conf, "")
    install(conf, etc, "half", ["backup"])
    assert release.keep(conf, "").summary == "kept already, by a deploy that did not end"
    install(conf, etc, "two", ["backup", "drill"])
    confirmed = release.confirm(conf)
    assert confirmed.summary == "a rollback returns to release one"
    assert confirmed.data == {"release": "two"}
    go_back(conf)
    assert state(conf, etc) == ONE


def test_a_rollback_of_a_cut_deploy_can_be_run_again(conf: Config, etc: Path) -> None:
    release.keep(conf, "")
    install(conf, etc, "half", ["backup"])
    assert go_back(conf).summary == "returned to release one"
    assert go_back(conf).changed is False


def test_a_deploy_that_changed_nothing_leaves_the_way_back_as_it_was(conf: Config, etc: Path) -> None:
    deploy(conf, etc, "two", ["backup", "drill"])
    release.keep(conf, "")
    assert release.confirm(conf).summary == "the deploy changed neither release nor units"
    assert release.record(conf.install_directory / "kept")["release"] == "one"  # type: ignore[index]


def test_a_first_deploy_has_nothing_to_keep(conf: Config) -> None:
    (conf.install_directory / "current").unlink()
    assert release.keep(conf, "").summary.startswith("no release ran here before")
    assert release.confirm(conf).summary == "no release was kept by this deploy"


def test_dry_runs_keep_and_confirm_nothing(conf: Config) -> None:
    assert release.keep(conf, "", dry_run=True).summary == "would keep release one"
    assert release.confirm(conf, dry_run=True).changed is False
    assert list(conf.install_directory.glob("kept*")) == []


def test_a_rollback_killed_while_the_application_was_stopped_starts_it_in_the_end(
    conf: Config, etc: Path, called: list[tuple[str, ...]]
) -> None:
    deploy(conf, etc, "two", ["backup"])
    (conf.install_directory / "stopped.json").write_text(json.dumps(["app.service"]))
    go_back(conf)
    assert called[-1] == ("start", "app.service")
    assert not (conf.install_directory / "stopped.json").exists()


def test_another_file_in_use_stops_a_rollback_with_everything_as_it_was(
    conf: Config, etc: Path, migrated: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "processes_with", lambda *_: ["python3 (pid 7)"])
    with pytest.raises(Failure, match=r"is open in python3 \(pid 7\); nothing was changed"):
        go_back(conf)
    assert migrated
    assert state(conf, etc) == TWO
    assert restore.losses(conf, conf.database)["tables"] == {}


def test_an_application_that_does_not_start_again_fails_the_rollback_and_is_tried_again_by_the_next(
    conf: Config, etc: Path, migrated: str, monkeypatch: pytest.MonkeyPatch, called: list[tuple[str, ...]]
) -> None:
    def control(*arguments: str) -> None:
        called.append(arguments)
        if arguments[0] == "start":
            raise Failure("systemctl start app.service failed: start-limit-hit", "systemctl status app.service")

    monkeypatch.setattr(host, "control", control)
    with pytest.raises(Failure, match="start-limit-hit"):
        go_back(conf)
    assert state(conf, etc) == ONE
    monkeypatch.setattr(host, "control", lambda *arguments: called.append(arguments))
    go_back(conf)
    assert called[-1] == ("start", "app.service")
    assert migrated


def replicate(conf: Config, etc: Path, secret: str, unit: str = replica.UNIT) -> None:
    """Do to the files what a deploy with replication does; a standby has the units of both, and runs its own."""
    (etc / "abathur-db.secrets").mkdir(mode=0o700, exist_ok=True)
    (etc / "abathur-db.secrets/replica").write_text(secret)
    about = {"database": str(conf.database), "litestream": str(conf.install_directory / "litestream-1")}
    rest = {
        "url": "file:///r",
        "host_key": "",
        "maximum_lag_seconds": 30,
        "keep_days": 7,
        "standby": unit == replica.FOLLOW,
    }
    (etc / "abathur-db-replication.yml").write_text(json.dumps({**about, **rest}))
    for name in {replica.UNIT, unit}:
        (etc / "systemd/system" / name).write_text("# Made by Abathur Ops\n[Install]\n")
    wants = etc / "systemd/system/multi-user.target.wants"
    wants.mkdir(exist_ok=True)
    (wants / unit).unlink(missing_ok=True)
    (wants / unit).symlink_to(f"/etc/systemd/system/{unit}")
    (conf.install_directory / "litestream-1").write_text("program")


def replicates_no_more(conf: Config, etc: Path) -> None:
    """Do to the files what a deploy does that switches it off."""
    for name in ("abathur-db.secrets/replica", "abathur-db-replication.yml", f"systemd/system/{replica.UNIT}"):
        (etc / name).unlink()
    (conf.install_directory / "litestream-1").unlink()


def test_a_rollback_brings_replication_back_with_its_secret_and_its_program(
    conf: Config, etc: Path, called: list[tuple[str, ...]]
) -> None:
    replicate(conf, etc, "former")
    release.keep(conf, "")
    replicates_no_more(conf, etc)
    (etc / "abathur-db.secrets").rmdir()
    release.confirm(conf)
    called.clear()
    go_back(conf)
    assert (etc / "abathur-db.secrets/replica").read_text() == "former"
    assert stat.S_IMODE((etc / "abathur-db.secrets").stat().st_mode) == 0o700
    assert (conf.install_directory / "litestream-1").read_text() == "program"
    assert ("enable", "--now", "abathur-db@backup.timer", "abathur-db@vacuum.timer", replica.UNIT) in called


def test_a_rollback_takes_replication_away_that_the_former_release_did_not_have(
    conf: Config, etc: Path, called: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "SETTINGS", etc / "abathur-db-replication.yml")
    deploy(conf, etc, "two", ["backup", "drill"], migrate=True)
    replicate(conf, etc, "new")
    called.clear()
    assert go_back(conf, lose_rows=True).data["done"][-1] == "returned to release one"
    assert ("stop", "abathur-db-replicate.service", "app.service") in called
    assert ("disable", "--now", replica.UNIT) in called
    assert ("start", "app.service") in called
    assert state(conf, etc) == ONE
    assert not (etc / "abathur-db-replication.yml").exists()
    assert list((etc / "abathur-db.secrets").iterdir()) == []


def test_a_backup_in_the_place_of_a_replicated_database_stops_replication_meanwhile(
    conf: Config, etc: Path, called: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(replica, "SETTINGS", etc / "abathur-db-replication.yml")
    backup.backup(conf)
    replicate(conf, etc, "same")
    called.clear()
    go_back(conf, to="latest")
    words = [each for each in called if each[0] in ("stop", "start")]
    both = ("abathur-db-replicate.service", "app.service")
    assert words == [("stop", *both), ("start", *both)]


def test_a_failed_deploy_of_a_standby_goes_back_to_what_ran_before(
    conf: Config, etc: Path, called: list[tuple[str, ...]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has no database of its own, and needs none for that."""
    monkeypatch.setattr(replica, "SETTINGS", etc / "abathur-db-replication.yml")
    conf.database.unlink()
    replicate(conf, etc, "former", replica.FOLLOW)
    release.keep(conf, "")
    install(conf, etc, "two", ["backup", "drill"])
    (etc / "abathur-db.secrets/replica").write_text("new")
    called.clear()
    assert go_back(conf, failed_deploy=True).summary == "returned to release one"
    assert (etc / "abathur-db.secrets/replica").read_text() == "former"
    assert ("stop", replica.FOLLOW) in called
    timers = ("abathur-db@backup.timer", "abathur-db@vacuum.timer")
    assert ("enable", "--now", *timers, replica.FOLLOW) in called
    assert not conf.database.exists()
    # What an earlier release kept does not say which services it ran.
    release.keep(conf, "")
    about = conf.install_directory / "kept.pending/record.json"
    known = json.loads(about.read_text())
    del known["services"]
    about.write_text(json.dumps(known))
    install(conf, etc, "two", ["backup", "drill"])
    go_back(conf, failed_deploy=True)
    assert ("--now", replica.UNIT, replica.FOLLOW) in [(each[1], *each[-2:]) for each in called if each[0] == "enable"]
