"""Backups of a user of their own: out of the reach of code that runs as the database's owner, whatever it does."""

from __future__ import annotations

import ast
import json
import os
import pwd
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import backups
import pytest
from abathur_db import backup, catalog, cli, guarded, handover, proof, release, retention, runs, schema, seed, takeover
from abathur_db.config import Config
from abathur_db.manifest import Manifest
from abathur_db.result import Exit, Failure
from databases import host_directory, picture, rows, toml

pytestmark = pytest.mark.engine

OWNER, KEEPER = "nobody", "sync"
"""Two users of Debian's base that have one group."""


class Host:
    """A host whose backups are another user's than its database, with the tool as it is installed."""

    def __init__(self, home: Path, conf: Config) -> None:
        """Make the directories as a deploy does."""
        self.home, self.conf = home, conf
        for path, user, mode in (
            (conf.database.parent, OWNER, 0o700),
            (conf.state_directory, OWNER, 0o710),
            (conf.backup_directory, KEEPER, 0o750),
        ):
            path.mkdir()
            os.chown(path, pwd.getpwnam(user).pw_uid, pwd.getpwnam(user).pw_gid)
            path.chmod(mode)

    def tool(self, command: str, user: str = "root", changes: dict[str, Any] | None = None) -> tuple[int, str]:
        """Run the tool; return its exit code and all that it said."""
        return self.run([str(self.home / "abathur-db"), *command.split()], user, changes)

    def run(self, command: list[str], user: str, changes: dict[str, Any] | None = None) -> tuple[int, str]:
        """Run a program as a user."""
        account = pwd.getpwnam(user)
        done = subprocess.run(
            command,
            env={"PATH": os.environ["PATH"], "ABATHUR_DB_CONFIG": toml(self.conf, **(changes or {}))},
            cwd="/",
            user=account.pw_uid,
            group=account.pw_gid,
            extra_groups=[],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        return done.returncode, done.stdout + done.stderr

    def intruder(self, program: str) -> str:
        """Run Python as the owner of the database; return what it printed."""
        code, said = self.run(["/usr/bin/python3", "-c", program], OWNER)
        assert code == 0, said
        return said

    def through_units(self) -> tuple[int, str]:
        """Back up as systemd does: the owner's unit first, then that of the backups' user."""
        self.tool("snapshot", OWNER)
        return self.tool("backup", KEEPER)

    def counting(self) -> set[str]:
        """Return the backups that count."""
        return {each.id for each in catalog.backups(self.conf)}

    def last(self, command: str) -> dict[str, Any]:
        """Return the record of a command's last run."""
        found: dict[str, Any] = json.loads((self.conf.records(command) / f"last/{command}.json").read_text())
        return found


@pytest.fixture
def host(conf: Config) -> Iterator[Host]:
    """Return a host with a database and a backup."""
    with host_directory("apart") as home:
        apart = replace(
            conf,
            owner=OWNER,
            backup_owner=KEEPER,
            database=home / "data/abathur.db",
            backup_directory=home / "backups",
            state_directory=home / "state",
            install_directory=home / "opt",
            backup_keep_minimum=9,
        )
        made = Host(home, apart)
        for command in ("init", "seed", "backup"):
            code, said = made.tool(command)
            assert code == 0, said
        yield made


ATTACKS = """
import glob, os, shutil
home = {home!r}
done = []
def attempt(what, *arguments, **options):
    try:
        what(*arguments, **options)
        done.append((getattr(what, '__name__', what), arguments))
    except OSError:
        pass
every = [each.rstrip('/') for each in glob.glob(home + '/**', recursive=True, include_hidden=True)]
assert len([each for each in every if os.path.isfile(each)]) > 2
for each in every:
    attempt(os.chmod, each, 0o777)
    attempt(os.chown, each, os.getuid(), -1)
    attempt(os.utime, each)
    attempt(os.rename, each, each + '.gone')
    attempt(os.link, each, '/var/lib/' + os.path.basename(each))
    attempt(os.symlink, '/dev/null', each + '.link')
    if os.path.isdir(each):
        attempt(os.rmdir, each)
        attempt(os.mkdir, each + '/x')
        attempt(os.mkfifo, each + '/abathur_20260101_000000.json')
    else:
        attempt(os.remove, each)
        attempt(os.truncate, each, 0)
        for mode in ('a', 'r+', 'w'):
            attempt(open, each, mode)
attempt(os.rename, home, home + '.gone')
print(done)
"""


def test_the_owner_can_neither_change_nor_delete_nor_forge_anything_of_the_backups(host: Host) -> None:
    before = picture(host.conf.backup_directory)
    assert {".records/last/backup.json", ".records/sequence"} <= {
        str(Path(each).relative_to(host.conf.backup_directory)) for each in before
    }
    assert host.intruder(ATTACKS.format(home=str(host.conf.backup_directory))) == "[]\n"
    assert picture(host.conf.backup_directory) == before


def test_what_is_told_of_a_backup_is_told_and_remembered_out_of_the_owners_reach(host: Host) -> None:
    for job, keeps, other in (("prune", KEEPER, OWNER), ("vacuum", OWNER, KEEPER)):
        for user in ("root", keeps):
            code, said = host.tool(f"alert {job} --run true", user)
            assert code == 0, said
        assert "the same was told less than an hour ago" in said
        memory = host.conf.records(job) / f"alerts/{job}.command.json"
        assert memory.stat().st_uid == pwd.getpwnam(keeps).pw_uid
        code, said = host.tool(f"alert {job} --run true", other)
        assert (code, f"this is the work of {keeps}" in said) == (2, True)
    assert host.intruder(ATTACKS.format(home=str(host.conf.records("backup")))) == "[]\n"


def test_the_attacks_succeed_where_they_may(host: Host) -> None:
    """The test above can fail: in a directory of the owner's the same attempts go through."""
    copy = host.conf.database.parent / "copy"
    shutil.copytree(host.conf.backup_directory, copy)
    for each in [copy, *copy.rglob("*")]:
        os.chown(each, pwd.getpwnam(OWNER).pw_uid, -1)
    assert host.intruder(ATTACKS.format(home=str(copy))) != "[]\n"


def test_root_by_hand_and_the_units_make_backups_that_everything_else_reads(host: Host) -> None:
    for done in (host.through_units(), host.tool("backup")):
        assert done[0] == 0, done[1]
    assert len(host.counting()) == 3
    assert not (host.conf.handover_directory / handover.FILE).exists()
    for command in ("verify all", "drill", "backups", "prune", "prune --dry-run", "backup --dry-run", "restore latest"):
        code, said = host.tool(command)
        assert code == 0, f"{command}: {said}"
    modes = {oct(each.stat().st_mode & 0o777) for each in host.conf.backup_directory.rglob("*") if each.is_file()}
    # The locks are for nobody else: whoever can open one can hold it.
    assert modes == {"0o640", "0o600"}
    locks = [each for each in host.conf.backup_directory.rglob("*") if each.stat().st_mode & 0o777 == 0o600]
    assert {each.name for each in locks} == {"lock", ".lock"}


def test_the_owner_alone_is_sent_to_root(host: Host) -> None:
    code, said = host.tool("backup", OWNER)
    assert (code, f"this runs as {OWNER}, but this is the work of {KEEPER}" in said) == (2, True)


OWN = {
    "handover": "snapshot",
    "last": "analyze",
    "history": "vacuum",
    "history/.lock": "vacuum",
    "history/analyze.jsonl": "analyze",
    "lock": "analyze",
    "scratch": "integrity-check",
}
"""What the owner keeps in its state directory, and a job that writes there."""


@pytest.mark.parametrize("name", OWN)
def test_what_another_user_has_in_the_state_directory_is_given_back_by_the_command_that_is_said(
    host: Host, name: str
) -> None:
    path = host.conf.state_directory / name
    assert host.tool(OWN[name])[0] == 0
    if not path.exists():
        path.mkdir()
    os.chown(path, 0, 0)
    path.chmod(0o700 if path.is_dir() else 0o600)
    _, said = host.tool(OWN[name])
    told = re.search(rf"{path} belongs to root \(uid 0\), and {OWNER} has to use it.*?(chown .*?)$", said, re.S | re.M)
    assert told, said
    subprocess.run(told[1], shell=True, check=True)
    code, said = host.tool(OWN[name])
    assert (code, "belongs to" in said) == (0, False), said


def test_the_reason_why_there_is_no_copy_is_the_backups(host: Host) -> None:
    aside = host.conf.database.rename(host.conf.database.with_name("aside"))
    for done in (host.through_units(), host.tool("backup")):
        assert (done[0], "there is no database at" in done[1]) == (1, True), done[1]
        assert not host.last("backup")["ok"]
    aside.rename(host.conf.database)
    with runs.locked(host.conf.state_directory, "vacuum", 0):
        for done in (host.through_units(), host.tool("backup")):
            assert (done[0], "waited 0 s for vacuum" in done[1]) == (Exit.BUSY, True), done[1]
    assert host.through_units()[0] == 0


def old(path: Path) -> None:
    os.utime(path, (1, 1))


def instead(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Return what puts something else in the place of the copy."""

    def plant(path: Path) -> None:
        path.unlink()
        make(path)

    return plant


HANDED: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda path: path.unlink(), "no copy of the database was handed over"),
    "one of long ago": (old, "no copy of the database was handed over"),
    "a symlink": (instead(lambda path: path.symlink_to("/etc/passwd")), "is a symbolic link to /etc/passwd"),
    "a FIFO": (instead(os.mkfifo), "is not a regular file"),
    "a directory": (instead(Path.mkdir), "is not a regular file"),
    "a second name": (lambda path: path.with_name("other").hardlink_to(path), "is another file's second name"),
    "nothing in it": (lambda path: os.truncate(path, 0), "is empty (0 bytes)"),
    "half of it": (lambda path: os.truncate(path, path.stat().st_size // 2), "is corrupt"),
    "text": (lambda path: path.write_text("x" * 9000), "is not a SQLite database"),
    "more than there is room for": (lambda path: os.truncate(path, 1 << 40), "nothing was changed"),
}


@pytest.mark.parametrize("what", HANDED)
def test_what_was_planted_at_the_handover_becomes_no_backup(host: Host, what: str) -> None:
    plant, sentence = HANDED[what]
    before = picture(host.conf.backup_directory)
    assert host.tool("snapshot", OWNER)[0] == 0
    plant(host.conf.handover_directory / handover.FILE)
    code, said = host.tool("backup", KEEPER)
    assert (code, sentence in said, "Traceback" in said) == (1, True, False), said
    now = picture(host.conf.backup_directory)
    assert {each: content for each, content in now.items() if ".records" not in each} == {
        each: content for each, content in before.items() if ".records" not in each
    }
    if what == "a directory":
        # Nobody's leftover, so it stays until somebody has looked.
        assert "which this tool never makes" in host.through_units()[1]
        (host.conf.handover_directory / handover.FILE).rmdir()
    assert host.through_units()[0] == 0


SWAPPER = """
import os, random
path = {path!r}
print("ready", flush=True)
while True:
    try:
        with open(path, "r+b") as stream:
            while os.path.exists("/"):
                stream.seek(random.randrange(0, 1 << 21))
                stream.write(os.urandom(4096))
                if random.random() < 0.01:
                    stream.truncate(random.randrange(1 << 20, 1 << 21))
                if random.random() < 0.002:
                    break
    except OSError:
        pass
"""


def test_a_copy_that_is_changed_meanwhile_becomes_no_backup_that_is_wrong(host: Host) -> None:
    rows(host.conf.database, 3000)
    for each in host.conf.database.parent.iterdir():
        os.chown(each, pwd.getpwnam(OWNER).pw_uid, -1)
    account = pwd.getpwnam(OWNER)
    program = SWAPPER.format(path=str(host.conf.handover_directory / handover.FILE))
    refused = 0
    with subprocess.Popen(
        ["/usr/bin/python3", "-c", program], user=account.pw_uid, group=account.pw_gid, extra_groups=[], cwd="/",
        stdout=subprocess.PIPE,
    ) as swapper:  # fmt: skip
        assert swapper.stdout is not None
        swapper.stdout.readline()
        try:
            for _ in range(8):
                code, said = host.through_units()
                assert (code in (0, 1), "Traceback" in said) == (True, False), said
                refused += code
        finally:
            swapper.kill()
    assert refused > 0
    code, said = host.tool("verify all")
    assert code == 0, said


def test_what_the_owner_says_of_the_checks_only_spares(host: Host) -> None:
    assert host.tool("backup")[0] == 0
    newest, older = sorted(host.counting(), reverse=True)
    nothing = {f"backup_keep_{each}": 0 for each in ("daily", "weekly", "monthly", "minimum")}
    checks = host.conf.state_directory / catalog.CHECKS
    checks.write_text(json.dumps({newest: {"ok": False}, older: {"ok": True}}))
    assert host.tool("prune", changes=nothing)[0] == 0
    assert host.counting() == {newest, older}
    checks.unlink()
    checks.symlink_to("/etc/shadow")
    assert host.tool("prune", changes=nothing)[0] == 0
    assert host.counting() == {newest}


# From here on in one process, as root, who is both users at once.


@pytest.fixture
def root(conf: Config) -> Config:
    """Return a host of root's with a database."""
    found = replace(conf, owner="root", backup_owner="root", backup_keep_minimum=9)
    schema.init(found)
    seed.seed(found)
    return found


def test_a_copy_that_was_handed_over_is_packed_as_the_database_is(
    root: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [backup.backup(root, handed=handover.received(root)).data]
    assert handover.snapshot(root).changed
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    descriptor = handover.received(root)
    monkeypatch.undo()
    made.append(backup.backup(root, handed=descriptor).data)
    assert made[0]["rows"] == made[1]["rows"]
    assert [each["sequence"] for each in made] == [1, 2]
    assert (root.backup_directory / ".records" / catalog.SEQUENCE).read_text() == "2\n"
    assert not root.handover_directory.joinpath(handover.FILE).exists()


def test_without_a_user_of_their_own_nothing_is_handed_over(conf: Config) -> None:
    assert handover.received(conf) is None
    assert takeover.take_over(conf).summary == "backups have no user of their own"


@pytest.mark.parametrize("code", [Exit.FAILED, Exit.BUSY])
def test_the_copy_s_own_failure_is_told(root: Config, monkeypatch: pytest.MonkeyPatch, code: Exit) -> None:
    told = {
        "command": "snapshot",
        "ok": False,
        "summary": "why",
        "hint": "next",
        "finished": "2026-11-24",
        "invocation": "",
    }
    runs.record(root.records("snapshot"), {**told, "exit_code": int(code)})
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    with pytest.raises(Failure, match="why") as caught:
        handover.received(root)
    assert (caught.value.hint, caught.value.code) == ("next", code)


def test_no_copy_and_one_of_long_ago_are_none(root: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    handover.snapshot(root)
    old(root.handover_directory / handover.FILE)
    monkeypatch.setattr(os, "geteuid", lambda: 1)
    for _ in range(2):
        with pytest.raises(Failure, match="no copy of the database was handed over"):
            handover.received(root)


def grow(path: Path) -> None:
    with path.open("ab") as stream:
        stream.write(bytes(1 << 20))


@pytest.mark.parametrize(
    "change", [lambda path: os.truncate(path, 4096), grow, lambda path: os.truncate(path, 1 << 40)]
)
def test_of_a_copy_that_changes_its_size_while_it_is_taken_no_more_is_taken_than_was_granted(
    root: Config, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None]
) -> None:
    handover.snapshot(root)
    path = root.handover_directory / handover.FILE
    granted, really, most = path.stat().st_size, os.sendfile, 0

    def meanwhile(out: int, into: int, offset: int, count: int) -> int:
        nonlocal most
        change(path)
        sent = really(out, into, offset, min(count, 4096))
        most = max(most, os.fstat(out).st_size)
        return sent

    monkeypatch.setattr(os, "sendfile", meanwhile)
    handed = guarded.opened(path, os.O_RDONLY)
    with pytest.raises(Failure, match=f"had {granted} bytes and has .* now; no backup was kept"):
        backup.backup(root, handed=handed)
    assert 0 < most <= granted
    assert not [each for each in root.backup_directory.iterdir() if each.is_file()]
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(handed)


def test_the_command_line_hands_over_and_records_among_the_backups(
    root: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_configuration", lambda _: root)
    before = os.umask(0o077)
    try:
        assert cli.main(["backup"]) == 0, capsys.readouterr().err
    finally:
        os.umask(before)
    found = runs.recorded(root.records("backup"), "last", "backup")
    assert found is not None
    assert found["ok"]
    assert (root.backup_directory / str(found["data"]["file"])).stat().st_mode & 0o777 == 0o640


@pytest.fixture
def former(root: Config) -> Config:
    """Return a host with three backups of the owner's, one of them damaged, and something planted."""
    own = replace(root, backup_owner="")
    made = [str(backup.backup(own).data["id"]) for _ in range(4)]
    backups.flip(own, made[1])
    backups.edit(own, made[3], sequence=2**62)
    (own.backup_directory / "abathur_20200101_000000.json").symlink_to("/etc/shadow")
    (own.backup_directory / "abathur_20200101_000000.db").touch()
    return root


def test_a_backup_that_became_something_else_meanwhile_is_not_copied(former: Config) -> None:
    found = next(each for each in catalog.backups(former) if each.sequence < 10)
    source = former.backup_directory.rename(former.backup_directory.with_name("source"))
    former.backup_directory.mkdir()
    (source / found.file).rename(source / "elsewhere")
    assert takeover._copy(former, source, found) == f"its file {found.file} is gone"
    (source / found.file).symlink_to("elsewhere")
    assert "is a symbolic link" in takeover._copy(former, source, found)
    assert list(former.backup_directory.iterdir()) == []


def test_the_owner_s_backups_are_copied_and_what_is_not_as_its_manifest_says_is_left(former: Config) -> None:
    before = picture(former.backup_directory)
    assert takeover.take_over(former, dry_run=True).changed
    assert picture(former.backup_directory) == before
    result = takeover.take_over(former)
    aside = former.backup_directory.with_name("abathur.db.backups.former")
    assert result.data["taken"] == 2
    assert f"took 2 backups over from {aside}, which stays; not taken: " in result.summary
    reasons = ("names another backup|is a symbolic link", "SHA-256 of .* is not that of its manifest", "says sequence")
    assert all(re.search(reason, " ".join(result.data["left"])) for reason in reasons), result.data["left"]
    assert len(result.data["left"]) == 3
    assert {Path(each).name for each in picture(aside)} == {Path(each).name for each in before}
    assert len(catalog.backups(former)) == 2
    copied = former.backup_directory / catalog.backups(former)[0].file
    assert copied.stat().st_ino != (aside / copied.name).stat().st_ino


def test_a_backup_that_would_not_count_where_it_is_taken_to_is_left(former: Config) -> None:
    """Its manifest is shorter than ours of the same content would be, and only ours is too long to be read."""
    first = catalog.backups(former)[-1].id
    backups.edit(former, first, rows={f"t{number:05}": 1 for number in range(70_000)})
    result = takeover.take_over(former)
    assert result.data["taken"] == 1
    assert any(each.startswith(f"{first}, the backup would not count: ") for each in result.data["left"])
    assert first not in {each.id for each in catalog.entries(former)}
    assert not list(former.backup_directory.glob(".*.partial"))


def test_a_take_over_that_was_cut_is_ended_by_the_next_one(former: Config) -> None:
    moving = former.backup_directory.rename(former.backup_directory.with_name("abathur.db.backups.moving"))
    # What is there is the owner's once more, after a rollback: it goes aside as well, under a name of its own.
    former.backup_directory.mkdir()
    assert takeover.take_over(former).data["taken"] == 2
    assert not moving.exists()
    assert {each.name for each in moving.parent.glob("*.former*")} == {
        "abathur.db.backups.former",
        "abathur.db.backups.former_2",
    }


def test_the_take_over_by_root_leaves_backups_that_the_owner_cannot_change(host: Host) -> None:
    made = host.counting()
    for each in [host.conf.backup_directory, *host.conf.backup_directory.rglob("*")]:
        os.chown(each, pwd.getpwnam(OWNER).pw_uid, -1)
        each.chmod(0o700 if each.is_dir() else 0o600)
    checks = host.conf.state_directory / catalog.CHECKS
    assert host.tool("verify")[0] == 0
    checks.chmod(0o600)
    code, said = host.tool("take-over")
    assert (code, "took 1 backup over" in said) == (0, True), said
    assert host.counting() == made
    assert host.intruder(ATTACKS.format(home=str(host.conf.backup_directory))) == "[]\n"
    assert checks.stat().st_mode & 0o777 == 0o640
    for command in ("take-over", "backup", "verify all"):
        code, said = host.tool(command)
        assert (code, "took" in said) == (0, False), said


def test_what_else_keeps_a_directory_from_being_renamed_is_no_container(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        takeover._renamed(tmp_path / "absent", tmp_path / "aside")


def test_in_a_container_what_was_the_owner_s_goes_below_the_directory(
    former: Config, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """A directory of an overlay's lower layer, of an image for one, cannot be renamed: EXDEV."""
    home, layers = former.backup_directory.parent, tmp_path_factory.mktemp("layers")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m,mode=0755", "tmpfs", layers], check=True)
    try:
        subprocess.run(["cp", "-a", home, layers / "lower"], check=True)
        for each in ("upper", "work"):
            (layers / each).mkdir()
        (layers / "upper").chmod(home.stat().st_mode)
        options = f"lowerdir={layers}/lower,upperdir={layers}/upper,workdir={layers}/work,redirect_dir=off"
        subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", home], check=True)
        try:
            result = takeover.take_over(former)
            assert result.data["taken"] == 2
            assert f"over from {former.backup_directory / former.backup_directory.name}.former" in result.summary
            assert len(catalog.backups(former)) == 2
            assert former.backup_directory.stat().st_mode & 0o7777 == takeover.MODE
        finally:
            subprocess.run(["umount", "--lazy", home], check=True)
    finally:
        subprocess.run(["umount", "--lazy", layers], check=True)


def test_on_a_disk_of_its_own_what_was_the_owner_s_goes_below_the_directory(former: Config) -> None:
    directory = former.backup_directory
    aside = directory.rename(directory.with_name("aside"))
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", directory], check=True)
    try:
        shutil.copytree(aside, directory, dirs_exist_ok=True, symlinks=True)
        (directory / "of the owner").mkdir()
        result = takeover.take_over(former)
        assert result.data["taken"] == 2
        assert len(result.data["left"]) == 3
        below = directory / f"{directory.name}.former"
        assert f"over from {below}, which stays" in result.summary
        assert {each.name for each in below.iterdir()} >= {each.name for each in aside.iterdir()}
        assert (directory / "of the owner.former").is_dir()
        assert len(catalog.backups(former)) == 2
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


@pytest.fixture
def mount(host: Host) -> Iterator[Path]:
    """Return the backup directory on a disk of its own, as the owner's, with a link that the owner planted."""
    directory = host.conf.backup_directory
    aside = directory.rename(host.home / "aside")
    directory.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", directory], check=True)
    try:
        shutil.copytree(aside, directory, dirs_exist_ok=True)
        (directory / "abathur_20200101_000000.json").symlink_to("/etc/shadow")
        owner = pwd.getpwnam(OWNER)
        for each in [directory, *directory.rglob("*")]:
            os.chown(each, owner.pw_uid, owner.pw_gid, follow_symlinks=False)
            if not each.is_symlink():
                each.chmod(0o700 if each.is_dir() else 0o600)
        yield directory
    finally:
        subprocess.run(["umount", "--lazy", directory], check=True)


@pytest.mark.parametrize("cut", [False, True])
def test_backups_on_a_disk_of_their_own_are_taken_over_where_they_are(host: Host, mount: Path, *, cut: bool) -> None:
    made = host.counting()
    if cut:
        os.chown(mount, pwd.getpwnam(KEEPER).pw_uid, -1)
        mount.chmod(takeover.SWEEPING)
    code, said = host.tool("take-over --dry-run")
    assert (code, "would give" in said) == (0, True)
    code, said = host.tool("take-over")
    assert (code, "took 1 backup over" in said) == (0, True), said
    assert f"from {mount}/{mount.name}.former, which stays" in said
    assert host.counting() == made
    # What was the owner's stays its own, apart from what counts.
    reached = ast.literal_eval(host.intruder(ATTACKS.format(home=str(mount))))
    assert [each for each in reached if ".former" not in str(each[1])] == []
    assert host.counting() == made
    assert mount.stat().st_mode & 0o7777 == takeover.MODE
    for command in ("take-over", "backup", "verify all"):
        code, said = host.tool(command)
        assert (code, "took" in said) == (0, False), said


def test_an_empty_disk_for_the_backups_is_given_as_it_is(host: Host, mount: Path) -> None:
    for each in mount.iterdir():
        shutil.rmtree(each) if each.is_dir() else each.unlink()
    code, said = host.tool("take-over")
    assert (code, "took" in said) == (0, False), said
    assert not list(mount.iterdir())
    assert host.tool("backup")[0] == 0


def test_without_room_for_the_copies_nothing_is_touched(former: Config) -> None:
    with pytest.raises(Failure, match="taking the backups over needs"):
        takeover.take_over(replace(former, minimum_free_mb=10**9))
    assert not former.backup_directory.with_name("abathur.db.backups.moving").exists()


def test_a_file_that_is_a_symlink_by_the_time_it_is_copied_is_left(
    former: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def planted(_: Config, source: Path) -> dict[str, Any]:
        for each in source.glob("*.zst"):
            each.unlink()
            each.symlink_to("/etc/shadow")
        return {}

    entries = catalog.entries(former)
    monkeypatch.setattr(takeover, "_let_read", planted)
    monkeypatch.setattr(catalog, "entries", lambda _: entries)
    monkeypatch.setattr(catalog, "backups", lambda _: [])
    result = takeover.take_over(former)
    assert result.data["taken"] == 0
    assert "is a symbolic link to /etc/shadow" in result.summary


def test_a_rollback_to_a_release_without_that_user_gives_the_directory_back(
    root: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = replace(root, install_directory=tmp_path / "opt", owner="daemon")
    for name in ("one", "two"):
        (conf.install_directory / name).mkdir(parents=True)
    kept = conf.install_directory / "kept"
    (kept / "etc").mkdir(parents=True)
    (kept / "etc/abathur-db.toml").write_text('owner = "daemon"\n')
    monkeypatch.setattr(release, "ETC", tmp_path / "etc")
    monkeypatch.setattr("abathur_db.host.control", lambda *_: None)
    (tmp_path / "etc").mkdir()
    takeover._give(conf.backup_directory, 0, 0, 0o750)
    release._return_to(conf, {"release": "one", "timers": []}, kept)
    found = conf.backup_directory.stat()
    assert (found.st_uid, found.st_mode & 0o777) == (pwd.getpwnam("daemon").pw_uid, 0o700)


def test_a_backup_that_is_pruned_while_all_are_verified_is_no_fault(
    conf: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    schema.init(conf)
    made = [backup.backup(conf).data["id"] for _ in range(2)]
    prove = proof.prove

    def pruned_meanwhile(config: Config, manifest: Manifest, target: Path) -> list[str]:
        if manifest.id == made[0]:
            retention._mark(config, [manifest], {})
            retention._finish(config, {})
        return prove(config, manifest, target)

    monkeypatch.setattr(proof, "prove", pruned_meanwhile)
    result = proof.verify(conf, "all")
    assert result.ok
    assert [each.id for each in result.checks] == made[1:]
