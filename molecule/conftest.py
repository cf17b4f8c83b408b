"""Shared by the scenarios' tests: a host's tool, programs and journal, and playbooks run as an operator runs them."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import testinfra

ROOT = Path(__file__).resolve().parents[1]
# Of this run of the scenario alone: several run at a time, in `make test-all` the same one on both Debians.
SUMMARY = ROOT / "reports" / f"{Path(os.environ.get('MOLECULE_EPHEMERAL_DIRECTORY', 'fleet')).name}.json"
DATABASE = "/var/lib/abathur/abathur.db"
SECRET_FILE = "/etc/abathur-db.secrets/replica"
"""The secret of the store, on a host that replicates."""
Tool = Callable[..., dict[str, Any]]
Query = Callable[[str], list[list[Any]]]
Playbook = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def tool(host: Any) -> Tool:
    """Run a command of abathur-db on the host; return its JSON answer with the exit code."""

    def run(*arguments: str) -> dict[str, Any]:
        done = host.run(f"abathur-db {' '.join(arguments)} --json")
        assert done.stdout, done.stderr
        return {**json.loads(done.stdout), "exit_code": done.rc}

    return run


@pytest.fixture
def query(host: Any) -> Query:
    """Ask the host's database as its owner; return the rows."""
    return lambda sql: ask(host, sql)


@pytest.fixture
def playbook() -> Playbook:
    """Run a playbook from the root of the repository, or of another checkout, against this scenario's hosts."""

    def run(
        name: str,
        *arguments: str,
        inventory: str | None = None,
        root: Path = ROOT,
        program: Path = Path("ansible-playbook"),
    ) -> subprocess.CompletedProcess[str]:
        settings = {"ANSIBLE_CONFIG": str(root / "ansible.cfg"), "ANSIBLE_NOCOLOR": "1"}
        environment = {**os.environ, **settings, "ABATHUR_FLEET_FILE": str(SUMMARY)}
        environment.pop("ANSIBLE_FORCE_COLOR", None)
        path = inventory or os.environ["MOLECULE_INVENTORY_FILE"]
        return subprocess.run(
            [program, name, "-i", path, *arguments],
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
    """Wait until something is so, and return it; false when it never is, which the test has to assert."""
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def one_liner(program: str) -> str:
    """Return the shell command that runs a Python program, whatever quotes are in it."""
    encoded = base64.b64encode(program.encode()).decode()
    return f"python3 -c \"exec(__import__('base64').b64decode('{encoded}'))\""


def python(host: Any, program: str, user: str = "abathur") -> str:
    """Run a Python program on the host, as the application's user unless another is named; return what it printed."""
    output: str = host.check_output(f"runuser -u {user} -- {one_liner(program)}")
    return output


def ask(host: Any, sql: str, path: str = DATABASE) -> list[list[Any]]:
    """Run a statement on a database of the host's, as its owner, and commit; return the rows."""
    program = (
        "import json, sqlite3\n"
        f"connection = sqlite3.connect({path!r}, timeout=30, isolation_level=None)\n"
        f"print(json.dumps(connection.execute({sql!r}).fetchall()))"
    )
    found: list[list[Any]] = json.loads(python(host, program, f"$(stat -c %U {path})"))
    return found


def sessions(host: Any, path: str = DATABASE) -> set[str]:
    """Return the sessions of a database of the host's."""
    return {row[0] for row in ask(host, "SELECT id FROM sessions", path)}


@contextmanager
def running(host: Any, what: str, unit: str = "holder", user: str = "abathur") -> Iterator[str]:
    """Run a command in a unit of its own meanwhile; lend its process id."""
    host.check_output(f"systemd-run --quiet --unit {unit} --uid {user} {what}")
    try:
        yield host.check_output(f"systemctl show -P MainPID {unit}")
    finally:
        host.run(f"systemctl stop {unit}; systemctl reset-failed {unit}")


@contextmanager
def locked(host: Any) -> Iterator[None]:
    """Hold the lock of the jobs meanwhile."""
    with running(host, "flock /var/lib/abathur-db/lock sleep 60", user="root"):
        assert wait(lambda: host.run("flock -n /var/lib/abathur-db/lock true").rc != 0)
        yield


@contextmanager
def setting(host: Any, key: str, value: str) -> Iterator[None]:
    """Change one setting of the host meanwhile."""
    host.check_output("cp -p /etc/abathur-db.toml /root/kept.toml")
    host.check_output(f"sed -i 's|^{key} = .*|{key} = {value}|' /etc/abathur-db.toml")
    try:
        yield
    finally:
        host.check_output("mv /root/kept.toml /etc/abathur-db.toml")


def start(host: Any, job: str) -> Any:
    """Start a job's unit and wait for its end."""
    return host.run(f"systemctl start abathur-db@{job}.service")


def now(host: Any) -> str:
    """Return the host's time as journalctl --since takes it."""
    output: str = host.check_output("date +%s.%N")
    return output


def alert_of(host: Any, job: str, since: str) -> str:
    """Return what the alert of a job said since then; it runs after the job, so it is waited for."""
    journal = f"journalctl --no-pager -o cat -p err -u abathur-db-alert@{job}.service --since @{since}"
    said: str = wait(lambda: host.check_output(journal))
    return said


def proof(host: Any) -> dict[str, Any]:
    """Run the job replication now; return its record."""
    host.run("systemctl start abathur-db@replication.service")
    found: dict[str, Any] = json.loads(host.check_output("cat /var/lib/abathur-db/last/replication.json"))
    return found


def ledger(host: Any) -> list[tuple[float, str]]:
    """Return what resources/writers.py was told is committed: when, and which session."""
    lines = host.run("cat /var/lib/ledger/acknowledged").stdout.splitlines()
    return [(float(each.split()[0]), each.split()[1]) for each in lines if len(each.split()) == 3]


def acknowledged(host: Any) -> set[str]:
    """Return the sessions that the application was told are committed."""
    return {identity for _, identity in ledger(host)}


def lineage(host: Any) -> int:
    """Return the number of the lineage that the host replicates to."""
    return int(proof(host)["data"]["lineage"])


def replication_alerts(host: Any) -> str:
    """Return what the last alerts of the job replication said."""
    found: str = host.check_output("journalctl -u abathur-db-alert@replication -o cat --no-pager -n 50")
    return found


def arrived(host: Any) -> set[str]:
    """Stop the application, wait for what it wrote, and return the rows that a restore from the replica alone gives."""
    host.check_output("systemctl stop abathur.service")
    assert wait(lambda: proof(host)["ok"]), proof(host)["summary"]
    about = json.loads(host.check_output("cat /etc/abathur-db-replication.yml"))
    place = f'"{about["url"].replace("?", f"/{lineage(host):04}?")}"'
    if about["url"].startswith("sftp:"):
        one = {"url": f"{about['url']}/{lineage(host):04}", "key-path": SECRET_FILE, "host-key": about["host_key"]}
        encoded = base64.b64encode(json.dumps({"dbs": [{"path": "/abathur.db", "replica": one}]}).encode()).decode()
        host.check_output(f"echo {encoded} | base64 -d > /root/restore.yml")
        place = "-config /root/restore.yml /abathur.db"
    host.check_output(
        f"sh -c 'rm -f /root/restored.db; AWS_SHARED_CREDENTIALS_FILE={SECRET_FILE} {about['litestream']} restore"
        f" -integrity-check full -o /root/restored.db {place}'"
    )
    return sessions(host, "/root/restored.db")


@pytest.fixture
def at_work() -> Iterator[None]:
    """Have an application at work on every host, beside the store, that meets no error."""
    for host in hosts():
        host.check_output("install -d -o abathur /var/lib/ledger && systemctl start abathur.service store.service")
    yield
    for host in hosts():
        host.run("systemctl stop abathur.service")
        assert not host.file("/var/lib/ledger/errors").exists, host.file("/var/lib/ledger/errors").content_string


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: Any, call: Any) -> Iterator[None]:  # noqa: ARG001 - the hook's signature
    """Show the bundle's journal of the host when a test fails."""
    outcome: Any = yield
    report = outcome.get_result()
    if report.when == "call" and report.failed and "host" in item.funcargs:
        journal = item.funcargs["host"].run("journalctl --no-pager -n 60 -u 'abathur*'").stdout
        report.sections.append(("journal of the host", journal))
