"""Clocks, calendars and memory limits, on a whole machine whose clock is set as one likes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import testvm
from databases import until

from faults.hosts import Host

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
