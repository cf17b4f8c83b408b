"""What an operator meets when a deploy goes otherwise than planned; each test leaves the hosts deployed."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from conftest import hosts, wait


def recap(output: str, word: str) -> set[int]:
    """Return the numbers that the recap gives for changed, failed, …, host by host."""
    return {int(number) for number in re.findall(rf"^operator-\S+ .*{word}=(\d+)", output, re.MULTILINE)}


def test_an_empty_inventory_is_an_error_that_says_what_to_do(playbook: Any, tmp_path: Path) -> None:
    (tmp_path / "hosts.yml").write_text("abathur:\n  hosts: {}\n")
    done = playbook("deploy.yml", inventory=str(tmp_path / "hosts.yml"))
    assert done.returncode != 0
    assert "There is no host in the group" in done.stdout
    assert "inventories/example" in done.stdout


def test_a_preflight_names_all_failures_and_changes_nothing(playbook: Any) -> None:
    for host in hosts():
        host.check_output("ln -sfn /var/tmp /srv/link")
    variables = {"abathur_db_backup_directory": "/srv/link/backups", "abathur_db_minimum_free_mb": 99_000_000}
    done = playbook("deploy.yml", "-e", json.dumps(variables))
    for host in hosts():
        assert not host.file("/var/tmp/backups").exists
        assert "/srv/link" not in host.file("/etc/abathur-db.toml").content_string
        host.check_output("rm /srv/link")
    assert done.returncode != 0
    assert "/srv/link is a symbolic link to /var/tmp" in done.stdout
    assert re.search(r"FAIL\s+data_free_space", done.stdout)
    assert "Nothing was changed." in done.stdout
    assert recap(done.stdout, "changed") == {0}


def test_a_job_taken_out_of_the_table_is_retired(playbook: Any) -> None:
    jobs = {"abathur_maintenance_jobs": {"backup": {"calendar": "*-*-* 02:00:00"}}}
    done = playbook("deploy.yml", "-e", json.dumps(jobs))
    assert done.returncode == 0, done.stdout
    for host in hosts():
        assert "vacuum" not in host.check_output("systemctl list-timers --all --no-legend --plain 'abathur-db@*'")
        assert not host.file("/etc/systemd/system/abathur-db@vacuum.timer").exists
        assert not host.file("/etc/systemd/system/timers.target.wants/abathur-db@vacuum.timer").exists
    back = playbook("deploy.yml")
    assert back.returncode == 0, back.stdout
    assert all(host.service("abathur-db@vacuum.timer").is_enabled for host in hosts())


def test_a_tool_that_a_power_cut_left_empty_is_told_of_and_installed_again(playbook: Any) -> None:
    for host in hosts():
        host.check_output("truncate -s 0 $(readlink -f /usr/local/bin/abathur-db)")
    refused = playbook("playbooks/validate.yml")
    assert refused.returncode != 0
    assert "/usr/local/bin/abathur-db is not on this host, or not whole. Next: ansible-playbook deploy.yml" in " ".join(
        refused.stdout.split()
    )
    repaired = playbook("deploy.yml")
    assert repaired.returncode == 0, repaired.stdout
    for host in hosts():
        # The metrics, every five minutes, may have met the empty one.
        host.check_output("systemctl start abathur-db@metrics && abathur-db status")


def test_a_failed_check_fails_the_deploy_and_names_itself_and_the_next_step(playbook: Any) -> None:
    for host in hosts():
        host.check_output("chmod 0755 /var/lib/abathur/abathur.db")
        host.check_output("systemctl disable --now abathur-db@analyze.timer")
    done = playbook("playbooks/validate.yml")
    assert done.returncode != 0
    assert "validate failed at mode_abathur.db" in done.stdout
    assert "chown --no-dereference abathur: /var/lib/abathur/abathur.db && chmod go=" in done.stdout
    assert re.search(r"FAIL\s+timer_analyze", done.stdout)
    # Two repairs, the mode by init and the timer by the job table; and the backup before the first.
    repaired = playbook("deploy.yml")
    assert repaired.returncode == 0, repaired.stdout
    assert recap(repaired.stdout, "changed") == {3}


def test_remove_keeps_data_and_a_deploy_takes_it_up_again(playbook: Any) -> None:
    before = [host.check_output("stat -c %i /var/lib/abathur/abathur.db") for host in hosts()]
    for host in hosts():
        # A job that failed, as did the alert of it; and one that runs.
        host.check_output("mv /usr/local/bin/abathur-db /root")
        host.run_expect([1], "systemctl start abathur-db@analyze")
        host.check_output(r"printf '#!/bin/sh\nexec sleep infinity\n' | install /dev/stdin /usr/local/bin/abathur-db")
        host.check_output("systemctl start --no-block abathur-db@vacuum")
        assert wait(lambda host=host: host.run("pgrep -x sleep").succeeded)
        host.check_output("mv /root/abathur-db /usr/local/bin")
    done = playbook("playbooks/remove.yml", "-e", '{"abathur_db_remove_data": true}')
    assert done.returncode == 0, done.stdout
    assert "Kept:" in done.stdout
    for host in hosts():
        assert host.check_output("systemctl list-units --all --no-legend --plain 'abathur-db*'") == ""
        assert host.run("pgrep -x sleep").failed
        assert host.check_output("find /etc /opt /usr/local/bin -maxdepth 4 -name 'abathur-db*'") == ""
    assert recap(playbook("playbooks/remove.yml").stdout, "changed") == {0}
    again = playbook("deploy.yml")
    assert again.returncode == 0, again.stdout
    assert [host.check_output("stat -c %i /var/lib/abathur/abathur.db") for host in hosts()] == before


def test_told_twice_remove_deletes_the_data(playbook: Any) -> None:
    twice = {"abathur_db_remove_data": True, "abathur_db_remove_data_really": True}
    done = playbook("playbooks/remove.yml", "-e", json.dumps(twice))
    assert done.returncode == 0, done.stdout
    assert not any(host.file("/var/lib/abathur").exists or host.file("/var/backups/abathur").exists for host in hosts())
    assert playbook("deploy.yml").returncode == 0
