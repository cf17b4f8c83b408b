"""What differs on a host from what a deploy would make of it."""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from abathur_db import drift, host
from abathur_db.result import Exit, Failure

ME = {"owner": pwd.getpwuid(os.geteuid()).pw_name, "group": grp.getgrgid(os.getegid()).gr_name}


@pytest.fixture
def wanted(tmp_path: Path) -> dict[str, Any]:
    """Make a directory, a file and a link as a deploy would, and return what it would say of them."""
    directory, file, link = tmp_path / "data", tmp_path / "file", tmp_path / "current"
    directory.mkdir(mode=0o700)
    file.write_text("content\n")
    file.chmod(0o640)
    link.symlink_to("release")
    (tmp_path / "kept.timer").touch()
    return {
        "host": {"directories": [{"path": str(directory), "mode": "0700", **ME}]},
        "tool": {
            "files": [
                {"path": str(file), "mode": "0640", "content": "content\n", **ME},
                {"path": str(file), "mode": "0640", "sha256": hashlib.sha256(b"content\n").hexdigest(), **ME},
            ],
            "links": [{"path": str(link), "src": "release", **ME}],
        },
        "units": {"only": [{"directory": str(tmp_path), "patterns": ["*.timer"], "names": ["kept.timer"]}]},
    }


def test_a_host_as_a_deploy_makes_it_does_not_differ(wanted: dict[str, Any]) -> None:
    assert drift.compare(wanted) == {"host": [], "tool": [], "units": [], "timers": [], "replication": []}


def relinked(home: Path) -> None:
    (home / "current").unlink()
    (home / "current").symlink_to("other")


def replaced(home: Path) -> None:
    (home / "data").rmdir()
    (home / "data").symlink_to("/tmp")


@pytest.mark.parametrize(
    ("change", "part", "sentence"),
    [
        (lambda home: (home / "data").rmdir(), "host", "{}/data is absent"),
        (replaced, "host", "{}/data is not a directory"),
        (lambda home: (home / "data").chmod(0o755), "host", "{}/data has mode 0755, not 0700"),
        (lambda home: (home / "file").chmod(0o644), "tool", "{}/file has mode 0644, not 0640"),
        (lambda home: (home / "file").write_text("other"), "tool", "{}/file has another content"),
        (relinked, "tool", "{}/current points to other, not release"),
        (lambda home: (home / "old.timer").touch(), "units", "{}/old.timer is left from an earlier deploy"),
    ],
)
def test_each_difference_is_a_sentence_in_its_part(
    wanted: dict[str, Any], tmp_path: Path, change: Callable[[Path], Any], part: str, sentence: str
) -> None:
    change(tmp_path)
    found = drift.compare(wanted)
    assert set(found.pop(part)) == {sentence.format(tmp_path)}
    assert not any(found.values())


def test_a_file_of_somebody_else_differs(wanted: dict[str, Any], tmp_path: Path) -> None:
    other = next(each.pw_name for each in pwd.getpwall() if each.pw_uid != os.geteuid())
    wanted["host"]["directories"][0]["owner"] = other
    assert drift.compare(wanted)["host"] == [f"{tmp_path}/data does not belong to {other}:{ME['group']}"]
    wanted["host"]["directories"][0]["owner"] = "nobody-of-this-name"
    assert len(drift.compare(wanted)["host"]) == 1


def test_an_absent_user_differs_and_one_that_is_there_does_not() -> None:
    me = ME["owner"]
    wanted = [{"name": "nobody-of-this-name", "group": ME["group"]}, {"name": me, "group": ME["group"]}]
    found = drift.compare({"host": {"users": wanted}})["host"]
    assert found == [f"the user nobody-of-this-name or the group {ME['group']} does not exist"]


def test_a_timer_has_to_be_enabled_active_and_read_by_systemd(monkeypatch: pytest.MonkeyPatch) -> None:
    said = (
        "Id=a.timer\nActiveState=active\nUnitFileState=enabled\nNeedDaemonReload=no\n\n"
        "Id=b.timer\nActiveState=inactive\nUnitFileState=enabled\nNeedDaemonReload=no\n\n"
        "Id=c.timer\nActiveState=active\nUnitFileState=enabled\nNeedDaemonReload=yes"
    )
    monkeypatch.setattr(host, "systemctl", lambda *_: said.split("\n"))
    assert drift.compare({"timers": {"timers": ["a.timer", "b.timer", "c.timer", "d.timer"]}})["timers"] == [
        "b.timer is not enabled and active",
        "systemd has not read c.timer anew",
        "d.timer is not enabled and active",
    ]


def test_a_file_with_a_name_like_ours_but_without_our_mark_is_no_difference(tmp_path: Path) -> None:
    only = {"directory": str(tmp_path), "patterns": ["*.timer", "*.d"], "names": [], "mark": "^# Made by us"}
    (tmp_path / "operators.timer").write_text("# Not\n# made by us\n")
    (tmp_path / "operators.d").mkdir()
    assert drift.compare({"units": {"only": [only]}})["units"] == []
    (tmp_path / "ours.timer").write_text("# Ansible managed\n# Made by us, long ago\n")
    assert drift.compare({"units": {"only": [only]}})["units"] == [
        f"{tmp_path}/ours.timer is left from an earlier deploy"
    ]


@pytest.mark.parametrize("state", [{"host": 3}, {"tool": {"files": [{"path": "/"}]}}])
def test_a_description_of_another_kind_is_refused(state: dict[str, Any]) -> None:
    with pytest.raises(Failure, match="is not described as this release expects it") as caught:
        drift.compare(state)
    assert caught.value.code is Exit.USAGE
