"""Bad variables: refused by the argument specs and the preflight, each in a sentence, before a host is changed.

One deploy in check mode against this machine, with a host of the inventory for each case.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from abathur_db import cli
from databases import ROOT
from variables import specs

pytestmark = pytest.mark.engine

Case = tuple[dict[str, Any], str]


def jobs(table: Any, says: str) -> Case:
    return {"abathur_maintenance_jobs": table}, says


def calendar(text: str, why: str) -> Case:
    # A line break reads as a space here.
    said = " ".join(map(re.escape, text.split()))
    return jobs({"backup": {"calendar": text}}, f"FAIL calendar_backup '{said}', which systemd {why}")


REPLICATED = {"abathur_replication_enabled": True, "abathur_replication_url": "s3://bucket/path"}

CASES: dict[str, Case] = {
    "a text as number": (
        {"abathur_db_busy_timeout_ms": "soon"},
        "abathur_db_busy_timeout_ms' is of type str .* to int",
    ),
    "a fraction as number": (
        {"abathur_db_backup_keep_daily": 1.5},
        "abathur_db_backup_keep_daily' is of type .* to int",
    ),
    "a list as number": ({"abathur_db_wal_limit_mb": [1]}, "abathur_db_wal_limit_mb' is of type list .* to int"),
    "a negative number": (
        {"abathur_db_backup_keep_daily": -1},
        "has backup_keep_daily = -1, which is not a whole number",
    ),
    "an unknown choice": (
        {"abathur_db_backup_compression": "rar"},
        "value of abathur_db_backup_compression must be one of: zstd, gzip, none, got: rar",
    ),
    "a number as list": ({"abathur_db_validation_sessions": {"ten": 10}}, "abathur_db_validation_sessions' .* to list"),
    "a text as list": (
        {"abathur_db_application_units": "a.service"},
        "application_units = 'a.service', which is not a list",
    ),
    "root as owner": ({"abathur_db_owner": "root"}, "has owner = 'root', which is not the name of a system user other"),
    "one user twice": (
        {"abathur_db_backup_owner": "abathur"},
        "has backup_owner = 'abathur' and owner = 'abathur'; name two users, or no second",
    ),
    "a database right in /": (
        {"abathur_db_database": "/abathur.db"},
        "database = '/abathur.db', but / is the system's",
    ),
    "a database right in /etc": (
        {"abathur_db_database": "/etc/a.db"},
        "database = '/etc/a.db', but /etc is the system's",
    ),
    "a database right in /var/lib": ({"abathur_db_database": "/var/lib/a.db"}, "but /var/lib is the system's"),
    "backups in /home": ({"abathur_db_backup_directory": "/home/b"}, "backup_directory = '/home/b', but /home is the"),
    "a relative path": ({"abathur_db_state_directory": "state"}, "state_directory = 'state', which is not an absolute"),
    "a job that is no command": jobs(
        {"conquer": {"calendar": "daily"}}, "conquer.* Supported parameters include: analyze, "
    ),
    "a job that needs an argument": jobs(
        {"restore": {"calendar": "daily"}}, "restore.* Supported parameters include: "
    ),
    "a job without calendar": jobs({"backup": {}}, "missing required arguments: calendar found in"),
    "a job with an unknown key": jobs(
        {"backup": {"calendar": "daily", "at": 5}}, "at. Supported parameters include: calendar"
    ),
    "jobs as list": jobs(["backup"], "abathur_maintenance_jobs' is of type list .* to dict"),
    "a calendar that is none": calendar("every tea time", "does not understand"),
    "a calendar with an impossible hour": calendar("*-*-* 25:00:00", "does not understand"),
    "a calendar with a setting of its own": calendar("daily\nOnBootSec=1", "does not understand"),
    "a calendar of the past": calendar("2020-01-01", "never reaches"),
    "an empty calendar": calendar("", "does not understand"),
    "a replica nowhere": (
        {"abathur_replication_enabled": True},
        'abathur_replication_url is "", which is not s3://BUCKET/PATH',
    ),
    "a replica with a password in its address": (
        {"abathur_replication_enabled": True, "abathur_replication_url": "sftp://me:hidden@host/path"},
        r'abathur_replication_url is "sftp://\*\*\*@host/path", which is not',
    ),
    "a replica at a server that could be anybody": (
        {"abathur_replication_enabled": True, "abathur_replication_url": "sftp://me@host/path"},
        "abathur_replication_credentials and abathur_replication_host_key are empty",
    ),
    "a replica above its directory": (
        {"abathur_replication_enabled": True, "abathur_replication_url": "file:///srv/../etc"},
        'abathur_replication_url is "file:///srv/../etc", which is not',
    ),
    "a replica in a directory of the system's": (
        {"abathur_replication_enabled": True, "abathur_replication_url": "file:///etc/replica"},
        "a directory of the system's or of the bundle's; it would be given to abathur",
    ),
    "a replica among the backups": (
        {"abathur_replication_enabled": True, "abathur_replication_url": "file:///var/backups/abathur/"},
        "a directory of the system's or of the bundle's; it would be given to abathur",
    ),
    "a replica above the data": (
        {
            "abathur_replication_enabled": True,
            "abathur_replication_url": "file:///srv/all",
            "abathur_db_database": "/srv/all/data/a.db",
        },
        "a directory of the system's or of the bundle's; it would be given to abathur",
    ),
    "a lag that is no number": (
        {"abathur_replication_maximum_lag_seconds": "soon"},
        "abathur_replication_maximum_lag_seconds' is of type str .* to int",
    ),
    "a lag of no time": (
        {**REPLICATED, "abathur_replication_maximum_lag_seconds": 0},
        "abathur_replication_maximum_lag_seconds is 0, which is less than 1",
    ),
    "a replica that is kept for less than a day": (
        {**REPLICATED, "abathur_replication_keep_days": -1},
        "abathur_replication_keep_days is -1, which is less than 1",
    ),
    "a jitter that is no time": (
        {"abathur_maintenance_jitter": "a bit"},
        "FAIL timespan_abathur_maintenance_jitter 'a bit', which systemd does not",
    ),
    "a negative timeout": (
        {"abathur_maintenance_timeout": "-1h"},
        "FAIL timespan_abathur_maintenance_timeout '-1h', which systemd does not",
    ),
    "an alert without path": (
        {"abathur_maintenance_alert_command": "mail root"},
        'abathur_maintenance_alert_command is "mail root", which is not one line with an absolute path',
    ),
}


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return what a deploy in check mode says of each case; `recap` is its end."""
    common = {
        "ansible_connection": "local",
        "ansible_become": False,
        "ansible_python_interpreter": sys.executable,
        # One is enough for what is not about the table.
        "abathur_maintenance_jobs": {"backup": {"calendar": "daily"}},
    }
    hosts = {name.replace(" ", "-").replace("/", "."): {**common, **case[0]} for name, case in CASES.items()}
    inventory = tmp_path_factory.mktemp("inventory") / "hosts.json"
    # All of them in one batch, and none stops another.
    fleet = {"abathur_fleet_batches": [], "abathur_fleet_maximum_failed_percent": 100}
    inventory.write_text(json.dumps({"abathur": {"hosts": hosts, "vars": fleet}}))
    done = deploy(inventory)
    answers = dict.fromkeys(CASES, "")
    for name in CASES:
        host = re.escape(name.replace(" ", "-").replace("/", "."))
        answers[name] = "\n".join(re.findall(rf"^(?:fatal|failed): \[{host}\].*", done, re.MULTILINE))
    answers["recap"] = done.rpartition("PLAY RECAP")[2]
    return answers


def deploy(inventory: Path, *arguments: str, playbook: str = "deploy.yml") -> str:
    done = subprocess.run(
        ["ansible-playbook", playbook, "--check", "-i", inventory, *arguments],
        cwd=ROOT,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")},
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_FORKS": "4",
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout


@pytest.mark.parametrize("case", CASES)
def test_a_bad_variable_is_refused_in_a_sentence(said: dict[str, str], case: str) -> None:
    told = " ".join(said[case].replace('\\"', '"').replace("\\\\", "\\").replace("\\n", " ").split())
    assert re.search(CASES[case][1].replace("\\\\n", " "), told), told


def test_no_task_changed_anything(said: dict[str, str]) -> None:
    assert set(re.findall(r"changed=(\d+)", said["recap"])) == {"0"}
    assert len(re.findall(r"failed=1", said["recap"])) == len(CASES)


@pytest.fixture
def one_host(tmp_path: Path) -> Path:
    """Return an inventory of one host."""
    host = {"ansible_connection": "local", "ansible_become": False, "ansible_python_interpreter": sys.executable}
    (tmp_path / "hosts.json").write_text(json.dumps({"abathur": {"hosts": {"one": host}}}))
    return tmp_path / "hosts.json"


BATCHES: dict[str, Case] = {
    "a word": ({"abathur_fleet_batches": "many"}, 'abathur_fleet_batches is "many", which are not numbers'),
    "no host at all": ({"abathur_fleet_batches": [0]}, "abathur_fleet_batches is [0], which are not"),
    "a truth": ({"abathur_fleet_batches": [True]}, "abathur_fleet_batches is [true], which are not"),
    "a share of a host": ({"abathur_fleet_batches": [1, 2.5]}, "abathur_fleet_batches is [1, 2.5], which are not"),
    "a share without its number": ({"abathur_fleet_batches": [1, "%"]}, 'abathur_fleet_batches is [1, "%"], which'),
    "a word as share": (
        {"abathur_fleet_maximum_failed_percent": "few"},
        "abathur_fleet_maximum_failed_percent' is of type str and we were unable to convert to int",
    ),
    "more than all": (
        {"abathur_fleet_maximum_failed_percent": 101},
        "abathur_fleet_maximum_failed_percent is 101, which is not between 0 and 100. Nothing was changed. Next: ",
    ),
    "less than none": ({"abathur_fleet_maximum_failed_percent": -1}, "percent is -1, which is not between 0 and 100"),
}


@pytest.mark.parametrize("case", BATCHES)
@pytest.mark.parametrize("playbook", ["deploy.yml", "rollback.yml"])
def test_batches_that_are_none_stop_before_a_host_is_asked(one_host: Path, playbook: str, case: str) -> None:
    variables, says = BATCHES[case]
    told = deploy(one_host, "-e", json.dumps(variables), playbook=playbook)
    assert says in told.replace('\\"', '"')
    assert "TASK [abathur_db" not in told


def test_a_host_is_not_told_to_pull_from_nowhere(one_host: Path) -> None:
    told = deploy(one_host, playbook="playbooks/pull.yml")
    assert "abathur_pull_repository is empty, so a host would have nothing to deploy itself from. Nothing was" in told
    assert "TASK [abathur_pull : Install" not in told


def test_a_variable_on_the_command_line_is_checked_as_well(one_host: Path) -> None:
    told = deploy(one_host, "-e", "abathur_db_minimum_free_mb=plenty")
    assert "abathur_db_minimum_free_mb' is of type str and we were unable to convert to int" in told
    assert "changed=0" in told


REMOVED = {
    "/opt": "abathur_db_install_directory",
    "/usr/local/bin/": "abathur_db_install_directory",
    "/etc/abathur/a.db": "abathur_db_database",
    "/a.db": "abathur_db_database",
    "//var//backups/": "abathur_db_backup_directory",
    "/var/lib/x/../../lib": "abathur_db_state_directory",
}


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    """Return an inventory of a primary and its standby, of which none can be reached."""
    host = {"ansible_host": "127.0.0.1", "ansible_port": 1}
    groups = {"abathur": {"hosts": {"one": host, "two": host}}, "abathur_standby": {"hosts": {"two": {}}}}
    (tmp_path / "hosts.json").write_text(json.dumps(groups))
    return tmp_path / "hosts.json"


def test_a_failover_of_which_a_limit_leaves_the_standby_out_stops_before_the_primary_is_fenced(pair: Path) -> None:
    told = deploy(pair, "--limit", "one", playbook="playbooks/failover.yml")
    assert "was not looked at, because --limit leaves it out; nothing was done." in told
    assert "TASK [Stop all that writes on the primary]" not in told


@pytest.mark.parametrize(("value", "counts"), [("true", True), ("false", False)])
def test_rows_that_are_not_to_be_lost_need_no_host_named(tmp_path: Path, value: str, counts: bool) -> None:
    host = {"ansible_host": "127.0.0.1", "ansible_port": 1}
    (tmp_path / "hosts.json").write_text(json.dumps({"abathur": {"hosts": {"one": host, "two": host}}}))
    told = deploy(tmp_path / "hosts.json", "-e", f"abathur_db_rollback_lose_rows={value}", playbook="rollback.yml")
    assert ("would replace the databases of 2 hosts" in told) == counts
    assert ("TASK [abathur_db : Go back]" in told) != counts


def test_a_removal_of_several_hosts_names_them(tmp_path: Path) -> None:
    host = {"ansible_connection": "local", "ansible_become": False, "ansible_python_interpreter": sys.executable}
    (tmp_path / "hosts.json").write_text(json.dumps({"abathur": {"hosts": {"one": host, "two": host}}}))
    told = deploy(tmp_path / "hosts.json", playbook="playbooks/remove.yml")
    assert "This would take units, timers and the tool from 2 hosts (one, two), so nothing was done." in told
    assert "Check what would be removed" not in told
    told = deploy(tmp_path / "hosts.json", "--limit", "two", playbook="playbooks/remove.yml")
    assert "Check what would be removed" in told


def test_a_removal_stops_at_a_directory_of_the_system_s(tmp_path: Path) -> None:
    common = {"ansible_connection": "local", "ansible_become": False, "ansible_python_interpreter": sys.executable}
    hosts = {f"h{number}": {**common, name: path} for number, (path, name) in enumerate(REMOVED.items())}
    hosts["sound"] = {**common, "abathur_db_install_directory": "/usr/local/lib/abathur-db"}
    (tmp_path / "hosts.json").write_text(json.dumps({"abathur": {"hosts": hosts}}))
    told = deploy(tmp_path / "hosts.json", "--limit", "abathur", playbook="playbooks/remove.yml")
    for number, (path, name) in enumerate(REMOVED.items()):
        said = re.findall(rf"^failed: \[h{number}\].*", told, re.MULTILINE)
        shown = path.rpartition("/")[0] or "/" if name == "abathur_db_database" else path
        assert f'{name} is \\"{shown}\\", in a place of the system\'s' in "".join(said), path
        assert re.search(rf"^h{number} +: .*changed=0 .*failed=1", told, re.MULTILINE)
    assert re.search(r"^sound +: .*failed=0", told, re.MULTILINE)


def test_what_can_be_a_job_is_a_command_that_needs_no_argument_locks_and_leaves_a_record() -> None:
    for name in specs("abathur_maintenance")["abathur_maintenance_jobs"]["options"]:
        command = cli.COMMANDS[name]
        # Two work beside the others: the collector (tests/test_metrics.py), and the proof that changes arrive.
        assert (command.lock or name in ("metrics", "replication"), command.recorded) == (True, True), name
        assert command.positional is None or "nargs" in command.positional[1], name
