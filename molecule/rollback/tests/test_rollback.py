"""Backups and rollbacks with an application at work; a ledger outside the database accounts for every row."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import DATABASE, ROOT, acknowledged, ask, hosts, one_liner, running, sessions, wait

PARTS = ("ansible.cfg", "deploy.yml", "rollback.yml", "playbooks", "requirements.txt", "roles", "scripts", "sql")

ALL = ("--limit", "abathur")
"""Says that the databases of all hosts are meant."""


def kept(host: Any) -> list[str]:
    """Return the former databases that were kept."""
    output: str = host.check_output("sh -c 'ls -d /var/lib/abathur/*.before-restore_*/abathur.db 2>/dev/null || true'")
    return output.split()


def tool(host: Any, *arguments: str) -> dict[str, Any]:
    done = host.run(f"abathur-db {' '.join(arguments)} --json")
    return {**json.loads(done.stdout), "exit_code": done.rc}


def said(done: Any) -> str:
    """Return a playbook's output with its wrapped lines joined."""
    return " ".join(done.stdout.split())


def start_writers(host: Any) -> None:
    before = len(acknowledged(host))
    host.check_output("systemctl start abathur.service")
    assert wait(lambda: len(acknowledged(host)) > before + 50)


@pytest.fixture(autouse=True)
def _stopped() -> Iterator[None]:
    """Stop the writers after each test; none of them has met an error."""
    yield
    for host in hosts():
        host.run("systemctl stop abathur.service")
        assert not host.file("/var/lib/ledger/errors").exists, host.file("/var/lib/ledger/errors").content_string


@pytest.fixture
def next_release(tmp_path: Path) -> Path:
    """Return a checkout of a next release, which migrates the database."""
    for part in PARTS:
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tmp_path / part)
    migration = tmp_path / "sql/migrations/0002_next.sql"
    migration.write_text("-- What the next release needs.\nALTER TABLE sessions ADD COLUMN mood TEXT;\n")
    return tmp_path


def test_a_backup_under_50_writers_holds_every_row_acknowledged_before_it_and_no_torn_one(host: Any) -> None:
    start_writers(host)
    before = acknowledged(host)
    made = tool(host, "backup")["data"]
    writing = len(acknowledged(host))
    assert wait(lambda: len(acknowledged(host)) > writing)
    host.check_output(f"zstd -dqf /var/backups/abathur/{made['file']} -o /var/tmp/proof.db")
    host.check_output("chown abathur /var/tmp/proof.db")
    assert before - sessions(host, "/var/tmp/proof.db") == set()
    torn = "SELECT count(*) FROM sessions WHERE id NOT IN (SELECT task_id FROM audit WHERE task_id IS NOT NULL)"
    assert ask(host, torn, "/var/tmp/proof.db") == [[0]]
    assert made["rows"]["sessions"] == len(sessions(host, "/var/tmp/proof.db"))
    host.check_output("rm /var/tmp/proof.db")


def test_a_restore_while_the_application_works_is_refused_and_names_it(host: Any) -> None:
    start_writers(host)
    # Each operation opens the database anew: hold it open as a longer one would.
    holder = (
        f"import sqlite3, time; c = sqlite3.connect('{DATABASE}'); c.execute('SELECT * FROM sessions'); time.sleep(60)"
    )
    with running(host, one_liner(holder)) as pid:
        assert wait(lambda: host.run(f"fuser {DATABASE} | grep -w {pid}").rc == 0)
        refused = tool(host, "restore", "latest")
    assert refused["exit_code"] == 75, refused["summary"]
    assert re.search(r"is open in python3 \(pid \d+\); nothing was changed", refused["summary"])
    host.check_output("systemctl stop abathur.service")
    assert acknowledged(host) - sessions(host) == set()


def test_going_back_to_a_backup_under_50_writers_accounts_for_every_row(playbook: Any) -> None:
    for host in hosts():
        tool(host, "backup")
        start_writers(host)
    done = playbook("rollback.yml", *ALL, "-e", "abathur_db_rollback_to=latest")
    assert done.returncode == 0, done.stdout
    assert re.search(r"it lacks \d+ rows written since: audit \d+ new and 0 changed, sessions", said(done))
    for host in hosts():
        assert host.service("abathur.service").is_running
        written = len(acknowledged(host))
        assert wait(lambda host=host, written=written: len(acknowledged(host)) > written)
        host.check_output("systemctl stop abathur.service")
        found = sessions(host).union(*(sessions(host, path) for path in kept(host)))
        assert acknowledged(host) - found == set()
        # It ended with a fresh backup, made after the restore.
        newest = tool(host, "backups")["data"]["backups"][0]
        assert newest["rows"]["sessions"] <= len(sessions(host))


def test_a_deploy_that_migrated_is_rolled_back_and_rows_are_dropped_only_when_told(
    playbook: Any, next_release: Path
) -> None:
    for host in hosts():
        start_writers(host)
        host.check_output("systemctl stop abathur.service")
    before = {id(host): host.check_output("readlink /opt/abathur-db/current") for host in hosts()}
    deployed = playbook("deploy.yml", root=next_release)
    assert deployed.returncode == 0, deployed.stdout
    for host in hosts():
        assert ask(host, "PRAGMA user_version") == [[2]]
        start_writers(host)
    refused = playbook("rollback.yml")
    assert refused.returncode != 0
    assert re.search(r"was not restored: it lacks \d+ rows written since", said(refused))
    assert "abathur_db_rollback_lose_rows=true" in said(refused)
    for host in hosts():
        assert ask(host, "PRAGMA user_version") == [[2]]
        assert host.service("abathur.service").is_running
    done = playbook("rollback.yml", *ALL, "-e", '{"abathur_db_rollback_lose_rows": true}')
    assert done.returncode == 0, done.stdout
    for number, host in enumerate(hosts()):
        host.check_output("systemctl stop abathur.service")
        assert ask(host, "PRAGMA user_version") == [[1]]
        assert host.check_output("readlink /opt/abathur-db/current") == list(before.values())[number]
        found = sessions(host).union(*(sessions(host, path) for path in kept(host)))
        assert acknowledged(host) - found == set()
    again = playbook("rollback.yml")
    assert again.returncode == 0, again.stdout
    assert "runs already, the database stays as it is" in said(again)


def test_a_deploy_whose_validation_fails_returns_to_the_former_release_with_all_rows(
    playbook: Any, next_release: Path
) -> None:
    for host in hosts():
        start_writers(host)
    before = [host.check_output("readlink /opt/abathur-db/current") for host in hosts()]
    done = playbook("deploy.yml", "-e", '{"abathur_db_validation_p99_ms": 0}', root=next_release)
    assert done.returncode != 0
    assert "validate failed at latency_2_sessions" in said(done)
    assert "returned to release" in said(done)
    assert "no row is lost" in said(done)
    for number, host in enumerate(hosts()):
        assert host.service("abathur.service").is_running
        host.check_output("systemctl stop abathur.service")
        assert host.check_output("readlink /opt/abathur-db/current") == before[number]
        assert "validation_p99_ms = 60000" in host.file("/etc/abathur-db.toml").content_string
        assert ask(host, "PRAGMA user_version") == [[1]]
        found = sessions(host).union(*(sessions(host, path) for path in kept(host)))
        assert acknowledged(host) - found == set()
        assert tool(host, "status")["ok"]


def test_a_deploy_that_cannot_take_its_backup_changes_nothing(playbook: Any, next_release: Path) -> None:
    in_the_way = "/var/backups/abathur/.abathur_new.db.partial"
    for host in hosts():
        host.check_output(f"mkdir {in_the_way}")
    done = playbook("deploy.yml", root=next_release)
    for host in hosts():
        host.check_output(f"rmdir {in_the_way}")
    assert done.returncode != 0
    assert ".abathur_new.db.partial is a directory, which this tool never makes" in said(done)
    assert "The release that ran before runs on." in said(done)
    for host in hosts():
        assert ask(host, "PRAGMA user_version") == [[1]]
        # The status tells of the failed backup until there is a good one.
        assert "job_backup" in tool(host, "status")["summary"]
        assert tool(host, "backup")["ok"]
        assert tool(host, "status")["ok"]


DAMAGES = {
    "corrupt": f"dd if=/dev/urandom of={DATABASE} bs=4096 seek=2 count=40 conv=notrunc status=none",
    "missing": f"rm {DATABASE} {DATABASE}-wal {DATABASE}-shm",
    # As a restore leaves it that was killed between its steps.
    "half-restored": f"rm {DATABASE} && touch {DATABASE}-wal /var/lib/abathur/.abathur.db.restore",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_database_that_is_broken_comes_back_from_the_newest_backup(playbook: Any, damage: str) -> None:
    before = []
    for host in hosts():
        before.append(sessions(host))
        tool(host, "backup")
        host.check_output(f"runuser -u abathur -- sh -c '{DAMAGES[damage]}'")
    deployed = playbook("deploy.yml")
    assert deployed.returncode != 0
    assert "Nothing was changed" in said(deployed)
    done = playbook("rollback.yml", *ALL, "-e", "abathur_db_rollback_to=latest")
    assert done.returncode == 0, done.stdout
    for number, host in enumerate(hosts()):
        assert sessions(host) == before[number]
        # Its timer may have come while there was no database.
        host.check_output("systemctl start abathur-db@metrics.service")
        assert tool(host, "status")["ok"]


@pytest.mark.parametrize("variable", ["abathur_db_rollback_to=fresh", "abathur_db_rollback_lose_rows=true"])
def test_the_databases_of_several_hosts_are_not_replaced_unless_that_is_said(
    playbook: Any, tmp_path: Path, variable: str
) -> None:
    before = [kept(host) for host in hosts()]
    (tmp_path / "more.json").write_text(json.dumps({"abathur": {"hosts": {"another": {"ansible_port": 1}}}}))
    done = playbook("rollback.yml", "-i", str(tmp_path / "more.json"), "-e", variable)
    assert done.returncode != 0
    name = hosts()[0].backend.get_hostname()
    assert f"would replace the databases of 2 hosts ({name}, another), so nothing was done" in said(done)
    assert "say that all are: --limit abathur" in said(done)
    assert [kept(host) for host in hosts()] == before


def test_the_fresh_start_keeps_the_old_database(playbook: Any) -> None:
    before = [sessions(host) for host in hosts()]
    done = playbook("rollback.yml", *ALL, "-e", "abathur_db_rollback_to=fresh")
    assert done.returncode == 0, done.stdout
    for number, host in enumerate(hosts()):
        assert sessions(host) == set()
        assert ask(host, "SELECT count(*) FROM memory_entries") == [[3]]
        assert before[number] in [sessions(host, path) for path in kept(host)[-1:]]


def test_check_mode_says_what_a_rollback_would_do_and_does_nothing(playbook: Any) -> None:
    before = [kept(host) for host in hosts()]
    done = playbook("rollback.yml", "--check", *ALL, "-e", "abathur_db_rollback_to=latest")
    assert done.returncode == 0, done.stdout
    assert "would restore backup" in said(done)
    assert [kept(host) for host in hosts()] == before


def test_the_drills_recovery_time_stands_in_the_status(host: Any) -> None:
    host.check_output("systemctl start abathur-db@drill.service")
    status = tool(host, "status")
    assert status["data"]["recovery_seconds"] > 0
    assert any("restored by the last drill in" in line for line in status["report"])


def test_a_drill_of_a_damaged_backup_alerts(host: Any) -> None:
    newest = tool(host, "backup")["data"]["file"]
    host.check_output(f"truncate --size=-1 /var/backups/abathur/{newest}")
    host.check_output(f"sh -c 'printf x >> /var/backups/abathur/{newest}'")
    assert host.run("systemctl start abathur-db@drill.service").rc != 0
    alert = "journalctl --no-pager -o cat -p err -u abathur-db-alert@drill.service"
    assert wait(lambda: "drill failed at restore" in host.check_output(alert))
    assert "is damaged: the SHA-256 of" in host.check_output(alert)
    assert tool(host, "backup")["ok"]
    assert host.run("systemctl start abathur-db@drill.service").rc == 0


def runbooks() -> list[str]:
    """Return the commands of the README's runbooks, in their order."""
    text = (ROOT / "README.md").read_text().partition("## Runbooks")[2].partition("\n## ")[0]
    blocks = re.findall(r"```console\n(.*?)```", text, re.DOTALL)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line.replace("--limit HOST", "--limit abathur") for line in lines]


def test_every_command_of_the_runbooks_works_as_it_stands(playbook: Any) -> None:
    commands = runbooks()
    assert len(commands) > 15
    for command in commands:
        if command.startswith("ansible-playbook "):
            done = playbook(*command.split()[1:])
            assert done.returncode == 0, f"{command}\n{done.stdout}"
        else:
            for host in hosts():
                answer = host.run(command)
                assert answer.rc == 0, f"{command}\n{answer.stdout}{answer.stderr}"
