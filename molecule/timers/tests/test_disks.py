"""A disk that is full, has no inodes or is read-only: a job's unit fails, its alert says why, nothing is lost."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from conftest import alert_of, now, setting, start

DATA, BACKUPS, STATE = "/var/lib/abathur", "/var/backups/abathur", "/var/lib/abathur-db"
CASES = [
    # The job, where it needs space, and what is wrong there.
    ("backup", BACKUPS, "full"),
    ("backup", BACKUPS, "without inodes"),
    ("backup", BACKUPS, "read-only"),
    ("drill", STATE, "without inodes"),
    ("integrity-check", STATE, "full"),
    ("analyze", DATA, "full"),
    ("analyze", DATA, "read-only"),
]
TROUBLES = {
    "full": ("size=64M", "head -c 64M /dev/zero > {path}/filler"),
    "without inodes": ("size=64M,nr_inodes=200", "for i in $(seq 200); do : > {path}/filler$i; done"),
    "read-only": ("size=64M", "mount -o remount,ro {path}"),
}
CAUSE = {
    "full": r"No space left|is full|free at .* are",
    "without inodes": r"no inodes|No space left",
    "read-only": r"[Rr]ead-only",
}


@contextmanager
def disk_of_its_own(host: Any, path: str, options: str) -> Iterator[None]:
    """Give a directory a small disk of its own for a while, with what is in it."""
    host.check_output(f"cp -a {path} /root/kept")
    host.check_output(f"sh -c 'mount -t tmpfs -o {options} none {path} && cp -aT /root/kept {path}; rm -r /root/kept'")
    try:
        yield
    finally:
        # What was noted on it meanwhile is not older than what other directories say.
        host.check_output(f"cp -a {path} /root/kept")
        host.check_output(f"sh -c 'umount {path} && cp -aT /root/kept {path}; rm -r /root/kept'")


@pytest.mark.parametrize(("job", "path", "trouble"), CASES)
def test_a_job_on_a_disk_in_trouble_fails_with_an_alert_and_nothing_is_lost(
    host: Any, tool: Any, job: str, path: str, trouble: str
) -> None:
    options, spoil = TROUBLES[trouble]
    with setting(host, "minimum_free_mb", "0"), disk_of_its_own(host, path, options):
        before = tool("backups")["data"]["backups"]
        since = now(host)
        host.run(f"sh -c '{spoil.format(path=path)}'")
        assert start(host, job).rc != 0
        alert = alert_of(host, job, since)
        assert re.search(CAUSE[trouble], alert), alert
        assert "Traceback" not in alert
        host.check_output(f"sh -c 'mount -o remount,rw {path} && rm -f {path}/filler*'")
        assert tool("backups")["data"]["backups"] == before
        assert start(host, job).rc == 0
        # Its timer, every five minutes, may have met the disk in trouble as well.
        assert start(host, "metrics").rc == 0
        assert tool("status")["ok"]
