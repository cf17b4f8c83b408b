"""A database in a directory of its own, the tool as a program on it, and writers at work with their ledger."""

from __future__ import annotations

import compileall
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import databases
from abathur_db import config, packing, resources
from abathur_db.config import Config

ROOT = databases.ROOT
WRITERS = ROOT / "molecule/resources/writers.py"

NEXT_MIGRATION = """-- What a next release needs: takes a while, and changes every kind of object.
ALTER TABLE sessions ADD COLUMN mood TEXT;
UPDATE memory_entries SET updated_by = 'migrated';
CREATE TABLE moods (id INTEGER PRIMARY KEY, name TEXT NOT NULL);
CREATE INDEX idx_sessions_mood ON sessions (mood);
"""


class Answer(NamedTuple):
    """What a run of the tool gave: exit code, its JSON object (empty without one), standard error."""

    code: int
    result: dict[str, Any]
    errors: str


def next_release(target: Path) -> Path:
    """Copy the bundle to `target` with one more migration, as a next release would have; return `target`."""
    ignore = shutil.ignore_patterns("__pycache__")
    for part in ("ansible.cfg", "deploy.yml", "rollback.yml", "requirements.txt"):
        target.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / part, target / part)
    for part in ("playbooks", "roles", "scripts", "sql"):
        shutil.copytree(ROOT / part, target / part, ignore=ignore)
    (target / "sql/migrations/0002_next.sql").write_text(NEXT_MIGRATION)
    return target


@cache
def _compile(checkout: Path) -> None:
    """Compile the tool once: else each run would, for none may write beside the files that a test watches."""
    compileall.compile_dir(checkout / "scripts/abathur_db", quiet=2)


class World:
    """A directory with database, backups and records; `checkout` is the release that runs on it."""

    def __init__(self, root: Path, checkout: Path = ROOT, **changes: Any) -> None:
        """Take the directory and what differs from the development profile."""
        self.root = root
        self.checkout = checkout
        self.changes = changes
        root.mkdir(parents=True, exist_ok=True)
        profile = config.development(resources.development_profile(), root / "abathur.db")
        short = {"minimum_free_mb": 1, "lock_wait_seconds": 60, "vacuum_pause_ms": 5, "vacuum_slice_pages": 100}
        self.conf: Config = replace(profile, **{**short, **changes})

    def copied(self, root: Path) -> World:
        """Return a copy of this world elsewhere; nobody may be at work on it."""
        shutil.copytree(self.root, root, symlinks=True)
        return World(root, self.checkout, **self.changes)

    def command(self, *arguments: str | Path) -> list[str]:
        """Return the command line that runs the tool."""
        return [sys.executable, "-m", "abathur_db", *map(str, arguments), "--json"]

    def start(self, command: list[str]) -> subprocess.Popen[str]:
        """Start a program with the world's configuration, in a process group of its own."""
        _compile(self.checkout)
        environment = {**os.environ, "ABATHUR_DB_CONFIG": databases.toml(self.conf), "PYTHONDONTWRITEBYTECODE": "1"}
        return subprocess.Popen(
            command,
            cwd=self.checkout / "scripts",
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def tool(self, *arguments: str | Path) -> Answer:
        """Run a command of the tool to its end."""
        process = self.start(self.command(*arguments))
        output, errors = process.communicate()
        return Answer(process.returncode, json.loads(output) if output.strip() else {}, errors)

    def good(self, *arguments: str | Path) -> dict[str, Any]:
        """Run a command of the tool that has to succeed; return its answer."""
        answer = self.tool(*arguments)
        assert answer.code == 0, f"{arguments}: {answer}"
        return answer.result

    def stores(self) -> list[Path]:
        """Return the database and all that restores kept aside."""
        kept = sorted(self.root.glob("abathur.db.before-restore_*/abathur.db"))
        return [each for each in (self.conf.database, *kept) if each.exists()]

    def sessions(self) -> set[str]:
        """Return the ids of the sessions in the database and in those kept aside."""
        found: set[str] = set()
        for each in self.stores():
            with closing(sqlite3.connect(each, timeout=30)) as connection:
                found |= {row[0] for row in connection.execute("SELECT id FROM sessions")}
        return found

    def leftovers(self) -> list[str]:
        """Return the files that belong to a run and have to be gone after it."""
        signs = (".partial", ".new", ".restore", ".deleting")
        scratch = self.conf.scratch_directory
        found = [each for each in self.root.rglob("*") if any(sign in each.name for sign in signs)]
        return [str(each.relative_to(self.root)) for each in found if "before-restore" not in each.name] + [
            str(each) for each in (scratch.iterdir() if scratch.is_dir() else ())
        ]


def counted_backups_are_whole(world: World) -> None:
    """Prove everything that counts as a backup from its file alone: it unpacks to a sound database with its rows."""
    for each in world.good("backups")["data"]["backups"]:
        if each["counts"]:
            plain = world.root / "proof"
            assert packing.unpack(world.conf.backup_directory / each["file"], plain, 1 << 40) == each["plain_sha256"]
            with closing(sqlite3.connect(plain)) as connection:
                assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
                sessions = connection.execute("SELECT count(*) FROM sessions").fetchone()[0]
            assert sessions == each["rows"]["sessions"]
            plain.unlink()


def identities(text: str) -> set[str]:
    """Return the ids of the rows that lines of the writers acknowledge; one that was cut off has not arrived."""
    lines = (line.split() for line in text.rpartition("\n")[0].splitlines())
    return {each[1] for each in lines if len(each) == 3}


class Ledger:
    """What the writers were told: ids of acknowledged rows, and their errors."""

    def __init__(self, folder: Path) -> None:
        """Take the directory of the two files."""
        self.rows = folder / "acknowledged"
        self.faults = folder / "errors"

    def acknowledged(self) -> set[str]:
        """Return the ids of all acknowledged rows."""
        return identities(self.rows.read_text()) if self.rows.exists() else set()

    def errors(self) -> list[str]:
        """Return what went wrong, a line each."""
        return self.faults.read_text().splitlines() if self.faults.exists() else []


@contextmanager
def writers(path: Path, folder: Path, count: int = 4, pause: float = 0.02) -> Iterator[Ledger]:
    """Let writers work on a database from their first acknowledged rows on until the end."""
    ledger = Ledger(folder)
    before = len(ledger.acknowledged())
    with ledger.rows.open("a") as rows, ledger.faults.open("a") as faults:
        process = subprocess.Popen(
            [sys.executable, str(WRITERS), str(path), str(count), str(pause)],
            stdin=subprocess.DEVNULL,
            stdout=rows,
            stderr=faults,
            start_new_session=True,
        )
    try:
        databases.until(lambda: len(ledger.acknowledged()) > before + count, "the writers begin")
        yield ledger
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def end_group(process: subprocess.Popen[str]) -> None:
    """Kill a process with its whole group and collect it."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
