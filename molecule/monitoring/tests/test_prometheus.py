"""Debian's node exporter and Prometheus: the values arrive, an alert fires when its cause is made, and clears."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from conftest import python, setting, start, wait

TEXTFILE = "/var/lib/abathur-metrics/abathur.prom"


@pytest.fixture
def ask(host: Any) -> Callable[[str], Any]:
    """Ask the host's Prometheus; return the data of its answer."""
    port = host.file("/root/prometheus.port").content_string

    def answer(path: str) -> Any:
        program = (
            f"import urllib.request as r; print(r.urlopen('http://127.0.0.1:{port}/api/v1/{path}').read().decode())"
        )
        return json.loads(python(host, program, "root"))["data"]

    return answer


def firing(ask: Callable[[str], Any], wanted: str) -> bool:
    return any(
        alert["labels"]["alertname"] == wanted and alert["state"] == "firing" for alert in ask("alerts")["alerts"]
    )


def collect(host: Any) -> None:
    host.check_output("systemctl start abathur-db@metrics.service")


def test_the_values_of_the_textfile_arrive_in_prometheus(host: Any, ask: Any) -> None:
    collect(host)
    assert wait(lambda: bool(ask("query?query=abathur_db_up")["result"]))
    assert ask("query?query=abathur_db_up")["result"][0]["value"][1] == "1"
    jobs = {each["metric"]["job_name"] for each in ask("query?query=abathur_db_job_due_timestamp_seconds")["result"]}
    assert jobs >= {"backup", "drill", "vacuum", "analyze", "integrity-check"}
    assert ask("query?query=node_textfile_scrape_error")["result"][0]["value"][1] == "0"


def test_prometheus_has_the_rules_and_nothing_fires_on_a_healthy_host(host: Any, ask: Any) -> None:
    collect(host)
    rules = [rule for group in ask("rules")["groups"] for rule in group["rules"]]
    assert len(rules) >= 14
    assert wait(lambda: {rule["health"] for group in ask("rules")["groups"] for rule in group["rules"]} == {"ok"})
    disk = "AbathurDiskLow"  # the machine's own disk is not of this test's making
    names = {alert["labels"]["alertname"] for alert in ask("alerts")["alerts"] if alert["state"] == "firing"}
    assert names - {disk} == set()


def test_an_alert_fires_when_a_job_fails_and_clears_when_it_succeeds_again(host: Any, ask: Any) -> None:
    with setting(host, "minimum_free_mb", "99000000"):
        assert start(host, "vacuum").rc != 0
    collect(host)
    assert wait(lambda: firing(ask, "AbathurJobFailed"))
    host.check_output("systemctl start abathur-db@vacuum.service")
    collect(host)
    assert wait(lambda: not firing(ask, "AbathurJobFailed"))


def test_an_alert_fires_when_the_database_is_gone_and_clears_when_it_is_back(host: Any, ask: Any) -> None:
    host.check_output("sh -c 'mkdir /root/aside && mv /var/lib/abathur/abathur.db* /root/aside'")
    try:
        assert host.run("systemctl start abathur-db@metrics.service").rc != 0
        fired = wait(lambda: firing(ask, "AbathurDatabaseUnreadable"))
    finally:
        host.check_output("sh -c 'mv /root/aside/* /var/lib/abathur && rmdir /root/aside'")
    assert fired
    collect(host)
    assert wait(lambda: not firing(ask, "AbathurDatabaseUnreadable"))


def test_the_textfile_is_for_everybody_and_only_the_owner_can_write_beside_it(host: Any) -> None:
    assert (host.file(TEXTFILE).user, host.file(TEXTFILE).mode) == ("abathur", 0o644)
    directory = host.file("/var/lib/abathur-metrics")
    assert (directory.user, directory.mode) == ("abathur", 0o755)
    assert host.file("/var/lib/prometheus/node-exporter/abathur.prom").linked_to == TEXTFILE
    assert host.file("/var/lib/prometheus/node-exporter").user == "root"


def test_this_debians_promtool_finds_no_fault_with_the_textfile(host: Any) -> None:
    checked = host.run(f"promtool check metrics < {TEXTFILE}")
    assert (checked.rc, checked.stderr) == (0, "")


def test_a_second_deploy_changes_nothing(playbook: Any) -> None:
    done = playbook("deploy.yml", "--tags", "host,units,timers,exporter,rules")
    assert done.returncode == 0, done.stdout
    assert "changed=0" in done.stdout
    assert "changed=1" not in done.stdout
