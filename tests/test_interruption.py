"""Ctrl-C at any moment of any command: one sentence that is true, exit code 130, and the next run ends well."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import termios
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
from abathur_db import cli as cli_module
from abathur_db import database, host, interruption, progress, resources, schema, watch
from abathur_db.config import Config
from abathur_db.result import Exit, Result
from conftest import Cli
from databases import application, contents, host_directory, rows, run, toml

pytestmark = pytest.mark.engine

COMMANDS = {
    "init": ["init"],
    "init anew": ["init"],
    "seed": ["seed"],
    "snapshot": ["snapshot"],
    "backup": ["backup"],
    "verify": ["verify", "all"],
    "prune": ["prune"],
    "drill": ["drill"],
    "restore": ["restore", "latest"],
    "restore fresh": ["restore", "fresh"],
    "analyze": ["analyze"],
    "vacuum": ["vacuum"],
    "vacuum --convert": ["vacuum", "--convert"],
    "checkpoint": ["checkpoint"],
    "integrity-check": ["integrity-check", "--accept"],
    "retain": ["retain"],
    "metrics": ["metrics"],
    "validate": ["validate"],
    "status": ["status"],
    "doctor": ["doctor"],
    "backups": ["backups"],
    "report": ["report", "--dry-run"],
    "preflight": ["preflight"],
}
POINTS = int(os.environ.get("INTERRUPTIONS", "4"))
"""Moments of each command at which it is interrupted."""


GROWN = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA wal_autocheckpoint = 0")
connection.executescript("CREATE TABLE big (x); INSERT INTO big SELECT zeroblob(2000000)")
os._exit(0)
"""
"""Leaves a log of 2 MB, as a process that was killed does."""


@pytest.fixture
def busy(conf: Config) -> Config:
    """Return the configuration of a host on which each command has something to do."""
    few = replace(conf, backup_keep_daily=0, backup_keep_weekly=0, backup_keep_monthly=0, backup_keep_minimum=1)
    return replace(few, vacuum_minimum_percent=0, wal_limit_mb=1)


def prepared(cli: Cli, conf: Config, name: str) -> dict[str, str]:
    """Bring the host to where a command begins; return the variable that names its configuration."""
    variables = {"ABATHUR_DB_CONFIG": toml(conf)}
    if name.startswith("init"):
        if name == "init":
            application(conf.database)
        return variables
    if name == "vacuum --convert":
        application(conf.database)
    several = {"ABATHUR_DB_CONFIG": toml(conf, backup_keep_minimum=9)}
    assert cli("init", **several)[0] == 0
    rows(conf.database, 200)
    run(
        conf.database,
        "INSERT INTO memory_entries (namespace, key, value, memory_type, updated_at, created_at)"
        " VALUES ('a', 'old', '1', 'episodic', '2001-01-01', '2001-01-01')",
        "DELETE FROM memory_entries WHERE id % 2 = 0",
    )
    for command in ["seed", "backup", "backup"] if name != "seed" else ["backup", "backup"]:
        assert cli(command, **several)[0] == 0
    if name == "checkpoint":
        subprocess.run([sys.executable, "-c", GROWN, conf.database], check=True)
    return variables


CHANGING = {"rename", "replace", "link", "unlink", "execute", "executescript"}
"""Calls of the system and of SQLite after which something may be changed for good."""
WORDS = {
    "prune": "was deleted",
    "vacuum": "pages were given back",
    "retain": "old rows were retained",
    "backup": "was kept",
    "restore": "took the place",
    "init": "schema version 1",
    "init anew": "was created",
    "seed": "seeds were written",
    "integrity-check": "were accepted",
    "metrics": "was recorded",
}
"""What some command says of what it has done by then, at one of the moments."""


@contextmanager
def pressed(at: int) -> Iterator[list[int]]:
    """Press Ctrl-C at the n-th call of a function of the tool, 0 for never.

    Yields a list that has, at the end, the calls that come right after a change, and last the number of all.
    """
    calls, begun, changed = [0], False, False

    def count(frame: FrameType, event: str, about: Any) -> None:
        nonlocal begun, changed
        # Before, __main__.py takes it; after, there is only the answer.
        if event == "call" and frame.f_code.co_name in ("_interruptible", "finish"):
            begun = frame.f_code.co_name == "_interruptible"
        changed = changed or (event == "c_return" and getattr(about, "__name__", "") in CHANGING)
        source = frame.f_code.co_filename
        if begun and event == "call" and "abathur_db" in source:
            if changed:
                calls.insert(-1, calls[-1] + 1)
                changed = False
            calls[-1] += 1
            if calls[-1] == at:
                signal.raise_signal(signal.SIGINT)

    # How many processes there are is none of the command's doing, and each would be a call.
    looked, host.descriptors = host.descriptors, lambda: iter(())
    sys.setprofile(count)
    try:
        yield calls
    except KeyboardInterrupt:
        # It would end pytest.
        raise AssertionError(f"Ctrl-C at call {at} went past the command line") from None
    finally:
        sys.setprofile(None)
        host.descriptors = looked


def spread(found: Sequence[int]) -> list[int]:
    """Return POINTS of the moments in a list, from the first to the last."""
    return [found[(len(found) - 1) * each // (POINTS - 1)] for each in range(POINTS)] if found else []


def state(conf: Config) -> dict[str, Any]:
    """Return what a person would miss: rows, backups, their checks, what is accepted, the statistics."""
    kept = sorted(each.name for each in conf.backup_directory.glob("abathur_*.json"))
    files = ("checks.json", "adoption.json", "accepted.json")
    known = {
        name: (conf.state_directory / name).read_bytes() for name in files if (conf.state_directory / name).exists()
    }
    there = conf.database.exists()
    return {"rows": contents(conf.database) if there else {}, "backups": kept, "known": known}


@pytest.mark.parametrize("name", COMMANDS)
def test_an_interrupted_command_says_truly_what_it_changed_and_runs_again(
    busy: Config, cli: Cli, tmp_path: Path, name: str
) -> None:
    variables = prepared(cli, busy, name)
    aside = tmp_path.with_name(f"{tmp_path.name}-aside")
    shutil.copytree(tmp_path, aside, symlinks=True)

    def again() -> dict[str, Any]:
        shutil.rmtree(tmp_path)
        shutil.copytree(aside, tmp_path, symlinks=True)
        return state(busy)

    # The first run of a command fills caches, and calls more functions than the others.
    whole = cli(*COMMANDS[name], **variables)
    again()
    with pressed(0) as calls:
        assert cli(*COMMANDS[name], **variables)[0] == whole[0]
    told: list[str] = []
    points = {*spread([each for each in calls[:-1] if each > 2]), *spread(range(2, calls[-1]))}
    for point in sorted(points):
        before = again()
        with pressed(point):
            code, out, errors = cli(*COMMANDS[name], **variables)
        if code != Exit.INTERRUPTED:
            # It came after the work: nothing says less than an uninterrupted run.
            assert code == whole[0], errors
            continue
        assert "Traceback" not in errors + out
        said = re.findall(r"^\w[\w-]*: interrupted; (.*)$", errors, re.MULTILINE)
        assert len(said) == 1, errors
        told += said
        if said[0] == "nothing was changed":
            assert state(busy) == before
        assert not list(busy.scratch_directory.glob("*"))
        assert cli(*COMMANDS[name], **variables)[0] == whole[0]
    assert len(told) > len(points) // 2
    assert WORDS.get(name, "") in " ".join(told)
    shutil.rmtree(aside)


def test_the_answer_as_json_says_what_was_changed(busy: Config, cli: Cli) -> None:
    variables = prepared(cli, busy, "retain")
    with pressed(0) as calls:
        assert cli("retain", "--dry-run", **variables)[0] == 0
    with pressed(calls[-1] // 2):
        code, out, _ = cli("retain", "--json", **variables)
    answer = json.loads(out)
    assert (code, answer["ok"], answer["changed"], answer["data"]) == (130, False, False, {"done": []})


def test_what_was_broken_off_leaves_no_record_of_a_failed_job(busy: Config, cli: Cli) -> None:
    variables = prepared(cli, busy, "backup")
    record = busy.state_directory / "last" / "backup.json"
    before = record.read_bytes()
    with pressed(60):
        assert cli("backup", **variables)[0] == Exit.INTERRUPTED
    assert record.read_bytes() == before


def test_ctrl_c_in_a_change_waits_for_its_end() -> None:
    order = []

    def work(sentence: str) -> None:
        with interruption.change(sentence):
            signal.raise_signal(signal.SIGINT)
            order.append(sentence)

    with interruption.listening():
        for sentence in ("the work was done", "no other one is begun"):
            with pytest.raises(KeyboardInterrupt):
                work(sentence)
        assert interruption.done() == order == ["the work was done"]


def test_a_second_ctrl_c_later_ends_what_cleans_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with interruption.listening():
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        # A terminal sends it to the whole group, and a parent passes it on: twice at once is once.
        signal.raise_signal(signal.SIGINT)
        monkeypatch.setattr(interruption, "SAME_SECONDS", 0.0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def at_a_terminal(command: list[str], wait_for: bytes, environment: dict[str, str]) -> tuple[int, str]:
    """Run a command at a terminal of its own and press Ctrl-C once it says something; return exit code and output."""
    pid, terminal = pty.fork()
    if pid == 0:
        # A new terminal has no columns, and a meter shows nothing on it.
        termios.tcsetwinsize(0, (25, 80))
        os.execvpe(command[0], command, environment)
    said = b""
    sent = False
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        ready, _, _ = select.select([terminal], [], [], 1)
        try:
            said += os.read(terminal, 65536) if ready else b""
        except OSError:
            break
        if not sent and wait_for in said:
            os.write(terminal, b"\x03")
            sent = True
    os.close(terminal)
    assert sent, said
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), said.decode(errors="replace")


@pytest.mark.skipif(os.geteuid() != 0, reason="another user is started")
@pytest.mark.parametrize(
    ("command", "word"), [("backup", b"copy"), ("backup", b"compress"), ("integrity-check", b"copy")]
)
def test_ctrl_c_at_a_terminal_ends_the_tool_its_programs_and_its_other_user(
    conf: Config, command: str, word: bytes
) -> None:
    with host_directory("interrupted") as home:
        for each in ("data", "state", "backups"):
            (home / each).mkdir()
            shutil.chown(home / each, "nobody", "nogroup")
        owned = replace(
            conf,
            owner="nobody",
            database=home / "data/abathur.db",
            state_directory=home / "state",
            backup_directory=home / "backups",
            install_directory=home / "installed",
        )
        environment = {"PATH": os.environ["PATH"], "ABATHUR_DB_CONFIG": toml(owned), "TERM": "xterm", "LANG": "C.UTF-8"}
        tool = str(home / "abathur-db")
        subprocess.run([tool, "init"], env=environment, check=True, capture_output=True)
        rows(owned.database, 150_000)
        shutil.chown(owned.database, "nobody", "nogroup")
        for file in owned.database.parent.iterdir():
            shutil.chown(file, "nobody", "nogroup")
        code, said = at_a_terminal([tool, command], word, environment)
        assert (code, "Traceback" in said) == (130, False), said
        assert f"{command}: interrupted; nothing was changed" in said
        assert not list((home / "backups").glob("*.json"))
        assert not [each for each in (home / "backups").rglob("*") if each.suffix in (".db", ".partial")], said


def test_replication_at_a_terminal_ends_as_when_it_is_stopped(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    application(conf.database, "PRAGMA journal_mode = WAL")
    monkeypatch.setattr(watch, "_begun", lambda *_: object())
    monkeypatch.setattr(watch, "_goes_astray", lambda child, *_: child.wait() and "")
    program = [sys.executable, "-c", "import signal, time; print(1, flush=True); signal.pause()"]
    started: list[Any] = []
    original = watch._started

    def start(arguments: list[str], *rest: int) -> Any:
        started.append(original(arguments, *rest))
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        return started[-1]

    monkeypatch.setattr(watch, "_started", start)
    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with interruption.listening():
            watch.run(conf, 1, program)
            assert interruption.asked()
    finally:
        signal.signal(signal.SIGALRM, before)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
    assert started[0].returncode == -signal.SIGTERM


def press() -> None:
    """Press Ctrl-C, and see it."""
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_long_statement_of_sqlite_ends_at_once(conf: Config) -> None:
    application(conf.database)
    endless = "WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
    with interruption.listening():
        press()
        with pytest.raises(KeyboardInterrupt), database.opened(conf.database, 0) as connection:
            connection.execute(endless).fetchone()


def test_a_migration_that_ctrl_c_met_is_rolled_back_and_nothing_is_recorded(conf: Config) -> None:
    migration = resources.migrations()[0]
    with interruption.listening():
        press()
        with database.in_memory() as connection:
            with pytest.raises(KeyboardInterrupt):
                schema._apply(connection, migration)
            assert not connection.in_transaction
            assert connection.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)
        cli_module._record(conf, Result("analyze", "said of a swallowed Ctrl-C"), 0.0)
    assert not conf.state_directory.exists()


@pytest.mark.skipif(os.geteuid() != 0, reason="another user does the work")
def test_what_another_user_s_process_has_changed_and_that_it_was_interrupted_is_known() -> None:
    def changes() -> dict[str, Any]:
        interruption.did("changed by a child")
        return {}

    def interrupted() -> dict[str, Any]:
        raise KeyboardInterrupt

    def sleeps() -> dict[str, Any]:
        time.sleep(60)
        return {}

    before = signal.signal(signal.SIGALRM, lambda *_: signal.raise_signal(signal.SIGINT))
    try:
        with interruption.listening():
            host.as_owner("nobody", changes)
            assert interruption.done() == ["changed by a child"]
            with pytest.raises(KeyboardInterrupt):
                host.as_owner("nobody", interrupted)
            # Pressed here alone, as by kill: it is passed on, and waited for.
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            begun = time.monotonic()
            with pytest.raises(KeyboardInterrupt):
                host.as_owner("nobody", sleeps)
            assert time.monotonic() - begun < 50
            interruption.begin_child()
            assert (interruption.done(), interruption.asked()) == ([], False)
    finally:
        signal.signal(signal.SIGALRM, before)


def test_nobody_is_asked_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", StringIO("no\n"))
    assert progress.agreed("This stops everything.")
