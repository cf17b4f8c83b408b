"""What a host does to any program: full disks, no inodes, read-only file systems, missing rights; a sentence each."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
from abathur_db import cli, host
from abathur_db.config import Config
from abathur_db.result import Exit
from databases import toml

from faults import places


def test_a_failed_call_names_the_path_the_cause_and_the_next_step() -> None:
    failure = host.trouble(OSError(errno.ENOSPC, "No space left on device", "/etc/absent/file"))
    assert failure is not None
    assert "/etc/absent/file cannot be written or read: No space left on device" in str(failure)
    assert failure.hint == "free space or inodes there: df -h /etc; df -i /etc"


def test_a_call_without_a_path_and_without_a_known_remedy_is_told_too() -> None:
    failure = host.trouble(OSError(errno.EIO, "Input/output error"))
    assert failure is not None
    assert str(failure).startswith("a file cannot be written or read: Input/output error")
    assert failure.hint == "look at it: ls -ld /; dmesg | tail"


def test_what_the_host_did_not_cause_has_no_remedy_of_the_hosts() -> None:
    assert host.trouble(FileNotFoundError(errno.ENOENT, "No such file or directory", "/x")) is None


def test_the_condition_of_a_file_system_is_told(tmp_path: Path) -> None:
    assert host.condition(tmp_path) == ""
    place = tmp_path / "place"
    with places.small(place, 4, inodes=50):
        with places.filled(place, 8192):
            assert host.condition(place) == "its file system has 8 kB free"
        with places.no_inodes(place, 0):
            assert host.condition(place) == "its file system has no inodes left"
        with places.read_only(place):
            assert host.condition(place) == "its file system is read-only"


def test_a_place_that_cannot_be_reached_is_told(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert host.condition(tmp_path / "loop").endswith("cannot be reached: Too many levels of symbolic links")


def test_a_state_directory_that_cannot_be_written_is_a_failure_and_no_crash(
    conf: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "conf.toml").write_text(toml(conf))
    conf.state_directory.mkdir()
    with places.read_only(conf.state_directory):
        code = cli.main(["init", "--config", str(tmp_path / "conf.toml"), "--json"])
    answer = json.loads(capsys.readouterr().out)
    assert code == Exit.FAILED
    assert f"{conf.state_directory}/lock cannot be written or read: Read-only file system" in answer["summary"]
    assert answer["hint"] == f"make it writable: findmnt --target {conf.state_directory}"


def test_a_missing_file_of_our_own_is_a_defect(
    conf: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def lost(*_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, "No such file or directory", "lost")

    (tmp_path / "conf.toml").write_text(toml(conf))
    monkeypatch.setattr("abathur_db.schema.init", lost)
    assert cli.main(["init", "--config", str(tmp_path / "conf.toml"), "--json"]) == Exit.CRASH
    assert "FileNotFoundError" in capsys.readouterr().err


def test_sqlite_on_a_disk_without_room_for_its_index_says_why(
    conf: Config, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "conf.toml").write_text(toml(conf, database=str(tmp_path / "data/abathur.db")))
    arguments = ["--config", str(tmp_path / "conf.toml"), "--json"]
    assert cli.main(["init", *arguments]) == 0
    capsys.readouterr()
    with places.small(tmp_path / "data", 4), places.filled(tmp_path / "data", 4096):
        assert cli.main(["seed", *arguments]) == Exit.FAILED
    assert "B free" in json.loads(capsys.readouterr().out)["summary"]
