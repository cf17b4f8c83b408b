"""SIGKILL of Ansible at any moment of a deploy that migrates and of its rollback, with an application at work."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from subprocess import TimeoutExpired

import pytest
import testhost
from databases import until

from faults import hosts, moments
from faults.hosts import Host
from faults.world import ROOT, end_group, next_release

NAME = "faults-debian"
ROUNDS = max(1, moments.number("KILLS", 20) // 20)
"""Two kills each, of a deploy and of a rollback: a tenth of all."""
VERSION = {"bookworm": "12", "trixie": "13"}
SECONDS = {"deploy.yml": 20, "rollback.yml": 12}
"""What each takes on 2 quiet cores; on a busy machine the kill comes earlier in its course."""
LOSE = ("-e", '{"abathur_db_rollback_lose_rows": true}')


@pytest.fixture(scope="module", params=["bookworm", "trixie"] if ROUNDS > 1 else ["bookworm"])
def host(request: pytest.FixtureRequest) -> Iterator[Host]:
    """Give a host with the release of now and the application at work."""
    name = NAME + VERSION[request.param]
    testhost.create(name, request.param)
    try:
        made = Host(name)
        with hosts.inventory(name) as path:
            hosts.ended_well(hosts.playbook(path, "deploy.yml"))
        made.install_application()
        made.good("systemctl start abathur.service")
        yield made
    finally:
        testhost.destroy(name)


@pytest.fixture(scope="module")
def later(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkout of a next release, which migrates."""
    return next_release(tmp_path_factory.mktemp("release") / "next")


def is_whole(host: Host) -> None:
    """Check that no acknowledged row is gone, that the application writes, and that every backup is proven."""
    assert host.good("systemctl is-active abathur.service || true") == "active"
    before = host.acknowledged()
    until(lambda: host.acknowledged() > before, "the application writes")
    host.good("systemctl stop abathur.service")
    assert host.acknowledged() - host.sessions() == set()
    assert host.run(f"test -s {hosts.LEDGER}/errors && cat {hosts.LEDGER}/errors").stdout == ""
    status = host.tool("status")
    assert status["ok"], status["summary"]
    for each in host.tool("backups")["data"]["backups"]:
        if each["counts"]:
            assert host.tool("verify", each["id"])["ok"]
    host.good("flock --nonblock /var/lib/abathur-db/lock true")
    assert host.good("find /var/lib/abathur /var/backups/abathur /opt/abathur-db /etc/systemd -name '*partial*'") == ""
    host.good("systemctl start abathur.service")


def changed(path: Path, before: int) -> bool:
    """Tell whether a file was written since it had the modification time `before`."""
    return path.stat().st_mtime_ns > before


@pytest.mark.parametrize("round_", range(ROUNDS))
def test_a_killed_deploy_and_a_killed_rollback_end_well_when_run_again(host: Host, later: Path, round_: int) -> None:
    ways = {"deploy.yml": (later, (), "2"), "rollback.yml": (ROOT, LOSE, "1")}
    record = testhost.HOSTS / host.name / "root/var/lib/abathur-db/last/init.json"
    with hosts.inventory(host.name) as path:
        for name, (root, arguments, version) in ways.items():
            begun, before = time.monotonic(), record.stat().st_mtime_ns
            process = hosts.playbook(path, name, *arguments, root=root)
            if (name, round_) == ("deploy.yml", 0):
                # The moment when most is at stake: migrated, and the application stands still.
                until(partial(changed, record, before), "the deploy migrates")
            else:
                draw = moments.chance(host.name, name, round_)
                with suppress(TimeoutExpired):
                    process.wait(draw.uniform(1, SECONDS[name]))
            struck = process.poll() is None
            end_group(process)
            moment = time.monotonic() - begun
            print(f"SEED={moments.SEED}: {name} {'killed' if struck else 'ended'} after {moment:.1f} s")
            hosts.ended_well(hosts.playbook(path, name, *arguments, root=root))
            assert host.ask("PRAGMA user_version") == version
            is_whole(host)
