"""What a host does to any program: full disks, no inodes, read-only file systems, missing rights; a sentence each."""

from __future__ import annotations

import errno
import json
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from abathur_db import backup, cli, database, host, schema
from abathur_db.config import Config
from abathur_db.result import Exit, Failure
from databases import ROOT, toml

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


@pytest.mark.parametrize("name", ["/etc/absent/file", b"/etc/absent/\xff"])
def test_whatever_the_kernel_says_of_a_file_by_its_name_is_the_host_s(name: str | bytes) -> None:
    for number in errno.errorcode:
        failure = host.trouble(OSError(number, os.strerror(number), name))
        assert failure is not None, errno.errorcode[number]
        assert f"cannot be written or read: {os.strerror(number)}" in str(failure)
        assert failure.hint


def test_of_a_call_without_a_name_only_a_mistake_of_the_tool_is_its_defect() -> None:
    defects = {number for number in errno.errorcode if host.trouble(OSError(number, os.strerror(number))) is None}
    assert defects == host.DEFECTS
    assert {errno.ENOSPC, errno.ENOLCK, errno.EAGAIN, errno.ENOMEM, errno.EDQUOT}.isdisjoint(defects)
    # What Python itself raises, of a file that is not in the archive for one.
    assert host.trouble(FileNotFoundError("lost")) is None


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


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (FileNotFoundError("lost"), Exit.CRASH),
        (OSError(errno.EBADF, "Bad file descriptor"), Exit.CRASH),
        (KeyError("purpose"), Exit.CRASH),
        (FileNotFoundError(errno.ENOENT, "No such file or directory", "/var/lib/gone"), Exit.FAILED),
        (OSError(errno.EAGAIN, "Resource temporarily unavailable"), Exit.FAILED),
        (MemoryError(), Exit.FAILED),
    ],
)
def test_a_defect_is_told_with_its_lines_and_what_the_host_did_with_a_sentence(
    conf: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, error: Exception, code: Exit
) -> None:
    def ends(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("abathur_db.schema.init", ends)
    assert cli.main(["init", str(conf.database)]) == code
    said = capsys.readouterr().err
    assert ("Traceback" in said, "defect of the tool" in said) == (code is Exit.CRASH,) * 2
    assert ("\nhint: " in said) == (code is Exit.FAILED)


def test_a_defect_in_the_owner_s_work_is_told_with_its_own_lines(capfd: pytest.CaptureFixture[str]) -> None:
    def wrong() -> dict[str, int]:
        raise KeyError("purpose")

    with pytest.raises(RuntimeError, match="the work as nobody ended without an answer"):
        host.as_owner("nobody", wrong)
    assert "KeyError: 'purpose'" in capfd.readouterr().err


WITHOUT_LOCKS = """
import ctypes, os, struct, sys
fcntl, flock = {{"x86_64": (72, 73), "aarch64": (25, 32)}}[os.uname().machine]
LOAD, EQUAL, RETURN, ALLOW = 0x20, 0x15, 0x06, 0x7FFF0000
number, command, refused = 0, 24, 0x00050000 | {error}
program = b"".join(
    struct.pack("HBBI", *line)
    for line in (
        (LOAD, 0, 0, number), (EQUAL, 4, 0, flock), (EQUAL, 0, 4, fcntl),
        (LOAD, 0, 0, command), (EQUAL, 1, 0, 6), (EQUAL, 0, 1, 7), (RETURN, 0, 0, refused), (RETURN, 0, 0, ALLOW),
    )
)
libc, lines = ctypes.CDLL(None, use_errno=True), ctypes.create_string_buffer(program)
asked = ctypes.create_string_buffer(struct.pack("H6xP", len(program) // 8, ctypes.addressof(lines)))
assert libc.prctl(38, 1, 0, 0, 0) == 0 and libc.prctl(22, 2, asked, 0, 0) == 0
os.execv(sys.argv[1], sys.argv[1:])
"""
"""Runs a program for which the kernel refuses every lock of a file (seccomp(2)), as NFS without its lock service."""


@pytest.mark.parametrize("command", ["status", "analyze", "backup", "metrics", "restore latest", "doctor"])
def test_a_file_system_without_locks_is_told_and_not_a_process_that_is_not_there(conf: Config, command: str) -> None:
    schema.init(conf)
    backup.backup(conf)
    program = WITHOUT_LOCKS.format(error=errno.ENOLCK)
    done = subprocess.run(
        [sys.executable, "-c", program, sys.executable, "-m", "abathur_db", *command.split()],
        cwd=ROOT / "scripts",
        # What measures the tests' coverage has a database of its own, which could not be locked either.
        env={name: each for name, each in os.environ.items() if not name.startswith("COV")}
        | {cli.CONFIG_VARIABLE: toml(conf, busy_timeout_ms=200)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "Traceback" in done.stderr) == (1, False), done.stderr
    assert "No locks available" in done.stdout + done.stderr
    assert "by another process" not in done.stdout + done.stderr


def test_a_directory_that_is_gone_under_its_user_is_told(conf: Config, tmp_path: Path) -> None:
    schema.init(conf)
    (tmp_path / "gone").mkdir()
    program = "import os, sys; os.chdir(sys.argv[1]); os.rmdir(sys.argv[1]); os.execv(sys.argv[2], sys.argv[2:])"
    for named, code in (("abathur.db", 1), (conf.database, 0)):
        (tmp_path / "gone").mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", program, tmp_path / "gone", sys.executable, "-m", "abathur_db", "status", named],
            env={**os.environ, "PYTHONPATH": str(ROOT / "scripts")},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr


@pytest.mark.parametrize(
    ("command", "line", "code", "said"),
    [
        ("backups", "set -o pipefail; { sleep 0.5; $TOOL; } | true", 0, ""),
        ("backups", "$TOOL > /dev/full", 1, "abathur-db: the answer could not be written: No space left on device\n"),
        ("backup", "$TOOL > /dev/full", 0, "abathur-db: the answer could not be written: No space left on device\n"),
    ],
)
def test_an_answer_that_nobody_takes_is_no_defect_and_what_was_done_is_done(
    conf: Config, command: str, line: str, code: int, said: str
) -> None:
    schema.init(conf)
    tool = f"{sys.executable} -m abathur_db {command} --json {conf.database}"
    done = subprocess.run(
        ["bash", "-c", line],
        cwd=ROOT / "scripts",
        env={**os.environ, "TOOL": tool},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (code, said)


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


def test_a_lock_that_a_file_system_cannot_give_is_told_of_a_busy_database(
    conf: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema.init(conf)
    monkeypatch.setattr(host, "unlockable", lambda _: "No locks available")
    with closing(sqlite3.connect(conf.database, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        said = "cannot be locked: No locks available; nothing was changed"
        with pytest.raises(Failure, match=said), database.opened(conf.database, 0) as connection:
            connection.execute("BEGIN IMMEDIATE")
