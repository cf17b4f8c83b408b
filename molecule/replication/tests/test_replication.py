"""Replication to a store under load, with killed writers and every job beside it: what arrives, a restore."""

from __future__ import annotations

import json
import os
import re
import time
from datetime import datetime
from typing import Any

import pytest
from conftest import (
    SECRET_FILE,
    acknowledged,
    arrived,
    hosts,
    ledger,
    lineage,
    proof,
    sessions,
    wait,
)

SECRET = "replica-5ec2e7"
PATTERN = "[r]eplica-5ec2e7"
"""What finds it, and not the command that looks for it."""

pytestmark = pytest.mark.usefixtures("at_work")

KILLS = 20 if os.environ.get("FULL") else 5
"""`make test-all` sets FULL."""


def proven() -> tuple[int, str]:
    """Return a moment as of which all that was written has arrived, and a later one to restore to."""
    sure = time.time()
    for host in hosts():
        assert wait(lambda host=host: proof(host)["ok"]), proof(host)["summary"]
    # Times are of whole seconds.
    time.sleep(1)
    return int(sure) - 1, str(hosts()[0].check_output("date -u +%FT%TZ"))


def restored(said: str, sure: int, at: str) -> list[int]:
    """Return the lineages that were restored by what is said, each to a moment between these two."""
    sentence = r"restored the replica of (\S+), lineage (\d+); it lacks \d+ rows written since: sess"
    # Ansible wraps it.
    found = re.findall(sentence, " ".join(said.split()))
    reached = [datetime.fromisoformat(moment).timestamp() for moment, _ in found]
    assert all(sure <= moment <= datetime.fromisoformat(at).timestamp() for moment in reached), said
    return sorted(int(number) for _, number in found)


@pytest.mark.parametrize("unit", ["abathur-db-replicate", "abathur-db@replication", "abathur-db@drill"])
def test_what_replicates_has_an_exposure_of_at_most_1_2(host: Any, unit: str) -> None:
    verdict = host.run(f"systemd-analyze security --no-pager --threshold=12 {unit}.service")
    assert verdict.rc == 0, verdict.stdout


def test_a_hundred_commits_a_second_arrive_and_every_acknowledged_row_is_in_the_replica(host: Any) -> None:
    before = len(acknowledged(host))
    assert wait(lambda: len(acknowledged(host)) - before > 500)
    assert wait(lambda: proof(host)["ok"]), proof(host)["summary"]
    assert acknowledged(host) - arrived(host) == set()


def test_an_application_that_is_killed_while_it_commits_again_and_again_leaves_a_replica_as_the_database(
    host: Any,
) -> None:
    for _ in range(KILLS):
        host.check_output(
            "systemctl kill --signal=SIGKILL abathur.service && sleep 1.2 && systemctl start abathur.service"
        )
        time.sleep(0.3)
    # Restored with SQLite's own check.
    assert acknowledged(host) - arrived(host) == set()


def test_the_log_stays_bounded_with_every_job_at_work(host: Any) -> None:
    largest = 0
    for job in ("backup", "analyze", "vacuum", "integrity-check", "metrics", "drill") * 2:
        host.check_output(f"systemctl start abathur-db@{job}.service")
        largest = max(largest, int(host.check_output("stat -c %s /var/lib/abathur/abathur.db-wal")))
    assert largest < 100_000_000
    assert host.run("abathur-db checkpoint").rc == 0
    assert wait(lambda: proof(host)["ok"]), proof(host)["summary"]


def test_a_restore_to_a_time_takes_the_replica_and_begins_the_next_lineage(host: Any) -> None:
    former = lineage(host)
    sure, at = proven()
    time.sleep(3)
    host.check_output("systemctl stop abathur.service")
    rows = acknowledged(host)
    refused = host.run(f"abathur-db restore {at}")
    assert refused.rc == 75
    assert "systemctl stop abathur-db-replicate.service" in refused.stderr
    host.check_output("systemctl stop abathur-db-replicate.service")
    done = host.run(f"abathur-db restore {at}")
    assert done.rc == 0, done.stderr
    assert restored(done.stdout, sure, at) == [former], done.stdout
    host.check_output("systemctl start abathur-db-replicate.service")
    assert wait(lambda: lineage(host) == former + 1)
    about = json.loads(host.check_output("cat /etc/abathur-db-replication.yml"))
    kept = about["url"].replace("?", f"/{former:04}?")
    host.check_output(
        f"sh -c 'rm -f /root/kept.db; AWS_SHARED_CREDENTIALS_FILE={SECRET_FILE} {about['litestream']} restore"
        f' -o /root/kept.db "{kept}"\''
    )
    assert rows - sessions(host, "/root/kept.db") == set()
    # From here on the ledger is about the restored database.
    host.check_output("rm /var/lib/ledger/acknowledged")


def test_a_rollback_to_a_time_says_what_it_takes_and_what_is_lost_and_replication_goes_on(playbook: Any) -> None:
    before = {host.backend.get_hostname(): lineage(host) for host in hosts()}
    sure, at = proven()
    time.sleep(3)
    done = playbook("rollback.yml", "--limit", "abathur", "-e", f"abathur_db_rollback_to={at}")
    assert done.returncode == 0, done.stdout
    assert restored(done.stdout, sure, at) == sorted(before.values()), done.stdout
    for host in hosts():
        assert host.service("abathur.service").is_running
        assert wait(lambda host=host: proof(host)["ok"]), proof(host)["summary"]
        assert lineage(host) == before[host.backend.get_hostname()] + 1
        host.check_output("systemctl stop abathur.service")
        assert {identity for moment, identity in ledger(host) if moment < sure} <= sessions(host)
        host.check_output("rm /var/lib/ledger/acknowledged")


def test_the_secret_is_in_no_unit_no_command_line_and_no_journal(host: Any) -> None:
    assert host.check_output(f"stat -c '%U %a' {SECRET_FILE}") == "root 600"
    # The control: the patterns find it where it is.
    assert host.run(f"grep -rl '{PATTERN}' /etc/abathur-db.secrets").stdout.strip() == SECRET_FILE
    assert host.run(f"sh -c 'journalctl --no-pager -o export | grep -a -c \"{PATTERN}\"'").stdout.strip() == "0"
    places = "/etc/systemd /run/systemd/system /var/lib/abathur-db /var/lib/abathur"
    assert host.run(f"grep -rl '{PATTERN}' {places}").stdout == ""
    for about in ("cmdline", "environ"):
        assert host.run(f'sh -c \'cat /proc/[0-9]*/{about} | tr "\\0" "\\n" | grep "{PATTERN}"\'').stdout == ""
    assert host.run(f"runuser -u nobody -- grep -rsl '{PATTERN}' /etc /opt /var/lib /run").stdout == ""


def test_switched_off_nothing_is_left_but_the_replica_and_on_again_begins_the_next_lineage(playbook: Any) -> None:
    before = {host.backend.get_hostname(): lineage(host) for host in hosts()}
    done = playbook("deploy.yml", "-e", '{"abathur_replication_enabled": false}')
    assert done.returncode == 0, done.stdout
    assert "Replication is off. Kept: the replica" in " ".join(done.stdout.split())
    for host in hosts():
        left = "ls -d /etc/abathur-db-replication.yml /opt/abathur-db/litestream-* /var/lib/abathur-db/replication"
        assert host.run(f"sh -c '{left} {SECRET_FILE} /etc/systemd/system/abathur-db-repl*'").stdout == ""
        assert not re.search(r"^replica:|^\S+ +(job_)?replication", host.run("abathur-db status").stdout, re.MULTILINE)
    assert playbook("deploy.yml").returncode == 0
    for host in hosts():
        assert lineage(host) == before[host.backend.get_hostname()] + 1
    again = playbook("deploy.yml")
    assert re.findall(r"changed=(\d+) .*failed=(\d+)", again.stdout.partition("PLAY RECAP")[2]) == [("0", "0")] * (
        len(hosts()) + 1
    )
