"""Power cuts on a whole machine: what it has not flushed is gone; the same command run again ends well, no row is lost.

The writers' rows count when their ids have arrived here, outside of the machine.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import testhost
import testvm
from databases import until

from faults import hosts, moments
from faults.hosts import DATABASE, DEPLOY, Host
from faults.world import Ledger, end_group, next_release

pytestmark = pytest.mark.machine

CUTS = moments.number("CUTS", 1)
DRAWS = 10
"""Cuts that may miss before a test gives up: each next one falls into the time that the last one took."""
ROWS = (
    "INSERT INTO memory_entries (namespace, key, value, memory_type) WITH RECURSIVE n (i) AS"
    " (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 4000)"
    " SELECT 'user:1', 'key' || hex(randomblob(8)), '\"' || hex(randomblob(500)) || '\"', 'semantic' FROM n"
)


@contextmanager
def writers(host: Host, folder: Path) -> Iterator[Ledger]:
    """Let writers work on the machine; what they report through ssh is kept here."""
    ledger = Ledger(folder)
    before = len(ledger.acknowledged())
    unit = "systemd-run --quiet --pipe --wait --collect --unit=writers --uid=abathur"
    command = f"{unit} python3 /opt/writers.py {DATABASE} 3 0.05"
    with ledger.rows.open("a") as rows, ledger.faults.open("a") as faults:
        process = subprocess.Popen(
            hosts.ssh(host.name, command),
            stdin=subprocess.DEVNULL,
            stdout=rows,
            stderr=faults,
            start_new_session=True,
        )
    try:
        until(lambda: len(ledger.acknowledged()) > before + 3, "the writers begin")
        yield ledger
    finally:
        if testhost.alive(host.name):
            host.run("systemctl stop writers.service")
            process.wait()
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def more_rows(host: Host) -> None:
    host.write("/tmp/rows.sql", ROWS)
    program = f"import sqlite3; c = sqlite3.connect('{DATABASE}'); c.executescript(open('/tmp/rows.sql').read())"
    host.good(f'chmod 644 /tmp/rows.sql; runuser -u abathur -- python3 -c "{program}"')


def free_pages(host: Host) -> None:
    more_rows(host)
    sql = "DELETE FROM memory_entries WHERE id % 3 > 0 AND key LIKE 'key%'"
    program = f"import sqlite3; c = sqlite3.connect('{DATABASE}'); c.execute(\\\"{sql}\\\"); c.commit()"
    host.good(f'runuser -u abathur -- python3 -c "{program}"')


def a_backup(host: Host) -> None:
    assert host.tool("backup")["ok"]


KINDS: dict[str, tuple[Callable[[Host], None], str, bool]] = {
    # What it finds, the command, whether writers are at work meanwhile.
    "backup": (more_rows, "abathur-db backup", True),
    "vacuum": (free_pages, "abathur-db vacuum", True),
    "restore": (a_backup, "abathur-db restore latest", False),
    "prune": (a_backup, "abathur-db prune", True),
}
ORDER = ("backup", "restore", "vacuum", "deploy", "backup", "restore", "deploy", "vacuum", "prune", "deploy")


def is_whole(host: Host, ledger: Ledger) -> None:
    """Check that no acknowledged row is gone, that the database is sound, and what counts as a backup proven."""
    assert ledger.acknowledged() - host.sessions() == set()
    assert host.ask("PRAGMA integrity_check") == "ok"
    assert host.tool("integrity-check")["ok"]
    counted = [each for each in host.tool("backups")["data"]["backups"] if each["counts"]]
    for each in counted[:3]:
        assert host.tool("verify", each["id"])["ok"]
    host.good("flock --nonblock /var/lib/abathur-db/lock true")
    assert host.good("find /var/lib/abathur /var/backups/abathur /opt/abathur-db /etc/systemd -name '*partial*'") == ""


def release(folder: Path, number: str) -> Path:
    """Return a checkout of a release of its own; each migrates a database of the release of now."""
    root = next_release(folder / f"release{number}")
    with (root / "scripts/abathur_db/__init__.py").open("a") as stream:
        stream.write(f"# release {number}\n")
    return root


@pytest.mark.parametrize("number", range(CUTS))
def test_after_a_power_cut_the_same_command_ends_well_and_no_acknowledged_row_is_gone(
    machine: Host, tmp_path: Path, number: int
) -> None:
    kind, draw = ORDER[number % len(ORDER)], moments.chance("power", number)
    if kind == "deploy":
        a_deploy_is_cut(machine, tmp_path, number, draw)
        return
    prepare, command, at_work = KINDS[kind]
    prepare(machine)
    with writers(machine, tmp_path) as ledger:
        if at_work:
            strike(machine, command, prepare, draw)
    if not at_work:
        strike(machine, command, prepare, draw)
    testvm.boot(machine.name)
    machine.good(command)
    is_whole(machine, ledger)


def cut(machine: Host, process: subprocess.Popen[str], what: str, moment: float) -> float | None:
    """Cut the machine's power after `moment` seconds of a command; return how long it took where it ended before."""
    begun = time.monotonic()
    try:
        process.wait(moment)
    except subprocess.TimeoutExpired:
        testvm.cut(machine.name)
        end_group(process)
        print(f"SEED={moments.SEED}: {what}: power cut {moment:.1f} s after its start")
        return None
    took = time.monotonic() - begun
    output, _ = process.communicate()
    assert process.returncode == 0, output
    print(f"SEED={moments.SEED}: {what}: ended after {took:.1f} s, before the cut: drawn again")
    return took


def strike(machine: Host, command: str, prepare: Callable[[Host], None], draw: random.Random) -> None:
    """Start a command on the machine, and cut its power while it runs; a cut that misses is drawn again."""
    longest = 8.0
    for _ in range(DRAWS):
        process = subprocess.Popen(
            hosts.ssh(machine.name, command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        took = cut(machine, process, command, draw.uniform(0, longest))
        if took is None:
            return
        longest = took
        prepare(machine)
    pytest.fail(f"{DRAWS} cuts missed {command}")


def a_deploy_is_cut(machine: Host, folder: Path, number: int, draw: random.Random) -> None:
    """Cut the power during a deploy of a next release; the next deploy finishes it. One that ended is drawn again."""
    with writers(machine, folder) as ledger:
        pass
    longest = 100.0
    for again in range(DRAWS):
        root = release(folder, f"{number}-{again}")
        with hosts.inventory(machine.name) as path:
            process = hosts.playbook(path, "deploy.yml", *DEPLOY, root=root)
            took = cut(machine, process, "deploy", draw.uniform(5, longest))
            if took is not None:
                longest = max(took, 6.0)
                continue
            testvm.boot(machine.name)
            hosts.ended_well(hosts.playbook(path, "deploy.yml", *DEPLOY, root=root))
            break
    else:
        pytest.fail(f"{DRAWS} cuts missed the deploy")
    assert machine.ask("PRAGMA user_version") == "2"
    is_whole(machine, ledger)
    status = machine.tool("status")
    assert status["ok"], status["summary"]
