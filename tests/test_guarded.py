"""Small files where somebody may have planted something: told in a sentence, never followed, never waited for."""

from __future__ import annotations

import errno
import os
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from abathur_db import guarded
from abathur_db.result import Exit, Failure


def hard_link(path: Path) -> None:
    path.with_name("other").write_text("its first name")
    path.hardlink_to(path.with_name("other"))


PLANTED: dict[str, tuple[Callable[[Path], object], str]] = {
    "a symlink": (lambda path: path.symlink_to("/etc/passwd"), "is a symbolic link to /etc/passwd"),
    "a symlink to nothing": (lambda path: path.symlink_to("none"), "is a symbolic link to none"),
    "a FIFO": (os.mkfifo, "is not a regular file"),
    "a directory": (Path.mkdir, "is not a regular file"),
    "a device": (lambda path: os.mknod(path, 0o020666, os.makedev(1, 3)), "is not a regular file"),
    "a hard link": (hard_link, "is another file's second name"),
}


@pytest.mark.parametrize("case", PLANTED)
def test_what_is_planted_is_neither_read_nor_opened_for_writing(tmp_path: Path, case: str) -> None:
    make, message = PLANTED[case]
    make(tmp_path / "file")
    with pytest.raises(Failure, match=message):
        guarded.read_text(tmp_path / "file")
    with pytest.raises(Failure, match=message):
        guarded.opened(tmp_path / "file", os.O_RDWR | os.O_CREAT)


def test_what_another_user_has_is_said_with_the_command_that_gives_it_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(path: Path, *_: object) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    path = tmp_path / "it's lock"
    path.touch()
    monkeypatch.setattr(os, "open", refused)
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(Failure, match=r"belongs to root \(uid 0\), and nobody has to use it") as caught:
        guarded.opened(path, os.O_RDWR | os.O_CREAT)
    assert shlex.split(caught.value.hint.partition(": ")[2])[-2:] == ["nobody:", str(path)]
    # What the user need not write, and has not made, is none of its business.
    with pytest.raises(PermissionError):
        guarded.opened(Path("/etc/hosts"), os.O_RDONLY)


def test_a_link_that_was_swapped_for_a_file_meanwhile_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, other = tmp_path / "file", tmp_path / "other"
    path.symlink_to("/etc/passwd")
    other.touch()
    original = os.open

    def swapped(*arguments: Any) -> int:
        try:
            return original(*arguments)
        finally:
            other.rename(path)

    monkeypatch.setattr(os, "open", swapped)
    with pytest.raises(Failure, match="file was a symbolic link a moment ago"):
        guarded.read_text(path)


def test_a_new_file_takes_the_place_of_what_was_planted_and_leaves_what_it_pointed_to(tmp_path: Path) -> None:
    for plant in (lambda path: path.symlink_to(tmp_path / "precious"), os.mkfifo, hard_link):
        (tmp_path / "precious").write_text("untouched")
        (tmp_path / "file").unlink(missing_ok=True)
        plant(tmp_path / "file")
        guarded.write_new(tmp_path / "file", "new")
        assert (tmp_path / "file").read_text() == "new"
        assert (tmp_path / "precious").read_text() == "untouched"
    assert (tmp_path / "other").read_text() == "its first name"


@pytest.mark.parametrize(("umask", "directory", "file"), [(0o000, 0o750, 0o640), (0o077, 0o700, 0o600)])
def test_what_is_made_is_never_for_others_and_for_the_group_only_where_the_umask_lets_it(
    tmp_path: Path, umask: int, directory: int, file: int
) -> None:
    before = os.umask(umask)
    try:
        guarded.directory(tmp_path / "directory")
        guarded.write_new(tmp_path / "directory/file", "")
    finally:
        os.umask(before)
    assert (tmp_path / "directory").stat().st_mode & 0o777 == directory
    assert (tmp_path / "directory/file").stat().st_mode & 0o777 == file


def test_a_directory_is_one_itself(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "file").touch()
    guarded.directory(tmp_path / "real")
    with pytest.raises(Failure, match="is a symbolic link to real"):
        guarded.directory(tmp_path / "link")
    with pytest.raises(Failure, match="is not a directory"):
        guarded.directory(tmp_path / "file")
    with pytest.raises(Failure, match="cannot be made: Not a directory"):
        guarded.directory(tmp_path / "file/below")


def test_an_error_of_another_kind_is_the_systems_own(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        guarded.read_text(tmp_path / "none")


def test_a_leftover_that_cannot_be_deleted_is_the_systems_own_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(Path, "unlink", denied)
    with pytest.raises(PermissionError):
        guarded.clear(tmp_path / "file")


def test_a_user_without_a_name_is_shown_by_number() -> None:
    assert guarded.user_name(0) == "root (uid 0)"
    assert guarded.user_name(123456) == "uid 123456"


def linked(home: Path) -> None:
    (home / "moved").mkdir()
    shutil.chown(home / "moved", "nobody")
    (home / "file").rename(home / "moved/file")
    (home / "file").symlink_to("moved/file")


def strangers_link(home: Path) -> None:
    linked(home)
    os.chown(home / "file", 65534, 0, follow_symlinks=False)


def chained(home: Path) -> None:
    """Let a link of root's lead through one of another user's back to root's own file."""
    (home / "real").write_text("")
    (home / "theirs").mkdir()
    (home / "theirs/current").symlink_to(home / "real")
    for each in (home / "theirs", home / "theirs/current"):
        os.chown(each, 65534, 0, follow_symlinks=False)
    (home / "file").unlink()
    (home / "file").symlink_to("theirs/current")


STRANGERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "its file is another user's": (lambda home: shutil.chown(home / "file", "nobody"), "file belongs to nobody"),
    "its file can be written by its group": (lambda home: (home / "file").chmod(0o660), "file can be written by its"),
    "its file can be written by everybody": (lambda home: (home / "file").chmod(0o602), "file can be written by every"),
    "its directory is another user's": (lambda home: shutil.chown(home, "nobody"), "belongs to nobody"),
    "its directory can be written by a group": (lambda home: home.chmod(0o770), "can be written by its group"),
    "the directory that a link of root's leads to is another user's": (linked, "moved belongs to nobody"),
    "a link on its way is another user's": (chained, "theirs belongs to nobody"),
    "it is a link of another user's": (strangers_link, "file is a symbolic link to moved/file"),
}


@pytest.mark.parametrize("case", STRANGERS)
def test_root_acts_on_nothing_that_another_user_could_have_written(tmp_path: Path, case: str) -> None:
    (tmp_path / "file").write_text("")
    guarded.roots_alone(tmp_path / "file", tmp_path / "none")
    change, message = STRANGERS[case]
    change(tmp_path)
    with pytest.raises(Failure, match=f"{message}.*, and root acts on what {tmp_path}/file says") as caught:
        guarded.roots_alone(tmp_path / "file")
    assert caught.value.code is Exit.USAGE


def test_a_link_of_roots_to_a_file_of_roots_is_roots(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    linked(tmp_path)
    shutil.chown(tmp_path / "moved", "root")
    guarded.roots_alone(tmp_path / "file")


def test_a_directory_gets_the_mode_that_it_has_to_have_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        guarded.directory(tmp_path / "shared", 0o770)
    finally:
        os.umask(before)
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o770
