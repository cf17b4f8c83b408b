"""Shared by the scenarios' tests: a host's tool and journal, and the playbooks run as an operator runs them."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import testinfra

ROOT = Path(__file__).resolve().parents[1]
# One of the scenario's own, because several run at a time.
SUMMARY = ROOT / "reports" / f"{os.environ.get('MOLECULE_SCENARIO_NAME', 'fleet')}.json"
Tool = Callable[..., dict[str, Any]]
Query = Callable[[str], list[list[Any]]]
Playbook = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tool(host: Any) -> Tool:
    """Run a command of abathur-db on the host; return its JSON answer with the exit code."""

    def run(*arguments: str) -> dict[str, Any]:
        done = host.run(f"abathur-db {' '.join(arguments)} --json")
        return {**json.loads(done.stdout), "exit_code": done.rc}

    return run


@pytest.fixture
def query(host: Any) -> Query:
    """Ask the host's database as its owner; return the rows."""

    def ask(sql: str) -> list[list[Any]]:
        program = (
            "import json, sqlite3\n"
            f"rows = sqlite3.connect('/var/lib/abathur/abathur.db').execute({sql!r}).fetchall()\n"
            "print(json.dumps(rows))"
        )
        encoded = base64.b64encode(program.encode()).decode()
        answer = host.check_output(f"echo {encoded} | base64 -d | runuser -u abathur -- python3 -")
        found: list[list[Any]] = json.loads(answer)
        return found

    return ask


@pytest.fixture
def playbook() -> Playbook:
    """Run a playbook from the root of the repository, or of another checkout, against this scenario's hosts."""

    def run(
        name: str, *arguments: str, inventory: str | None = None, root: Path = ROOT
    ) -> subprocess.CompletedProcess[str]:
        settings = {"ANSIBLE_CONFIG": str(root / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        environment = {**os.environ, **settings, "ABATHUR_FLEET_FILE": str(SUMMARY)}
        environment.pop("ANSIBLE_FORCE_COLOR", None)
        path = inventory or os.environ["MOLECULE_INVENTORY_FILE"]
        return subprocess.run(
            ["ansible-playbook", name, "-i", path, *arguments],
            cwd=root,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            stdin=subprocess.DEVNULL,
        )

    return run


def hosts() -> list[Any]:
    """Return the hosts of this scenario."""
    path = os.environ["MOLECULE_INVENTORY_FILE"]
    return list(testinfra.get_hosts(["ansible://abathur"], ansible_inventory=path))


def reboot(name: str) -> None:
    """Reboot a host; returns once it is up again."""
    subprocess.run([sys.executable, ROOT / "molecule/resources/testhost.py", "reboot", name], check=True)


def wait(condition: Callable[[], Any], seconds: float = 120) -> Any:
    """Wait until something is so; the test's own assertions tell when it never is."""
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.5)
    return found


def proof(host: Any) -> dict[str, Any]:
    """Run the job replication now; return its record."""
    host.run("systemctl start abathur-db@replication.service")
    found: dict[str, Any] = json.loads(host.check_output("cat /var/lib/abathur-db/last/replication.json"))
    return found


def ledger(host: Any) -> list[tuple[float, str]]:
    """Return what resources/writer.py was told is committed: when, and which session."""
    lines = host.run("cat /var/lib/ledger/acknowledged").stdout.splitlines()
    return [(float(each.split()[0]), each.split()[1]) for each in lines if len(each.split()) == 3]


def sessions(host: Any, path: str = "/var/lib/abathur/abathur.db") -> set[str]:
    """Return the sessions of a database of the host's."""
    program = (
        f"import sqlite3; print(*(row[0] for row in sqlite3.connect('{path}').execute('SELECT id FROM sessions')))"
    )
    user = host.check_output(f"stat -c %U {path}")
    return set(host.check_output(f'runuser -u {user} -- python3 -c "{program}"').split())


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Iterator[None]:  # noqa: ARG001 - the hook's signature
    """Show the bundle's journal of the host when a test fails."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.when == "call" and report.failed and "host" in item.funcargs:
        journal = item.funcargs["host"].run("journalctl --no-pager -n 60 -u 'abathur*'").stdout
        report.sections.append(("journal of the host", journal))
