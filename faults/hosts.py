"""Hosts with an application of writers on them, and playbooks run against them as an operator runs them."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import testhost

from faults.world import ROOT, WRITERS, identities

DATABASE = "/var/lib/abathur/abathur.db"
LEDGER = "/var/lib/ledger"
SERVICE = f"""[Unit]
Description=Processes that write to Abathur's database all the time
StartLimitIntervalSec=0
[Service]
User=abathur
ExecStart=/usr/bin/python3 /opt/writers.py {DATABASE} 8 0.1
StandardOutput=append:{LEDGER}/acknowledged
StandardError=append:{LEDGER}/errors
KillMode=mixed
"""
"""Not enabled: what a deploy stops it has to start again, because nothing else does."""

SLOW = {
    # QEMU without KVM is some ten times slower than the machine: what is measured there is not speed.
    "abathur_db_validation_sessions": [2],
    "abathur_db_validation_seconds": 5,
    "abathur_db_validation_p99_ms": 60_000,
    # Or the tests of the timers would wait for as long.
    "abathur_maintenance_jitter": "5s",
}
DEPLOY = ("-e", json.dumps(SLOW))
"""What a deploy to a whole machine is told."""


def ssh(name: str, command: str) -> list[str]:
    """Return the command line that runs a command on a host, which may be slow to answer."""
    known = testhost.state(name)
    assert known is not None
    program, *rest = testhost.ssh_command(known)
    # Of options said twice ssh takes the first.
    return [program, "-o", "ConnectTimeout=90", *rest, command]


class Host:
    """A host of testhost.py or testvm.py, known by its name."""

    def __init__(self, name: str) -> None:
        """Take the name of a host that runs."""
        self.name = name

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """Run a command as root."""
        return subprocess.run(
            ssh(self.name, command), capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )

    def good(self, command: str) -> str:
        """Run a command that has to succeed; return its output."""
        done = self.run(command)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def write(self, path: str, text: str) -> None:
        """Write a file."""
        encoded = base64.b64encode(text.encode()).decode()
        self.good(f"echo {encoded} | base64 -d > {path}")

    def tool(self, *arguments: str) -> dict[str, Any]:
        """Run a command of the tool; return its answer with its exit code."""
        done = self.run(f"abathur-db {' '.join(arguments)} --json")
        assert done.stdout, done.stderr
        return {**json.loads(done.stdout), "exit_code": done.returncode}

    def sessions(self) -> set[str]:
        """Return the ids of the sessions in the database and in those that restores kept aside."""
        program = (
            "import glob, sqlite3\n"
            f"for path in [{DATABASE!r}, *glob.glob('{DATABASE}.before-restore_*/abathur.db')]:\n"
            "    for row in sqlite3.connect(path, timeout=30).execute('SELECT id FROM sessions'):\n"
            "        print(row[0])\n"
        )
        encoded = base64.b64encode(program.encode()).decode()
        return set(self.good(f"echo {encoded} | base64 -d | runuser -u abathur -- python3 -").split())

    def ask(self, sql: str) -> Any:
        """Return the first value of a query of the database."""
        program = f"import sqlite3; print(sqlite3.connect({DATABASE!r}, timeout=30).execute({sql!r}).fetchone()[0])"
        encoded = base64.b64encode(program.encode()).decode()
        return self.good(f"echo {encoded} | base64 -d | runuser -u abathur -- python3 -")

    def acknowledged(self) -> set[str]:
        """Return the ids of the rows that the application was told are committed."""
        return identities(self.run(f"cat {LEDGER}/acknowledged").stdout)

    def install_application(self) -> None:
        """Put the writers on the host, as a unit that is not started yet."""
        self.write("/opt/writers.py", WRITERS.read_text())
        self.write("/etc/systemd/system/abathur.service", SERVICE)
        # Flushed, or after a power cut there is an empty program.
        self.good(f"install -d -o abathur -g abathur {LEDGER} && systemctl daemon-reload && sync")


@contextmanager
def inventory(name: str) -> Iterator[Path]:
    """Lend an inventory file with one host."""
    with tempfile.TemporaryDirectory(prefix="abathur-faults-") as folder:
        path = Path(folder) / "hosts.json"
        path.write_text(json.dumps(testhost.inventory([name])))
        yield path


def playbook(path: Path, name: str, *arguments: str, root: Path = ROOT) -> subprocess.Popen[str]:
    """Start a playbook of a checkout, in a process group of its own."""
    environment = {
        **os.environ,
        "ANSIBLE_CONFIG": str(root / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_TIMEOUT": "90",
    }
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    return subprocess.Popen(
        ["ansible-playbook", name, "-i", str(path), *arguments],
        cwd=root,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended_well(process: subprocess.Popen[str]) -> str:
    """Wait for a playbook that has to succeed; return its output."""
    output, _ = process.communicate()
    assert process.returncode == 0, output
    return output
