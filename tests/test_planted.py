"""What a broken-into application can plant in its directories, and root running the tool over it.

The application's user owns the data, backup and state directories, so it can put anything at any name in them. The
tool, run by root, neither follows nor waits for it, ends with a sentence, and what root alone may read or write
stays unread and unwritten.
"""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from abathur_db.config import Config
from conftest import configuration
from databases import host_directory, toml

pytestmark = pytest.mark.engine

OWNER = "nobody"
SECRET = "what only root may read"


@dataclass(frozen=True)
class Host:
    """A host with its tool, its configuration, and a file that is root's alone."""

    home: Path
    conf: Config
    precious: Path

    def run(self, command: str, umask: int = 0o022) -> tuple[int, str]:
        """Run a command as root; return its exit code and all that it said. A command that hangs fails the test."""
        done = subprocess.run(
            [self.home / "abathur-db", *command.split()],
            env={"PATH": os.environ["PATH"], "ABATHUR_DB_CONFIG": toml(self.conf)},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            umask=umask,
        )
        return done.returncode, done.stdout + done.stderr

    def plant(self, name: str, make: Callable[[Path], object]) -> Path:
        """Put something at a path as the owner; what is there goes."""
        path = self.home / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        path.unlink(missing_ok=True)
        path.parent.mkdir(exist_ok=True)
        make(path)
        os.chown(path, *self.ids, follow_symlinks=False)
        os.chown(path.parent, *self.ids)
        return path

    @property
    def ids(self) -> tuple[int, int]:
        """User and group of the owner."""
        account = pwd.getpwnam(OWNER)
        return account.pw_uid, account.pw_gid


PARTS = ("data", "backups", "state")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Host, Path]]:
    """Make a host with a database and a backup, and a copy of its directories; three runs of a program."""
    with host_directory("planted") as home:
        owned = replace(
            configuration(home / "data/abathur.db"),
            owner=OWNER,
            backup_directory=home / "backups",
            state_directory=home / "state",
            install_directory=home / "opt",
            backup_keep_minimum=9,
        )
        host = Host(home, owned, home / "precious")
        for each in PARTS:
            (home / each).mkdir(mode=0o700)
            os.chown(home / each, *host.ids)
        for command in ("init", "seed", "backup"):
            assert host.run(command)[0] == 0
        copy = tmp_path_factory.mktemp("copy")
        subprocess.run(["cp", "-a", *(home / each for each in PARTS), copy], check=True)
        yield host, copy


@pytest.fixture
def host(made: tuple[Host, Path]) -> Host:
    """Return the host as it was made."""
    host, copy = made
    for each in PARTS:
        shutil.rmtree(host.home / each)
    subprocess.run(["cp", "-a", *copy.iterdir(), host.home], check=True)
    host.precious.unlink(missing_ok=True)
    host.precious.write_text(SECRET)
    host.precious.chmod(0o600)
    return host


LINK, FIFO, DIRECTORY = "a symlink to root's file", "a FIFO", "a directory"
EVERYDAY = ("backup", "status", "restore latest")
PATHS: dict[str, tuple[str, ...]] = {
    "data/abathur.db": (*EVERYDAY, "init", "doctor"),
    "data/abathur.db-wal": (*EVERYDAY, "doctor"),
    "data/abathur.db-shm": (*EVERYDAY, "doctor"),
    "data/abathur.db-journal": EVERYDAY,
    "data/.abathur.db.new": ("restore fresh",),
    "data/.abathur.db.restore": ("restore latest", "restore fresh"),
    "backups/.abathur_new.db.partial": ("backup",),
    "backups/.abathur_new.packed.partial": ("backup",),
    "backups/abathur_20260101_000000.json": ("backup", "backups", "verify all", "restore latest", "prune"),
    "backups/abathur_20260101_000000.db.zst": ("backup", "backups", "verify all", "restore latest"),
    "backups/abathur_20260101_000000.json.deleting": ("backup", "prune"),
    "state/lock": EVERYDAY,
    "state/sequence": ("backup",),
    "state/.sequence.partial": ("backup",),
    "state/checks.json": ("status", "drill", "backups"),
    "state/.checks.json.partial": ("drill", "verify latest"),
    "state/adopted.json": ("integrity-check",),
    "state/last": ("backup", "status", "alert backup"),
    "state/last/backup.json": ("backup", "status", "alert backup"),
    "state/last/.backup.json.partial": ("backup",),
    "state/success/drill.json": ("status", "drill"),
    "state/history/backup.jsonl": ("backup", "report"),
    "state/history": ("backup", "report"),
    "state/alerts/backup.mail.json": ("alert backup --mail root",),
    "state/scratch": ("drill", "integrity-check"),
    "state/scratch/proof.db": ("drill", "verify latest"),
    "state/scratch/clone.db": ("integrity-check",),
}


# A directory is nothing to follow or to wait for: where something is deleted or linked it is told in a sentence.
WITH_DIRECTORY = (
    "data/abathur.db-wal",
    "backups/.abathur_new.db.partial",
    "backups/abathur_20260101_000000.json.deleting",
)


@pytest.mark.parametrize(
    ("path", "kind"),
    [*((path, kind) for path in PATHS for kind in (LINK, FIFO)), *((path, DIRECTORY) for path in WITH_DIRECTORY)],
)
def test_what_the_owner_plants_is_not_followed_not_waited_for_and_told_in_a_sentence(
    host: Host, path: str, kind: str
) -> None:
    make: dict[str, Callable[[Path], object]] = {
        LINK: lambda each: each.symlink_to(host.precious),
        FIFO: os.mkfifo,
        DIRECTORY: Path.mkdir,
    }
    for command in PATHS[path]:
        host.plant(path, make[kind])
        code, said = host.run(command)
        assert code in (0, 1, 2), said
        assert "Traceback" not in said
        assert SECRET not in said
        found = host.precious.stat()
        assert (found.st_uid, found.st_mode & 0o777, found.st_nlink) == (0, 0o600, 1)
        assert host.precious.read_text() == SECRET
    assert not [
        each
        for each in host.home.rglob("*")
        if each.is_file()
        and SECRET in each.read_text(errors="replace")
        and each != host.precious
        and not each.is_symlink()
    ]


def test_a_hard_link_in_the_place_of_the_lock_is_not_emptied(host: Host) -> None:
    """The lock is emptied when it is taken: another file of the owner's, its database, would be."""
    database = host.home / "data/abathur.db"
    before = database.read_bytes()
    host.plant("state/lock", lambda path: path.hardlink_to(database))
    code, said = host.run("analyze")
    assert (code, "is another file's second name (a hard link)" in said) == (1, True)
    assert database.read_bytes() == before


SWAPPER = """
import os, sys
path, target = sys.argv[1:]
print("ready", flush=True)
while True:
    try:
        os.symlink(target, path + ".link")
        os.rename(path + ".link", path)
        os.mkfifo(path + ".fifo")
        os.rename(path + ".fifo", path)
        os.unlink(path)
    except OSError:
        pass
"""


@pytest.mark.parametrize(
    "path", ["state/lock", "state/last/backup.json", "state/sequence", "backups/.abathur_new.db.partial"]
)
def test_a_race_of_renames_gains_nothing(host: Host, path: str) -> None:
    (host.home / "state/last").mkdir(exist_ok=True)
    uid, gid = host.ids
    swapper = subprocess.Popen(
        ["/usr/bin/python3", "-c", SWAPPER, host.home / path, host.precious],
        stdout=subprocess.PIPE,
        user=uid,
        group=gid,
        extra_groups=[],
        cwd="/",
    )
    try:
        assert swapper.stdout is not None
        swapper.stdout.readline()
        for command in ("backup", "status", "alert backup", "prune", "backup"):
            code, said = host.run(command)
            assert (code in (0, 1, 2), SECRET in said) == (True, False), said
    finally:
        swapper.kill()
        swapper.wait()
        swapper.stdout.close()  # type: ignore[union-attr]
    assert host.precious.read_text() == SECRET
    assert host.precious.stat().st_uid == 0


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
def test_all_that_the_tool_makes_is_the_owners_alone_whatever_the_umask(host: Host, umask: int) -> None:
    for command in ("init", "backup", "drill", "validate", "analyze", "restore latest", "backup"):
        code, said = host.run(command, umask)
        assert code == 0, said
    found = [each for top in ("data", "backups", "state") for each in [host.home / top, *(host.home / top).rglob("*")]]
    assert len(found) > 20
    wrong = [
        f"{each} {oct(each.lstat().st_mode)}"
        for each in found
        if each.lstat().st_mode & 0o777 != (0o700 if each.is_dir() else 0o600) or each.lstat().st_uid != host.ids[0]
    ]
    assert wrong == []


def test_a_row_s_text_is_in_no_output_no_record_and_no_manifest(host: Host) -> None:
    row = "the-password-of-somebody"
    statement = (
        f"INSERT INTO sessions (id, app_name, user_id, metadata) VALUES ('{row}', '{row}', '{row}', '\"{row}\"');"
        "INSERT INTO memory_entries (namespace, key, value, memory_type)"
        f" VALUES ('{row}', '{row}', '\"{row}\"', 'semantic');"
        f"INSERT INTO state (task_id, key, value, created_at, updated_at) VALUES ('{row}', '{row}', '{row}', 1, 1)"
    )
    uid, gid = host.ids
    program = "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.executescript(sys.argv[2])"
    subprocess.run(
        ["/usr/bin/python3", "-c", program, host.conf.database, statement],
        check=True,
        user=uid,
        group=gid,
        extra_groups=[],
        cwd="/",
    )
    for command in (
        "backup",
        "backups",
        "verify all",
        "drill",
        "analyze",
        "vacuum",
        "integrity-check",
        "validate",
        "status",
        "restore latest --dry-run",
        "alert backup",
    ):
        for flag in ("", " --json"):
            code, said = host.run(command + flag)
            assert (code in (0, 1), row in said) == (True, False), said
    texts = [*host.conf.state_directory.rglob("*.json"), *host.conf.backup_directory.glob("*.json")]
    assert len(texts) > 8
    assert [each for each in texts if row in each.read_text()] == []
