"""The preflight: every failure in one report, and nothing changed."""

from __future__ import annotations

import grp
import json
import os
import pwd
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from abathur_db import host, preflight, runs, schema, seed
from abathur_db.config import Config
from abathur_db.result import Failure, Result
from databases import picture


@pytest.fixture(autouse=True)
def _systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stand on a host with systemd, whatever the machine of the tests is."""
    isdir = os.path.isdir
    monkeypatch.setattr(os.path, "isdir", lambda path: path == "/run/systemd/system" or isdir(path))


@pytest.fixture
def conf(conf: Config) -> Iterator[Config]:
    """Return a configuration whose directories are below one that only its owner can write."""
    home = Path("/var/lib") / f"abathur-preflight-{os.getpid()}"
    home.mkdir(mode=0o700)
    yield replace(
        conf,
        database=home / "data/a.db",
        backup_directory=home / "b",
        state_directory=home / "s",
        install_directory=home / "o",
    )
    shutil.rmtree(home)


def check(conf: Config, release: str = "", state: str = "") -> Result:
    return preflight.preflight(conf, release, state)


def failed(result: Result) -> dict[str, str]:
    return {check.id: check.measured for check in result.checks if not check.ok}


def test_a_fresh_host_passes_and_hears_what_will_be_done(conf: Config) -> None:
    result = check(conf)
    assert failed(result) == {}
    assert result.data["init"]["data"]["kind"] == "create"
    assert result.data["release"] is None
    assert result.data["notes"][-2].startswith("would create ")
    assert result.data["notes"][-1].startswith("would write app:abathur:agent_instructions/default_workflow")
    assert not conf.database.parent.exists()


def test_a_litestream_of_another_processor_is_refused_before_anything_is_changed(conf: Config) -> None:
    assert preflight.preflight(conf, "", "", machine=os.uname().machine).ok
    result = preflight.preflight(conf, "", "", machine="z80")
    assert failed(result) == {"replication_machine": os.uname().machine}
    assert "found " in result.summary
    assert "z80" in result.summary


def test_a_disk_for_the_replica_that_is_not_mounted_is_told_before_anything_is_changed(
    conf: Config, tmp_path: Path
) -> None:
    place = str(tmp_path / "disk/replica")
    result = preflight.preflight(conf, "", "", replica=place)
    assert failed(result) == {"replica_place": f"{tmp_path}/disk does not exist"}
    assert result.hint == f"mount the other disk, or make it: mkdir -p {tmp_path}/disk"
    (tmp_path / "disk").mkdir()
    assert preflight.preflight(conf, "", "", replica=place).ok


def test_an_existing_database_is_looked_at_and_not_touched(conf: Config) -> None:
    schema.init(conf)
    before = picture(conf.database.parent)
    result = check(conf)
    assert result.ok
    assert result.data["init"]["changed"] is False
    after = picture(conf.database.parent)
    assert {name: data for name, data in after.items() if not name.endswith(("-shm", "-wal"))} == before


def validated(conf: Config, *, ok: bool) -> None:
    run = {"command": "validate", "ok": ok, "summary": "", "invocation": "", "finished": runs.now()}
    runs.record(conf.state_directory, {**run, "seconds": 1, "exit_code": 0})


@pytest.fixture
def deployed(conf: Config) -> Config:
    """Make a database that a deploy has nothing to do about, and whose last validation was good."""
    schema.init(conf)
    seed.seed(conf)
    validated(conf, ok=True)
    return conf


def test_a_host_that_needs_nothing_is_current(deployed: Config) -> None:
    assert check(deployed, state="{}").data["current"] is True


def test_a_host_that_was_not_compared_is_never_current(deployed: Config) -> None:
    assert check(deployed).data["current"] is False


def test_a_host_that_differs_is_not_current_and_hears_how(deployed: Config) -> None:
    state = {"host": {"users": [{"name": "nobody-of-this-name", "group": "no-group"}]}}
    result = check(deployed, state=json.dumps(state))
    assert result.data["current"] is False
    assert result.data["drift"]["host"] == ["the user nobody-of-this-name or the group no-group does not exist"]
    assert result.data["notes"][-1] == result.data["drift"]["host"][0]


def test_a_host_whose_last_validation_failed_is_not_current(deployed: Config) -> None:
    validated(deployed, ok=False)
    assert check(deployed, state="{}").data["current"] is False


def test_a_host_whose_last_deploy_was_cut_is_not_current(deployed: Config) -> None:
    (deployed.install_directory / "kept.pending").mkdir(parents=True)
    assert check(deployed, state="{}").data["current"] is False


def test_a_host_whose_application_a_cut_deploy_left_stopped_is_not_current(deployed: Config) -> None:
    deployed.install_directory.mkdir()
    (deployed.install_directory / "stopped.json").write_text('["abathur.service"]')
    assert check(replace(deployed, application_units=["abathur.service"]), state="{}").data["current"] is False


@pytest.mark.parametrize("state", ["no json", "[1]", "3"])
def test_a_state_that_is_no_json_object_is_refused(conf: Config, state: str) -> None:
    with pytest.raises(Failure, match="--state is not a JSON object"):
        check(conf, state=state)


def test_all_failures_are_in_one_report(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    conf.database.parent.mkdir()
    conf.database.symlink_to("/etc/passwd")
    monkeypatch.setattr(host, "file_system", lambda _: "nfs4")
    result = check(replace(conf, minimum_free_mb=1_000_000_000))
    assert set(failed(result)) == {
        "data_file_system",
        "backup_file_system",
        "state_file_system",
        "data_free_space",
        "database_path",
    }
    assert result.summary.endswith("(and 4 more)")
    assert "init" not in result.data


def test_room_for_the_existing_database_twice_over_is_asked_for(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    conf.database.parent.mkdir()
    with conf.database.open("wb") as stream:
        stream.truncate(3_000_000_000)
    monkeypatch.setattr(host, "free_bytes", lambda _: 5_900_000_000)
    result = check(conf)
    space = next(each for each in result.checks if each.id == "data_free_space")
    assert (space.ok, space.expected) == (False, "6.0 GB free")


def test_a_database_that_init_would_refuse_fails_with_its_words(conf: Config) -> None:
    conf.database.parent.mkdir()
    conf.database.write_text("something else entirely")
    assert "is not a SQLite database" in failed(check(conf))["database"]


def test_a_directory_of_a_stranger_is_refused(conf: Config) -> None:
    conf.database.parent.mkdir()
    shutil.chown(conf.database.parent, "daemon")
    assert "belongs to daemon (uid" in failed(check(conf))["data_path"]


def test_a_directory_that_everybody_can_write_is_refused(conf: Config) -> None:
    conf.backup_directory.mkdir()
    conf.backup_directory.chmod(0o777)
    result = check(conf)
    assert failed(result) == {"backup_path": f"{conf.backup_directory} can be written by everybody"}
    assert result.hint == f"take that away: chmod o-w {conf.backup_directory}"


def test_a_directory_behind_a_symlink_is_refused(conf: Config, tmp_path: Path) -> None:
    conf.backup_directory.symlink_to(tmp_path)
    assert failed(check(conf))["backup_path"] == f"{conf.backup_directory} is a symbolic link to {tmp_path}"


def test_a_database_of_root_is_not_the_owners(conf: Config) -> None:
    schema.init(conf)
    result = check(replace(conf, owner="daemon"))
    assert failed(result)["database_path"] == f"{conf.database} belongs to root (uid 0)"
    assert "chown daemon:" in result.hint


def test_the_owners_own_database_is_read_as_the_owner(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[str] = []
    monkeypatch.setattr(host, "become", became.append)
    schema.init(conf)
    for each in (conf.database.parent, conf.database):
        shutil.chown(each, "daemon")
    monkeypatch.setattr(os, "geteuid", lambda: pwd.getpwnam("daemon").pw_uid)
    assert failed(check(replace(conf, owner="daemon"))) == {}
    assert became == ["daemon"]


def test_an_owner_who_will_be_made_is_no_fault(conf: Config) -> None:
    assert check(replace(conf, owner="no-such-user")).ok


def test_the_application_and_missing_packages_are_reported(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = {"ActiveState": "active", "UnitFileState": "disabled"}
    monkeypatch.setattr(host, "unit_properties", lambda *_: shown)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    result = check(replace(conf, application_units=["abathur.service"]))
    data = result.data
    # Nor is there an apt-get to install it with.
    assert failed(result) == {"packages": "zstd is missing"}
    unit = {"name": "abathur.service", "active": True, "enabled": False, "stopped": False}
    assert data["application_units"] == [unit]
    assert data["missing_packages"] == ["zstd"]
    assert check(replace(conf, backup_compression="gzip")).data["missing_packages"] == []


def test_a_backup_is_needed_where_the_database_or_the_tool_will_change(conf: Config) -> None:
    assert not check(conf, "new").data["backup_needed"]
    schema.init(conf)
    assert check(conf).data["backup_needed"]
    seed.seed(conf)
    assert check(conf, "new").data["backup_needed"]
    conf.install_directory.mkdir()
    (conf.install_directory / "current").symlink_to("new")
    assert not check(conf, "new").data["backup_needed"]


def test_an_application_that_a_cut_deploy_had_stopped_is_reported(conf: Config) -> None:
    conf.install_directory.mkdir()
    note = conf.install_directory / "stopped.json"
    note.write_text('["abathur.service"]')
    assert check(replace(conf, application_units=["abathur.service"])).data["application_units"][0]["stopped"]
    # As a power cut may leave it.
    note.write_text("")
    assert not check(replace(conf, application_units=["abathur.service"])).data["application_units"][0]["stopped"]


def test_calendars_and_times_are_checked_by_the_hosts_systemd(conf: Config) -> None:
    schedule = {"calendar": {"backup": "daily", "drill": "every tea time", "vacuum": "2020-01-01"}}
    schedule["timespan"] = {"jitter": "15min", "timeout": "-1h"}
    result = preflight.preflight(conf, "", "", json.dumps(schedule))
    assert failed(result) == {
        "calendar_drill": "'every tea time', which systemd does not understand",
        "calendar_vacuum": "'2020-01-01', which systemd never reaches",
        "timespan_timeout": "'-1h', which systemd does not understand",
    }


def test_where_there_is_no_systemd_to_ask_no_calendar_is_checked(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    gzipped = replace(conf, backup_compression="gzip")
    assert failed(preflight.preflight(gzipped, "", "", '{"calendar": {"drill": "every tea time"}}')) == {}


def test_a_directory_in_one_of_the_owners_is_refused_because_the_owner_could_swap_it(conf: Config) -> None:
    conf.database.parent.mkdir()
    shutil.chown(conf.database.parent, "daemon")
    inside = replace(conf, owner="daemon", backup_directory=conf.database.parent / "backups")
    assert failed(check(inside)) == {"backup_path": f"{conf.database.parent} belongs to daemon (uid 1)"}


def test_a_directory_above_that_the_owners_group_can_write_is_refused(conf: Config) -> None:
    above = conf.backup_directory.parent / "above"
    above.mkdir()
    shutil.chown(above, group=pwd.getpwnam("daemon").pw_gid)
    above.chmod(0o775)
    found = failed(check(replace(conf, owner="daemon", backup_directory=above / "b")))
    assert found == {"backup_path": f"{above} can be written by the owner's group"}


def test_a_directory_of_roots_that_is_in_use_is_not_given_away(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "become", lambda _: None)
    conf.backup_directory.mkdir()
    assert failed(check(replace(conf, owner="daemon"))) == {}
    (conf.backup_directory / "of another program").touch()
    assert failed(check(replace(conf, owner="daemon"))) == {
        "backup_path": f"{conf.backup_directory} belongs to root and is not empty"
    }


def test_what_root_makes_where_the_owner_could_swap_it_is_refused(
    conf: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The directory of the textfile, of a release, of a unit: any that a deploy makes something in."""
    monkeypatch.setattr(host, "become", lambda _: None)
    owners = conf.database.parent
    owners.mkdir()
    shutil.chown(owners, "daemon")
    for place, said in ((owners / "metrics", f"{owners} belongs to daemon (uid 1)"), (conf.install_directory, "")):
        found = preflight.preflight(replace(conf, owner="daemon"), "", "", places=json.dumps({"places": [str(place)]}))
        assert failed(found).get("places", "") == said


def test_where_root_makes_something_is_a_json_object(conf: Config) -> None:
    with pytest.raises(Failure, match="--places is not a JSON object"):
        preflight.preflight(conf, "", "", places="[]")


@pytest.mark.parametrize(
    ("owner", "backup_owner", "refused"),
    [
        ("daemon", "", {}),
        ("no-such-user", "no-such-user2", {}),
        ("sync", "", {"user_sync": "sync is there, with the first group nogroup"}),
        ("daemon", "sync", {"user_sync": "sync is there, with the first group nogroup"}),
    ],
)
def test_a_user_who_is_there_serves_as_it_is_or_is_refused(
    conf: Config, monkeypatch: pytest.MonkeyPatch, owner: str, backup_owner: str, refused: dict[str, str]
) -> None:
    monkeypatch.setattr(host, "become", lambda _: None)
    named = replace(conf, owner=owner, backup_owner=backup_owner)
    found = failed(check(named))
    assert {name: said for name, said in found.items() if name.startswith("user_")} == refused
    missing = [name for name in (owner, backup_owner) if name.startswith("no-")]
    assert check(named).data["missing_users"] == missing


def test_a_user_whose_first_group_has_no_name_is_refused_by_its_number(
    conf: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nobody(_: int) -> None:
        raise KeyError

    monkeypatch.setattr(host, "become", lambda _: None)
    monkeypatch.setattr(grp, "getgrgid", nobody)
    found = failed(check(replace(conf, owner="sync")))
    assert found["user_sync"] == f"sync is there, with the first group {pwd.getpwnam('sync').pw_gid}"
