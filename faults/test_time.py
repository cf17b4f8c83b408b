"""Clocks, calendars and memory limits, on a whole machine whose clock is set as one likes."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import testhost
import testvm

from faults import hosts
from faults.hosts import Host
from faults.world import ROOT, until

pytestmark = pytest.mark.machine

JOBS = ("backup", "analyze", "vacuum", "integrity-check", "drill")
QUIET = 20
"""Seconds without a job at work, after which none is due any more: the jitter of this machine is 5 s."""


def starts(host: Host, job: str) -> int:
    """Return how often a job was started since the machine's start."""
    unit = f"abathur-db@{job}.service"
    return int(host.run(f"journalctl -b --no-pager -o cat -u {unit} | grep -c '^Starting {unit}'").stdout)


def counts(host: Host) -> dict[str, int]:
    return {job: starts(host, job) for job in JOBS}


def settled(host: Host) -> None:
    """Wait until no job has been at work for a while."""
    quiet_since = time.monotonic()
    while time.monotonic() - quiet_since < QUIET:
        if host.run("systemctl is-active --quiet 'abathur-db@*.service'").returncode == 0 or "activating" in host.good(
            "systemctl list-units --no-legend --plain 'abathur-db@*.service'"
        ):
            quiet_since = time.monotonic()
        time.sleep(1)


def counted(host: Host) -> set[str]:
    return {each["id"] for each in host.tool("backups")["data"]["backups"] if each["counts"]}


def timers_have_a_next_run_within(host: Host, job: str, seconds: int) -> None:
    """Check that a timer runs, and when it elapses next."""
    assert host.good(f"systemctl is-active abathur-db@{job}.timer") == "active"
    following = host.good(f"systemctl show -P NextElapseUSecRealtime abathur-db@{job}.timer")
    left = int(host.good(f"echo $(( $(date -d '{following}' +%s) - $(date +%s) ))"))
    assert 0 <= left <= seconds, following


@contextmanager
def drop_in(host: Host, text: str) -> Iterator[None]:
    """Add to the jobs' service for a while."""
    folder = "/etc/systemd/system/abathur-db@.service.d"
    host.good(f"mkdir -p {folder}")
    host.write(f"{folder}/faults.conf", text)
    host.good("systemctl daemon-reload")
    try:
        yield
    finally:
        host.good(f"rm -r {folder} && systemctl daemon-reload")


# From a Monday: nine days hold no 1st and no 15th; six weeks hold all.
@pytest.mark.parametrize(
    ("off", "on", "due"),
    [
        ("2027-01-04T12:00:00", "2027-01-13T12:00:00", {"backup", "analyze", "drill"}),
        ("2027-01-13T12:10:00", "2027-02-24T12:00:00", set(JOBS)),
    ],
    ids=["week", "month"],
)
def test_after_a_time_off_each_due_job_runs_once_and_well(machine: Host, off: str, on: str, due: set[str]) -> None:
    testvm.stop(machine.name)
    testvm.boot(machine.name, clock=off)
    settled(machine)
    before = counted(machine)
    testvm.stop(machine.name)
    testvm.boot(machine.name, clock=on)
    until(lambda: all(starts(machine, job) for job in due), "the due jobs run", 300)
    settled(machine)
    assert counts(machine) == {job: int(job in due) for job in JOBS}
    assert machine.run("systemctl --failed --no-legend --plain 'abathur-db*'").stdout == ""
    assert before <= counted(machine)
    status = machine.tool("status")
    assert status["ok"], status["summary"]


def test_a_clock_far_ahead_and_set_back_deletes_no_backup_and_stops_no_timer(machine: Host) -> None:
    present = int(machine.good("date +%s"))
    before, ran = counted(machine), starts(machine, "backup")
    machine.good(f"date -s @{present + 5 * 365 * 86400}")
    until(lambda: starts(machine, "backup") > ran, "the backup runs in five years", 300)
    settled(machine)
    ahead = counted(machine)
    assert before < ahead
    timers_have_a_next_run_within(machine, "backup", 25 * 3600)
    machine.good(f"date -s @{present - 20 * 86400}")
    settled(machine)
    for job, days in (("backup", 1), ("drill", 7), ("analyze", 7), ("vacuum", 31), ("integrity-check", 31)):
        timers_have_a_next_run_within(machine, job, days * 86400 + 3600)
    assert machine.tool("prune")["ok"]
    assert machine.tool("backup")["ok"]
    assert ahead <= counted(machine)
    machine.good(f"date -s @{present + 3600}")
    settled(machine)
    assert ahead <= counted(machine)


@pytest.mark.parametrize("day", ["2027-03-28", "2027-10-31", "2028-02-29"], ids=["spring", "autumn", "leap day"])
def test_on_a_day_that_is_not_like_others_the_backup_runs_once(machine: Host, day: str) -> None:
    machine.good("timedatectl set-timezone Europe/Berlin")
    # Through the day from its first hour to its last: what was due before is made up for first.
    machine.good(f"date -s '{day} 00:10:00 UTC'")
    settled(machine)
    ran = starts(machine, "backup")
    machine.good(f"date -s '{day} 01:59:50 UTC'")
    until(lambda: starts(machine, "backup") > ran, "the backup runs", 120)
    settled(machine)
    machine.good(f"date -s '{day} 23:00:00 UTC'")
    settled(machine)
    assert starts(machine, "backup") == ran + 1
    timers_have_a_next_run_within(machine, "backup", 4 * 3600)


def test_a_job_over_its_memory_limit_is_ended_with_an_alert_and_nothing_is_lost(machine: Host) -> None:
    before, rows = counted(machine), machine.ask("SELECT count(*) FROM memory_entries")
    with drop_in(machine, "[Service]\nMemoryMax=8M\nMemorySwapMax=0\n"):
        assert machine.run("systemctl start abathur-db@backup.service").returncode != 0
    alert = "journalctl -b --no-pager -o cat -p err -u abathur-db-alert@backup.service"
    until(lambda: "job backup failed: ended with oom-kill" in machine.good(alert), "the alert")
    assert machine.ask("SELECT count(*) FROM memory_entries") == rows
    assert before <= counted(machine)
    with drop_in(machine, "[Service]\nMemoryMax=100M\nMemorySwapMax=0\n"):
        for job in JOBS:
            machine.good(f"systemctl start abathur-db@{job}.service")


STORE, STORE_PORT = "faults-store", 21900
SECRET = "[default]\naws_access_key_id = replica-id\naws_secret_access_key = replica-5ec2e7\n"


@pytest.fixture
def replicated(machine: Host, tmp_path: Path) -> Iterator[Host]:
    """Give the machine a replica in an S3 store with another clock: on a host of its own, through a tunnel of ssh."""
    path = tmp_path / "hosts.json"
    port = STORE_PORT + 3
    url = f"s3://abathur/clock?endpoint=http://127.0.0.1:{port}&region=none"
    replica = {"abathur_replication_url": url, "abathur_replication_credentials": SECRET, **hosts.SLOW}
    testhost.create(STORE, "trixie")
    try:
        found = testhost.inventory([machine.name])
        variables = {"store_port": STORE_PORT, "store_volumes": 20}
        found["store"] = {"hosts": testhost.inventory([STORE])["abathur"]["hosts"], "vars": variables}
        path.write_text(json.dumps(found))
        prepare = str(ROOT / "molecule/failover/prepare.yml")
        hosts.ended_well(hosts.playbook(path, prepare, "--limit", STORE))
        machine.good(f"date -s @{time.time()}")
        with hosts.tunnel(machine.name, port):
            for enabled in (True, False):
                told = json.dumps({**replica, "abathur_replication_enabled": enabled})
                hosts.ended_well(hosts.playbook(path, "deploy.yml", "-e", told))
                if enabled:
                    yield machine
    finally:
        testhost.destroy(STORE)


def proof(host: Host) -> str:
    """Run the job replication; return what it says."""
    host.run("systemctl start abathur-db@replication.service")
    return host.good("journalctl -b --no-pager -o cat -n 1 -t abathur-db -u abathur-db@replication.service")


def test_a_clock_that_the_store_does_not_take_is_said_and_a_right_one_catches_up(replicated: Host) -> None:
    until(lambda: "the last change arrived within" in proof(replicated), "the first copy", 300)
    for hours in (1, -1):
        replicated.good(f"date -s @{time.time() + hours * 3600}")
        replicated.good("systemctl restart abathur-db-replicate.service && abathur-db seed && abathur-db analyze")
        until(lambda: "the store refuses the clock of this host" in proof(replicated), "the reason", 300)
        assert "timedatectl set-ntp true" in replicated.run("abathur-db status").stdout
        replicated.good(f"date -s @{time.time()}")
        until(lambda: "the last change arrived within" in proof(replicated), "the rest", 300)
