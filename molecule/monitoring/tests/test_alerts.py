"""Alerts through their units: a webhook with its retry, a setgid sendmail, a command, a sign of life after success."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import setting, start, wait


def heard(host: Any, path: str) -> list[Any]:
    """Return the requests that the listener had on a path, the first of which it refused."""
    lines = host.run("cat /root/requests").stdout.splitlines()
    return [request for request in map(json.loads, lines) if request[1] == f"/{path}"]


@pytest.fixture(scope="module")
def alerted(host: Any) -> Iterator[Any]:
    """Let the job integrity-check fail through its unit, and wait until everything was told."""
    with setting(host, "minimum_free_mb", "99000000"):
        assert start(host, "integrity-check").rc != 0
    for unit in ("alert", "mail"):
        assert wait(
            lambda unit=unit: (
                host.check_output(f"systemctl show -P Result abathur-db-{unit}@integrity-check") == "success"
                and host.check_output(f"systemctl show -P ActiveState abathur-db-{unit}@integrity-check") == "inactive"
                and host.check_output(
                    f"systemctl show -P ExecMainExitTimestampMonotonic abathur-db-{unit}@integrity-check"
                )
                != "0"
            )
        ), host.check_output(f"journalctl --no-pager -u abathur-db-{unit}@integrity-check")
    yield host
    host.check_output("systemctl start abathur-db@integrity-check.service")


def test_the_webhook_gets_job_result_and_journal_at_its_second_try(alerted: Any) -> None:
    requests = [each for each in heard(alerted, "hook-5a0c") if each[2]["job"] == "integrity-check"]
    assert requests
    assert len(heard(alerted, "hook-5a0c")) >= 2
    body = requests[-1][2]
    assert body["result"] == "exit-code"
    assert "needs 99.0 TB free" in body["summary"]
    assert any("needs 99.0 TB free" in line for line in body["journal"])
    assert body["host"] == alerted.check_output("hostname")


def test_the_mail_is_in_a_queue_that_only_a_setgid_program_can_enter(alerted: Any) -> None:
    mail = alerted.file("/var/spool/queue/mail").content_string
    assert alerted.file("/var/spool/queue/mail").group == "mail"
    assert "arguments: -i ops@example.org" in mail
    assert "Subject: " in mail
    assert "needs 99.0 TB free" in mail


def test_the_command_of_ones_own_gets_its_arguments_and_the_journal(alerted: Any) -> None:
    said = alerted.file("/var/lib/abathur-db/paged").content_string.splitlines()
    assert said[0] == "--now 50 % of $HOME integrity-check exit-code"
    assert "needs 99.0 TB free" in said[1]
    assert any("needs 99.0 TB free" in line for line in said[3:])


def test_a_success_is_told_from_a_unit_of_its_own(host: Any) -> None:
    before = len(heard(host, "ping-77e1"))
    host.check_output("systemctl start abathur-db@backup.service")
    assert wait(lambda: len(heard(host, "ping-77e1")) > before)
    assert heard(host, "ping-77e1")[-1][0] == "GET"


def test_a_success_without_an_address_tells_nobody_and_fails_nowhere(host: Any) -> None:
    host.check_output("systemctl start abathur-db@analyze.service")
    assert host.check_output("systemctl show -P ActiveState abathur-db-ping@analyze.service") == "inactive"


def test_the_addresses_are_in_no_journal_command_line_or_readable_file(alerted: Any) -> None:
    listing = alerted.check_output("stat -c '%U %a %n' /etc/abathur-db.secrets /etc/abathur-db.secrets/*")
    assert [line.split()[:2] for line in listing.splitlines()] == [["root", "700"], ["root", "600"], ["root", "600"]]
    # The journal's export holds command lines as well. A bracket keeps this very command from being found.
    for secret in ("hook-5a0[c]", "ping-77e[1]"):
        assert alerted.run(f"sh -c 'journalctl --no-pager -o export | grep -a -c {secret}'").stdout.strip() == "0"
        found = alerted.run(f"runuser -u nobody -- grep -rsl {secret} /etc /run/systemd /var/lib /opt")
        assert found.stdout.strip() == ""


@pytest.mark.parametrize("unit", ["abathur-db-alert@backup.service", "abathur-db-ping@backup.service"])
def test_a_unit_with_a_network_is_sandboxed_all_the_same(host: Any, unit: str) -> None:
    verdict = host.run(f"systemd-analyze security --threshold=12 {unit}")
    assert verdict.rc == 0, verdict.stdout.splitlines()[-1]


def test_units_have_no_fault_that_systemd_knows(host: Any) -> None:
    units = " ".join(f"abathur-db{kind}@backup.service" for kind in ("", "-alert", "-mail", "-ping"))
    verdict = host.run(f"systemd-analyze verify {units}")
    assert (verdict.rc, verdict.stderr.strip()) == (0, "")
