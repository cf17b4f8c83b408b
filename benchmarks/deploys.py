"""Our deploy beside pyinfra, a conventional playbook and a bare ping, on a real systemd host."""

from __future__ import annotations

import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import testhost

from benchmarks.figures import Figure
from benchmarks.load import ROOT

HOST = "bench"
PEERS = ROOT / "benchmarks/peers"
BIN = ROOT / ".venv/bin"
FACTS = ("path", "owner", "group", "mode")


class Deploys:
    """A test host and the ways to bring it to our state."""

    def __init__(self, home: Path) -> None:
        """Take a folder for what is generated."""
        self.home = home
        self.inventory = home / "inventory.json"
        self.state = home / "state.json"

    def fresh(self) -> None:
        """Make the host anew."""
        testhost.destroy(HOST)
        testhost.create(HOST, "trixie")
        self.inventory.write_text(json.dumps(testhost.inventory([HOST])))

    def remote(self, command: str) -> str:
        """Run a command on the host and return its output."""
        return self.remote_bytes(command).decode()

    def remote_bytes(self, command: str) -> bytes:
        """Run a command on the host and return its output as it is."""
        host = testhost.state(HOST) or {}
        return subprocess.run([*testhost.ssh_command(host), command], check=True, capture_output=True).stdout

    def ansible(self, playbook: Path, *arguments: str) -> float:
        """Run a playbook; return its seconds."""
        return self._timed(BIN / "ansible-playbook", playbook, "-i", self.inventory, *arguments)

    def pyinfra(self, timers: str) -> float:
        """Let pyinfra bring the host to our state; return its seconds."""
        host = testhost.state(HOST) or {}
        data = {"ssh_port": host["port"], "ssh_user": "root", "ssh_key": host["key"]}
        inventory = self.home / "hosts.py"
        inventory.write_text(f'hosts = [("127.0.0.1", { ({**data, "ssh_strict_host_key_checking": "off"})!r})]\n')
        program = ROOT / ".cache/bench/bin/pyinfra"
        variables = {"BENCH_STATE": str(self.state), "BENCH_TIMERS": timers}
        return self._timed(program, "-y", inventory, PEERS / "pyinfra_deploy.py", **variables)

    def _timed(self, *command: str | Path, **variables: str) -> float:
        begun = time.monotonic()
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, **variables}, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            sys.exit(
                f"bench: {shlex.join(map(str, command))} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return time.monotonic() - begun

    def remember(self) -> None:
        """Fetch what our deploy has placed, so that the peers place the same."""
        files = self.home / "files"
        release = self.remote("readlink /opt/abathur-db/current").strip()
        tool = f"/opt/abathur-db/{release}/abathur-db"
        units = self.remote("ls /etc/systemd/system/abathur-db*").split()
        placed = [
            {"path": tool, "group": "root", "mode": "755"},
            {"path": "/etc/abathur-db.toml", "group": "abathur", "mode": "640"},
            *({"path": each, "group": "root", "mode": "644"} for each in units),
        ]
        for each in placed:
            target = files / each["path"].lstrip("/")
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(self.remote_bytes(f"cat {each['path']}"))
        homes = ["/var/lib/abathur", "/var/lib/abathur-db", "/var/backups/abathur", f"/opt/abathur-db/{release}"]
        said = self.remote(f"stat --format '%n %U %G %a' {' '.join(homes)}")
        state: dict[str, Any] = {
            "files": str(files),
            "placed": placed,
            "directories": [dict(zip(FACTS, line.split(), strict=True)) for line in said.splitlines()],
            "links": [
                {"path": "/opt/abathur-db/current", "src": release},
                {"path": "/usr/local/bin/abathur-db", "src": "/opt/abathur-db/current/abathur-db"},
            ],
            "timers": [Path(each).name for each in units if each.endswith(".timer")],
        }
        self.state.write_text(json.dumps(state))

    def tool_seconds(self) -> float:
        """Return what the tool itself ran on the host in the last deploy."""
        commands = ("init", "seed", "backup", "validate")
        homes = {"backup": "/var/backups/abathur/.records"}
        places = [f"{homes.get(each, '/var/lib/abathur-db')}/last/{each}.json" for each in commands]
        records = [json.loads(self.remote(f"cat {each}")) for each in places]
        return float(sum(each["seconds"] for each in records))


def measure(home: Path, rounds: int, say: Callable[[str], None]) -> list[Figure]:
    """Measure a first deploy and one that changes nothing, ours and the peers'."""
    deploys = Deploys(home)
    ping = home / "ping.yml"
    ping.write_text("- hosts: abathur\n  gather_facts: false\n  tasks:\n    - ansible.builtin.ping:\n")
    first, copied, own = [], [], []
    try:
        for _ in range(rounds):
            say("the first deploy")
            deploys.fresh()
            first.append(deploys.ansible(ROOT / "deploy.yml"))
            own.append(deploys.tool_seconds())
            if not deploys.state.exists():
                deploys.remember()
            say("the same files by pyinfra")
            deploys.fresh()
            copied.append(deploys.pyinfra(timers=""))
        say("a deploy that changes nothing")
        deploys.fresh()
        deploys.ansible(ROOT / "deploy.yml")
        again: dict[str, Callable[[], float]] = {
            "ours": lambda: deploys.ansible(ROOT / "deploy.yml"),
            "pyinfra": lambda: deploys.pyinfra(timers="yes"),
            "plain tasks": lambda: deploys.ansible(PEERS / "plain.yml", "-e", f"@{deploys.state}"),
            "ping": lambda: deploys.ansible(ping),
        }
        # In turn, so that a neighbour's burst meets all of them.
        seconds: dict[str, list[float]] = {name: [] for name in again}
        for _ in range(max(rounds, 3)):
            for name, run in again.items():
                seconds[name].append(run())
        loaded = [float(deploys.remote(START)) for _ in range(5)]
    finally:
        testhost.destroy(HOST)
    nothing = {name: statistics.median(each) for name, each in seconds.items()}
    mine = nothing.pop("ours")
    allowed = 3 * statistics.median(copied) + statistics.median(own)
    return [
        Figure("deploy", "changing nothing", "s", mine, {**nothing}, "pyinfra", 1),
        Figure(
            "deploy",
            "the first",
            "s",
            statistics.median(first),
            {"3 x files by pyinfra + tool": allowed, "files by pyinfra": statistics.median(copied)},
            "3 x files by pyinfra + tool",
            1,
        ),
        Figure("tool", "start on a host", "s", statistics.median(loaded), {}, "", 0.15),
    ]


START = (
    'python3 -c "import subprocess, time; b = time.monotonic();'
    " subprocess.run(['abathur-db', '--version'], stdout=subprocess.DEVNULL); print(time.monotonic() - b)\""
)
