"""A failover as an operator meets it; the tests tell one story and run in their order.

The primary is cut off from ssh: for the playbook it is as good as dead, and it goes on writing, as one does behind a
network that is split. Then it comes back.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import pytest
import testinfra
import yaml
from conftest import Playbook, ledger, proof, reboot, sessions, wait

PRIMARY, STANDBY = "failover-bookworm", "failover-trixie"
DEAD = ("-e", "abathur_db_failover_primary_is_dead=true")


def host_of(name: str) -> Any:
    """Return a host of this scenario by its name."""
    return testinfra.get_host(f"ansible://{name}", ansible_inventory=os.environ["MOLECULE_INVENTORY_FILE"])


@pytest.fixture(scope="module")
def primary() -> Any:
    return host_of(PRIMARY)


@pytest.fixture(scope="module")
def standby() -> Any:
    return host_of(STANDBY)


def inventory(tmp_path: Path, *, cut_off: bool = False, standby: str = STANDBY) -> str:
    """Return this scenario's inventory with another standby or none, or with a primary that ssh does not reach."""
    former = Path(os.environ["MOLECULE_INVENTORY_FILE"])
    found = yaml.safe_load(former.read_text())
    hosts = found["abathur"]["hosts"]
    found["abathur_standby"]["hosts"] = {standby: dict(hosts[standby])} if standby else {}
    if cut_off:
        # A port where nobody listens.
        for group in found.values():
            if PRIMARY in ((group or {}).get("hosts") or {}):
                group["hosts"][PRIMARY]["ansible_port"] = 1
    (tmp_path / "group_vars").symlink_to(former.parent / "group_vars")
    path = tmp_path / "inventory.yml"
    path.write_text(yaml.safe_dump(found))
    return str(path)


def test_a_standby_follows_and_answers_and_shows_its_lag(primary: Any, standby: Any) -> None:
    primary.check_output("systemctl start abathur.service")
    assert wait(lambda: proof(standby)["ok"] and proof(standby)["data"]["lineage"] == 1), proof(standby)["summary"]
    told = standby.check_output("abathur-db status")
    assert re.search(r"ok +standby +schema version 1, \d+ tables, .*, lineage 0001", told), told
    assert re.search(r"lineage 0001, \d+\.\d s behind at ", told), told
    assert standby.run("systemd-analyze security --no-pager --threshold=12 abathur-db-follow.service").rc == 0


def test_nothing_writes_on_a_standby(standby: Any) -> None:
    refused = standby.run("abathur-db backup")
    assert refused.rc == 1
    assert "backup is the primary's work: this host is a standby" in refused.stderr
    assert "Assertion failed" in standby.run("systemctl start abathur.service").stderr
    assert not standby.file("/var/lib/abathur/abathur.db").exists
    timers = standby.check_output("systemctl list-timers --no-legend 'abathur-db@*'")
    found = {each for each in timers.split() if each.endswith(".timer")}
    assert found == {"abathur-db@replication.timer", "abathur-db@metrics.timer"}


def test_a_standby_tells_prometheus_how_far_it_is_behind(primary: Any, standby: Any) -> None:
    for host, role in ((primary, 0), (standby, 1)):
        assert proof(host)["ok"], proof(host)["summary"]
        host.check_output("systemctl start abathur-db@metrics.service")
        told = host.check_output("cat /var/lib/abathur-metrics/abathur.prom")
        found = dict(re.findall(r"^abathur_db_(standby|up|replication_\w+) (\S+)$", told, re.MULTILINE))
        assert (float(found["standby"]), float(found["up"]), float(found["replication_lineage"])) == (role, 1, 1), told
        assert float(found["replication_lag_seconds"]) < 30


def test_a_standby_that_is_deployed_again_stays_as_it_is(playbook: Playbook) -> None:
    done = playbook("deploy.yml", "--limit", STANDBY)
    assert done.returncode == 0, done.stdout
    assert re.search(rf"{STANDBY} .*changed=0 ", done.stdout), done.stdout


def test_a_deploy_of_a_standby_that_was_cut_is_finished_by_the_next(playbook: Playbook, standby: Any) -> None:
    # On a primary the next deploy starts what is enabled.
    standby.check_output("systemctl enable abathur.service && abathur-db keep")
    done = playbook("deploy.yml", "--limit", STANDBY)
    assert done.returncode == 0, done.stdout
    assert not standby.file("/opt/abathur-db/kept.pending").exists
    assert not standby.service("abathur.service").is_running


def test_a_deploy_of_a_standby_that_failed_brings_its_own_service_back_alone(playbook: Playbook, standby: Any) -> None:
    standby.check_output("abathur-db keep && echo '# another' >> /etc/abathur-db.toml")
    assert "returned to release" in standby.check_output("abathur-db rollback --failed-deploy")
    assert standby.service("abathur-db-follow.service").is_running
    assert not standby.service("abathur-db-replicate.service").is_enabled
    assert wait(lambda: proof(standby)["ok"]), proof(standby)["summary"]
    again = playbook("deploy.yml", "--limit", STANDBY)
    assert re.search(rf"{STANDBY} .*changed=0 ", again.stdout), again.stdout


def test_check_mode_says_what_a_failover_would_do_and_does_nothing(
    playbook: Playbook, primary: Any, standby: Any
) -> None:
    done = playbook("playbooks/failover.yml", "--check")
    assert done.returncode == 0, done.stdout
    assert "would make this host the primary" in " ".join(done.stdout.split())
    assert primary.service("abathur.service").is_running
    assert not standby.file("/var/lib/abathur/abathur.db").exists


def test_a_failover_needs_one_primary(playbook: Playbook, primary: Any, tmp_path: Path) -> None:
    where = Path(inventory(tmp_path))
    found = yaml.safe_load(where.read_text())
    found["abathur_standby"]["hosts"][PRIMARY] = {}
    where.write_text(yaml.safe_dump(found))
    done = playbook("playbooks/failover.yml", inventory=str(where))
    assert done.returncode != 0
    assert 'this inventory has 0 in the group "abathur"' in " ".join(done.stdout.split())
    assert primary.service("abathur.service").is_running


@pytest.mark.parametrize("name", ["failover", "rejoin"])
def test_without_a_standby_nothing_is_done(playbook: Playbook, primary: Any, tmp_path: Path, name: str) -> None:
    done = playbook(f"playbooks/{name}.yml", inventory=inventory(tmp_path, standby=""))
    assert done.returncode != 0
    assert 'There is no host in the group "abathur_standby", so nothing was done.' in " ".join(done.stdout.split())
    assert primary.service("abathur.service").is_running


def test_no_standby_is_promoted_while_its_primary_may_be_alive(
    playbook: Playbook, standby: Any, tmp_path: Path
) -> None:
    done = playbook("playbooks/failover.yml", inventory=inventory(tmp_path, cut_off=True))
    assert done.returncode != 0
    assert "could not be fenced or reached, so it may be alive" in " ".join(done.stdout.split())
    assert not standby.file("/var/lib/abathur/abathur.db").exists


def test_a_primary_that_cannot_be_reached_is_replaced_when_an_operator_says_that_it_is_dead(
    playbook: Playbook, primary: Any, standby: Any, tmp_path: Path
) -> None:
    before = ledger(primary)
    done = playbook("playbooks/failover.yml", *DEAD, inventory=inventory(tmp_path, cut_off=True))
    assert done.returncode == 0, done.stdout
    said = " ".join(done.stdout.split())
    found = re.search(r"with all until (\S+), is the database now .*recovery time (\S+) s", said)
    assert found, said
    print(f"recovery point {found[1]}, recovery time {found[2]} s")
    assert standby.service("abathur.service").is_running
    assert {each for _, each in before} <= sessions(standby)
    # What the promoted one lacks of the ledger is what was written after its recovery point, and after it alone.
    have = sessions(standby)
    lost = [moment for moment, each in ledger(primary) if each not in have]
    kept = [moment for moment, each in ledger(primary) if each in have]
    assert min(lost) > max(kept)


def test_two_primaries_are_detected_and_the_older_one_tells(primary: Any, standby: Any) -> None:
    assert wait(lambda: not proof(primary)["ok"])
    assert "lineage 0002 has begun after this host's" in proof(primary)["summary"]
    assert "lineage 0002 has begun" in primary.check_output("journalctl -u abathur-db-alert@replication -o cat -n 20")
    assert wait(lambda: proof(standby)["ok"]), proof(standby)["summary"]


def test_a_promoted_host_runs_the_jobs_of_a_primary(playbook: Playbook, standby: Any, tmp_path: Path) -> None:
    told = standby.check_output("abathur-db status")
    assert "timer_backup" in told
    assert not standby.file("/etc/systemd/system/abathur-db-follow.service").exists
    assert "there is no former release" in standby.run("abathur-db rollback").stderr
    done = playbook("deploy.yml", "--limit", STANDBY, inventory=inventory(tmp_path, standby=PRIMARY))
    assert done.returncode == 0, done.stdout
    assert re.search(rf"{STANDBY} .*changed=0 ", done.stdout), done.stdout


def test_an_inventory_of_before_makes_no_standby_of_the_primary(playbook: Playbook, standby: Any) -> None:
    for name in ("deploy.yml", "playbooks/rejoin.yml"):
        done = playbook(name, "--limit", f"localhost,{STANDBY}")
        assert done.returncode != 0
    assert "may be the newest there is" in " ".join(done.stdout.split())
    assert standby.service("abathur.service").is_running


def test_the_old_primary_rejoins_as_a_standby_and_keeps_what_it_wrote(
    playbook: Playbook, primary: Any, tmp_path: Path
) -> None:
    where = inventory(tmp_path, standby=PRIMARY)
    looked = playbook("playbooks/rejoin.yml", "--check", inventory=where)
    assert looked.returncode == 0, looked.stdout
    assert primary.service("abathur.service").is_running
    done = playbook("playbooks/rejoin.yml", inventory=where)
    assert done.returncode == 0, done.stdout
    assert not primary.service("abathur.service").is_running
    assert wait(lambda: proof(primary)["ok"] and proof(primary)["data"]["lineage"] == 2), proof(primary)["summary"]
    kept = primary.check_output("sh -c 'ls /var/lib/abathur/abathur.db.before-restore_*/abathur.db'").split()
    assert len(kept) == 1
    assert {each for _, each in ledger(primary)} <= sessions(primary, kept[0])
    again = playbook("playbooks/rejoin.yml", inventory=where)
    assert re.search(rf"{PRIMARY} .*changed=0 ", again.stdout), again.stdout


def test_a_primary_that_is_reached_hands_over_without_losing_a_row(
    playbook: Playbook, primary: Any, standby: Any, tmp_path: Path
) -> None:
    done = playbook("playbooks/failover.yml", inventory=inventory(tmp_path, standby=PRIMARY))
    assert done.returncode == 0, done.stdout
    assert primary.service("abathur.service").is_running
    assert not standby.service("abathur.service").is_running
    assert {each for _, each in ledger(standby)} <= sessions(primary)
    assert "this host is fenced since" in standby.run("abathur-db status").stderr
    standby.run("systemctl start abathur.service abathur-db-replicate.service abathur-db@backup.service")
    assert not standby.service("abathur.service").is_running
    assert "fenced" in standby.check_output("journalctl -u abathur-db-replicate -o cat -n 20")


def test_nothing_of_a_fenced_host_starts_at_boot_and_all_of_a_primary_does(primary: Any, standby: Any) -> None:
    for name in (PRIMARY, STANDBY):
        reboot(name)
    assert wait(lambda: proof(primary)["ok"]), proof(primary)["summary"]
    for host, starts in ((primary, True), (standby, False)):
        for unit in ("abathur.service", "abathur-db-replicate.service", "abathur-db@backup.timer"):
            assert host.service(unit).is_running == starts, unit
    assert "Assertion failed" in standby.check_output("journalctl -b -u abathur.service -o cat --no-pager")
