"""The machine around the database: identity, space, file systems."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from abathur_db import host
from abathur_db.result import Exit, Failure
from databases import ROOT, at_work

from faults import places


def test_root_goes_on_as_the_owner_for_good() -> None:
    code = (
        "import os\nfrom abathur_db import host\nhost.become('nobody')\n"
        "print(os.getresuid(), os.getgroups() == [os.getgid()], os.environ['USER'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
        capture_output=True,
        text=True,
        check=False,
    )
    uid = pwd.getpwnam("nobody").pw_uid
    assert done.stdout.strip() == f"({uid}, {uid}, {uid}) True nobody"


def test_the_groups_are_given_up_before_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    """After setuid(2) there would be no right left to change them."""
    order: list[str] = []
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for name in ("initgroups", "setgid", "setuid"):
        monkeypatch.setattr(os, name, lambda *_, name=name: order.append(name))
    host.become("nobody")
    assert order == ["initgroups", "setgid", "setuid"]


def test_somebody_else_is_sent_to_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: pwd.getpwnam("nobody").pw_uid)
    with pytest.raises(Failure, match="this runs as nobody, but this is the work of daemon") as caught:
        host.become("daemon")
    assert caught.value.code is Exit.USAGE


def test_the_owner_itself_and_a_database_without_owner_go_on_as_they_are() -> None:
    host.become("")
    host.become(pwd.getpwuid(os.geteuid()).pw_name)


def test_work_as_the_owner_comes_back_with_its_answer_and_root_stays_root() -> None:
    assert host.as_owner("nobody", lambda: {"uid": os.getuid()}) == {"uid": pwd.getpwnam("nobody").pw_uid}
    assert os.geteuid() == 0


def test_a_failure_of_the_owners_work_comes_back_whole() -> None:
    def work() -> dict[str, int]:
        raise Failure("what", "next", Exit.BUSY)

    with pytest.raises(Failure, match="what") as caught:
        host.as_owner("nobody", work)
    assert (caught.value.hint, caught.value.code) == ("next", Exit.BUSY)


def test_work_that_dies_without_an_answer_is_a_defect_and_no_success() -> None:
    def dying() -> dict[str, int]:
        os.kill(os.getpid(), signal.SIGKILL)
        return {}

    with pytest.raises(RuntimeError, match="the work as nobody ended without an answer"):
        host.as_owner("nobody", dying)


def test_an_owner_who_does_not_exist_is_named() -> None:
    with pytest.raises(Failure, match="user no-such-user does not exist") as caught:
        host.become("no-such-user")
    assert caught.value.code is Exit.USAGE


ODD_NAMES = (
    b"plain",
    "m\xf6unt".encode(),
    b"not utf-8 \xff",
    b"a tab\t",
    b"a line\nmore",
    b"back\\040slash",
    b" - ext4",
)


@pytest.mark.parametrize("name", ODD_NAMES)
def test_the_file_system_of_a_path_is_that_of_its_mount_whatever_the_mount_s_name(tmp_path: Path, name: bytes) -> None:
    place = tmp_path / os.fsdecode(name)
    beside = tmp_path / os.fsdecode(name + b"2")
    place.mkdir()
    beside.mkdir()
    here = host.file_system(tmp_path)
    with places.mounted(place, "ramfs"):
        assert host.file_system(place / "not/yet") == "ramfs"
        assert host.file_system(beside) == here
        # Over it, and the last one counts.
        with places.mounted(place, "tmpfs"):
            assert host.file_system(place) == "tmpfs"
        # A bad name elsewhere is nobody's matter.
        assert host.file_system(tmp_path) == here
    assert host.file_system(place) == here


@pytest.mark.parametrize(
    ("kind", "local"), [("ext4", True), ("tmpfs", True), ("nfs4", False), ("fuse.sshfs", False), ("fuse", False)]
)
def test_a_file_system_of_the_network_is_not_local(kind: str, local: bool) -> None:
    assert host.is_local(kind) is local


def test_where_proc_does_not_tell_the_file_system_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object, **__: object) -> bytes:
        raise FileNotFoundError

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", absent)
        assert host.file_system(Path("/")) == "unknown"
        assert host.mount_number(Path("/")) == b""


HOLDER = """
import os, sys, time
with open("/proc/self/comm", "wb") as stream:
    stream.write(bytes.fromhex(sys.argv[2]))
held = open(sys.argv[1], "rb")
print("open", flush=True)
time.sleep(600)
"""


NAMES = {
    "a letter that was cut": "w\xf6rker\xe4rbeit\xe3".encode(),
    "a command of the terminal": b"\x1b[2Jboo",
    "a line of its own": b"a\nb",
    "no text at all": b"\xff\xfe",
}


@pytest.mark.parametrize("name", NAMES)
def test_a_process_is_named_whatever_its_name_is(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    with at_work(HOLDER, tmp_path / "file", NAMES[name].hex()) as process:
        (found,) = host.processes_with(tmp_path / "file")
    assert (found.endswith(f"(pid {process.pid})"), found.isprintable()) == (True, True)


def by_link(path: Path) -> Path:
    (path.parent / "link").symlink_to(path.parent)
    return path.parent / "link" / path.name


def by_second_name(path: Path) -> Path:
    path.with_name("second").hardlink_to(path)
    return path.with_name("second")


def by_mount(path: Path) -> Path:
    return path.parent / "bind" / path.name


WAYS: dict[str, Callable[[Path], Path]] = {
    "the same name": lambda path: path,
    "a name relative to a directory": lambda path: Path(os.path.relpath(path)),
    "a name with ..": lambda path: path.parent / "bind/.." / path.name,
    "a symbolic link on the way": by_link,
    "a second name": by_second_name,
    "another mount": by_mount,
}


@pytest.mark.parametrize("way", WAYS)
def test_who_has_a_file_open_is_found_by_whatever_name_it_is_asked_for(tmp_path: Path, way: str) -> None:
    place = tmp_path / "place"
    (place / "bind").mkdir(parents=True)
    (place / "file").touch()
    (place / "other").touch()
    with places.bound(place, place / "bind"), at_work(HOLDER, place / "file", b"holder".hex()) as process:
        assert host.processes_with(WAYS[way](place / "file")) == [f"holder (pid {process.pid})"]
        assert host.processes_with(place / "other", place / "none") == []
        # Renamed, it is the same file still.
        (place / "file").rename(place / "renamed")
        assert host.processes_with(place / "renamed") == [f"holder (pid {process.pid})"]


def test_space_is_measured_where_a_path_will_be(tmp_path: Path) -> None:
    assert host.existing(tmp_path / "not" / "yet") == tmp_path
    assert host.free_bytes(tmp_path / "not" / "yet") > 0


def test_systemctl_that_fails_or_is_absent_gives_no_lines(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    program = tmp_path / "systemctl"
    program.write_text('#!/bin/sh\n[ "$1" = show ] && echo "ActiveState=active" && echo noise || exit 4\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert host.unit_properties("x.service", "ActiveState") == {"ActiveState": "active"}
    assert host.systemctl("list-unit-files") == []
    host.control("show")
    program.write_text('#!/bin/sh\necho "Unit $2 not found." >&2; exit 5\n')
    with pytest.raises(Failure, match=r"systemctl start x\.service failed: Unit x\.service not found\.") as caught:
        host.control("start", "x.service")
    assert caught.value.hint == "see why: systemctl status x.service"
    program.unlink()
    assert host.systemctl("show") == []


def test_sizes_are_said_in_units_that_fit() -> None:
    assert [host.readable(size) for size in (0, 999, 176_128, 1_500_000, 10_000_000_000)] == [
        "0 B",
        "999 B",
        "176 kB",
        "1.5 MB",
        "10.0 GB",
    ]


def test_the_time_since_the_start_grows() -> None:
    before = host.seconds_since_boot()
    assert 0 < before <= host.seconds_since_boot()


def test_the_period_of_a_calendar_expression_is_what_systemd_says() -> None:
    assert host.period_seconds("*-*-* 02:00:00") == 86400
    assert host.period_seconds("Sun *-*-* 03:30:00") == 7 * 86400
    assert host.period_seconds("*:0/5") == 300
    assert host.period_seconds("2020-01-01 00:00:00") is None
    assert host.period_seconds("no such time") is None


def test_without_systemd_no_period_is_known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert host.period_seconds("*-*-* 02:00:00") is None


def test_a_job_keeps_to_half_of_the_processors_and_gives_them_back(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = os.sched_getaffinity(0)
    with host.half_of_the_processors():
        assert host.processors() == max(1, len(mine) - len(mine) // 2)
        started = subprocess.run(["nproc"], check=True, capture_output=True, text=True)
        assert int(started.stdout) == host.processors()
    assert os.sched_getaffinity(0) == mine
    monkeypatch.delattr(os, "sched_setaffinity")
    monkeypatch.delattr(os, "sched_getaffinity")
    with host.half_of_the_processors():
        assert host.processors() == 1
