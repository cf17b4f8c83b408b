"""What a deploy costs by the number of hosts: wall time and the controller's processor time, per host."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.load import ROOT

TESTHOST = (sys.executable, ROOT / "molecule/resources/testhost.py")
BASE = 10
"""Hosts of the fleet that the other one is compared with."""
LIMIT = 1.1
"""Most that a host of the large fleet may cost, as a share of what one of the small fleet does (issue 7)."""
WATCHES = Path("/proc/sys/fs/inotify/max_user_instances")
WATCHES_PER_HOST = 10
"""A systemd with its journal and bus has some 7 inotify instances, and all hosts share the machine's 128."""
AT_A_TIME = 4
"""Hosts that are booted at a time, on 2 processors."""
VARIABLES = {
    "abathur_db_validation_sessions": [1],
    "abathur_db_validation_seconds": 1,
    "abathur_db_validation_p99_ms": 60_000,
}
"""All hosts are on one machine: what one's validation measures is the load of the others."""


@contextmanager
def booted(names: list[str]) -> Iterator[None]:
    """Boot hosts and throw them away in the end."""
    before = WATCHES.read_text()
    WATCHES.write_text(str(max(int(before), WATCHES_PER_HOST * len(names))))
    try:
        parts = [names[part::AT_A_TIME] for part in range(AT_A_TIME)]
        booting = [subprocess.Popen([*TESTHOST, "create", *part], stdout=subprocess.DEVNULL) for part in parts if part]
        if any([each.wait() for each in booting]):  # noqa: C419 - waits for all of them
            sys.exit("bench: not all hosts came up, see above")
        yield
    finally:
        subprocess.run([*TESTHOST, "destroy", *names], check=True, stdout=subprocess.DEVNULL)
        WATCHES.write_text(before)


def deploy(inventory: Path) -> dict[str, float]:
    """Deploy to all hosts of an inventory; return seconds per host, on the wall and of the controller's processors.

    The controller's are those of Ansible and all that it waited for; the hosts are not among them.
    """
    hosts = len(json.loads(inventory.read_text())["abathur"]["hosts"])
    before, begun = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command: list[str | Path] = [ROOT / ".venv/bin/ansible-playbook", ROOT / "deploy.yml", "-i", inventory]
    done = subprocess.run(
        [*command, "-e", json.dumps(VARIABLES)], cwd=ROOT, env=os.environ, capture_output=True, text=True, check=False
    )
    wall, after = time.monotonic() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode != 0:
        sys.exit(f"bench: the deploy to {hosts} hosts failed:\n{done.stdout[-5000:]}{done.stderr}")
    processors = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": wall / hosts, "the controller's processors": processors / hosts}


def _measured(names: list[str], home: Path, rounds: int, say: Callable[[str], None]) -> dict[str, dict[str, float]]:
    """Return seconds per host of a first deploy, and the medians of those that change nothing."""
    inventory = home / f"{len(names)}-hosts.json"
    inventory.write_bytes(subprocess.check_output([*TESTHOST, "inventory", *names]))
    say(f"the first deploy to {len(names)} hosts")
    first = deploy(inventory)
    say(f"deploys to {len(names)} hosts that change nothing")
    again = [deploy(inventory) for _ in range(rounds)]
    return {
        "the first deploy": first,
        "changing nothing": {kind: statistics.median(each[kind] for each in again) for kind in first},
    }


def measure(hosts: int, home: Path, rounds: int, say: Callable[[str], None]) -> list[Figure]:
    """Measure a fleet of so many hosts beside one of BASE, both at the same time on the machine."""
    small = [f"bench-small-{number}" for number in range(BASE)]
    large = [f"bench-large-{number}" for number in range(hosts)]
    say(f"booting {BASE} + {hosts} hosts")
    with booted(small + large):
        base = _measured(small, home, rounds, say)
        found = _measured(large, home, rounds, say)
    return [
        Figure(name, f"{kind}, per host", "s", value, {f"{BASE} hosts": base[name][kind]}, f"{BASE} hosts", LIMIT)
        for name, kinds in found.items()
        for kind, value in kinds.items()
    ]
