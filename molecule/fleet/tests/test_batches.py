"""A fleet in batches of 1, 2 and 1: what a failed host means for the others, and the summary that names each."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from conftest import SUMMARY, hosts


def numbered() -> dict[int, Any]:
    """Return the hosts of this scenario by their number."""
    return {int(re.findall(r"-(\d)-", host.backend.host)[0]): host for host in hosts()}


def limits() -> dict[int, str]:
    """Return what tells the deploys of these tests apart on each host, a limit in its configuration."""
    say = "sed -n 's/^wal_limit_mb = //p' /etc/abathur-db.toml"
    return {number: host.check_output(say) for number, host in numbered().items()}


def summary(output: str) -> dict[int, str]:
    """Return what the summary on the terminal says of each host."""
    told = output.partition("\nFLEET ***")[2]
    return {int(number): text for number, text in re.findall(r"^fleet-(\d)-\S+ +(.*)$", told, re.MULTILINE)}


@pytest.fixture
def sick(tmp_path: Path) -> Any:
    """Give an inventory that adds variables to one host."""

    def write(number: int, **variables: object) -> str:
        name = numbered()[number].backend.get_hostname()
        (tmp_path / "sick.json").write_text(json.dumps({"abathur": {"hosts": {name: variables}}}))
        return str(tmp_path / "sick.json")

    return write


def same(output: str, word: str) -> None:
    """Check that the summary says the same of all hosts, and names the release that each runs."""
    for number, host in numbered().items():
        release = host.check_output("readlink /opt/abathur-db/current")
        assert re.fullmatch(rf"{word} +release {re.escape(release)}", summary(output)[number])
    assert f"4 hosts: 4 {word}" in output


def test_a_deploy_that_changes_nothing_says_so_of_each_host(playbook: Any) -> None:
    done = playbook("deploy.yml")
    assert done.returncode == 0, done.stdout
    same(done.stdout, "unchanged")


def test_a_canary_that_fails_leaves_the_others_untouched(playbook: Any, sick: Any) -> None:
    inventory = sick(1, abathur_db_validation_p99_ms=0)
    done = playbook("deploy.yml", "-i", inventory, "-e", "abathur_db_wal_limit_mb=99")
    assert done.returncode != 0
    said = summary(done.stdout)
    assert re.match(r"failed +validate failed at latency_2_sessions: .*; returned to release ", said[1])
    assert [said[number] for number in (2, 3, 4)] == ["not begun"] * 3
    assert "4 hosts: 3 not begun, 1 failed" in done.stdout
    assert set(limits().values()) == {"100"}
    assert "[fleet-2" not in done.stdout


def test_a_later_host_that_fails_is_told_and_not_spread(playbook: Any, sick: Any) -> None:
    inventory = sick(3, abathur_db_validation_p99_ms=0)
    done = playbook("deploy.yml", "-i", inventory, "-e", "abathur_db_wal_limit_mb=98")
    assert done.returncode != 0
    # The canary and its batch's other host are done, itself is back, the last batch was not begun.
    assert limits() == {1: "98", 2: "98", 3: "100", 4: "100"}
    said = summary(done.stdout)
    assert [re.split("  +", said[number])[0] for number in said] == ["deployed"] * 2 + ["not begun", "failed"]
    written = json.loads(SUMMARY.read_text())
    assert [(each["host"][6], each["state"]) for each in written] == [
        ("1", "deployed"),
        ("2", "deployed"),
        ("3", "failed"),
        ("4", "not begun"),
    ]
    assert written[2]["reason"].startswith("validate failed at latency_2_sessions: ")
    assert said[1].endswith(written[0]["release"])


def test_as_many_as_are_allowed_to_fail_stop_nobody(playbook: Any, sick: Any) -> None:
    inventory = sick(4, abathur_db_minimum_free_mb=99_000_000)
    allowed = json.dumps({"abathur_fleet_maximum_failed_percent": 50, "abathur_db_wal_limit_mb": 97})
    done = playbook("deploy.yml", "-i", inventory, "-e", allowed)
    assert done.returncode != 0
    assert limits() == {1: "97", 2: "97", 3: "97", 4: "100"}
    assert re.match(r"failed +preflight failed at data_free_space: ", summary(done.stdout)[4])
    assert "4 hosts: 3 deployed, 1 failed" in done.stdout


def test_a_host_that_does_not_answer_is_told_and_passed_over(playbook: Any, sick: Any) -> None:
    """The first one, which is a batch of its own: the run would end there."""
    done = playbook("deploy.yml", "-i", sick(1, ansible_port=1), "-e", "abathur_db_wal_limit_mb=96")
    assert done.returncode != 0
    assert limits() == {1: "97", 2: "96", 3: "96", 4: "96"}
    assert re.match(r"failed +.*Connection refused.* Next: see that ssh reaches it", summary(done.stdout)[1])
    assert "4 hosts: 3 deployed, 1 failed" in done.stdout


def test_a_fleet_is_rolled_back_in_batches_as_well(playbook: Any, sick: Any) -> None:
    done = playbook("deploy.yml", "-e", "abathur_db_wal_limit_mb=95")
    assert done.returncode == 0, done.stdout
    same(done.stdout, "deployed")
    stopped = playbook("rollback.yml", "-i", sick(2, abathur_db_rollback_to="20010101_000000"))
    assert stopped.returncode != 0
    assert re.match("failed .*20010101_000000", summary(stopped.stdout)[2])
    # Its batch came to its end.
    assert limits() == {1: "97", 2: "95", 3: "96", 4: "95"}
    # Of several, one that has nothing to go back to is passed over.
    numbered()[4].check_output("rm -r /opt/abathur-db/kept")
    assert "4 hosts: 2 rolled back, 1 not begun, 1 failed" in stopped.stdout
    rest = playbook("rollback.yml", "--limit", "*-2-*,*-4-*")
    assert rest.returncode == 0, rest.stdout
    assert re.match("unchanged +there is no former release", summary(rest.stdout)[4])
    assert "1 rolled back" in rest.stdout
    assert limits() == {1: "97", 2: "96", 3: "96", 4: "95"}
    checked = playbook("deploy.yml", "--check")
    assert checked.returncode == 0, checked.stdout
    same(checked.stdout, "would be deployed")
