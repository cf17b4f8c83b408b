"""Nights: something is broken under an application at work; somebody follows what is said, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from conftest import DATABASE, ask, wait

UNIT = "abathur.service"
PROGRAM = f"""import sqlite3, sys, time
number, connection = 0, None
while True:
    try:
        connection = connection or sqlite3.connect("{DATABASE}", isolation_level=None)
        number += 1
        insert = "INSERT INTO memory_entries (namespace, key, value, memory_type) VALUES ('night', ?, '1', 'semantic')"
        connection.execute(insert, (f"{{time.time()}}",))
        open("/run/night/acknowledged", "a").write(".")
    except sqlite3.Error as error:
        print(error, flush=True)
    if "short" in sys.argv:
        connection.close()
        connection = None
    time.sleep(0.02)
"""
SERVICE = """[Service]
User=abathur
RuntimeDirectory=night
RuntimeDirectoryPreserve=yes
ExecStart=/usr/bin/python3 /opt/night.py {}
Restart=on-failure
[Install]
WantedBy=multi-user.target
"""


@pytest.fixture
def application(host: Any, request: pytest.FixtureRequest) -> Iterator[str]:
    """Let an application write rows; `short`: with a connection for each, else with one that it keeps."""
    host.check_output(f"cat > /opt/night.py <<'EOF'\n{PROGRAM}EOF")
    host.check_output(f"cat > /etc/systemd/system/{UNIT} <<'EOF'\n{SERVICE.format(request.param)}EOF")
    host.check_output(f"systemctl daemon-reload; systemctl enable --now {UNIT}")
    assert wait(lambda: acknowledged(host) > 20)
    host.check_output("systemctl start abathur-db@backup")
    assert wait(lambda: acknowledged(host) > 60)
    yield request.param
    host.run(f"systemctl disable --now {UNIT}; rm -rf /etc/systemd/system/{UNIT} /opt/night.py /run/night")
    host.run("systemctl daemon-reload; systemctl reset-failed; rm -f /etc/abathur-db.fenced")
    host.run("systemctl enable --now abathur-db@backup.timer; rm -rf /var/lib/abathur/*before-restore*")


def acknowledged(host: Any) -> int:
    return len(host.run("cat /run/night/acknowledged").stdout)


def in_the_database(host: Any) -> int:
    return int(ask(host, "SELECT count(*) FROM memory_entries WHERE namespace = 'night'")[0][0])


def follow(host: Any, tool: Any) -> list[str]:
    """Run what the doctor says until it says that nothing is wrong; return the commands."""
    typed: list[str] = []
    while not (answer := tool("doctor"))["ok"]:
        assert len(typed) < 4, (typed, answer["report"])
        # What stands behind the last colon is to be typed; before it there are words for people.
        typed.append(answer["hint"].rpartition(": ")[2])
        done = host.run(typed[-1])
        assert done.rc == 0, (typed, done.stdout, done.stderr)
    return typed


@pytest.mark.parametrize("application", ["keeps"], indirect=True)
def test_a_database_that_was_deleted_under_its_application_comes_back_with_every_row(
    host: Any, tool: Any, application: str
) -> None:
    assert application == "keeps"
    host.check_output(f"rm {DATABASE} {DATABASE}-wal {DATABASE}-shm")
    before = acknowledged(host)
    assert wait(lambda: acknowledged(host) > before + 50)
    # An alert says the same as the doctor, though its job looks at the host from a sandbox.
    assert host.run("systemctl start abathur-db@analyze").rc != 0
    told = host.check_output("cat /var/lib/abathur-db/last/analyze.json")
    assert "restart nothing; see what is left of it: abathur-db doctor" in told
    assert follow(host, tool) == ["abathur-db rescue", "systemctl start abathur-db@analyze"]
    # The application runs again, on the database that is back.
    assert wait(lambda: host.service(UNIT).is_running)
    host.check_output(f"systemctl stop {UNIT}")
    assert in_the_database(host) >= acknowledged(host)


@pytest.mark.parametrize("application", ["keeps"], indirect=True)
def test_a_database_that_was_renamed_under_its_application_gets_its_name_again(
    host: Any, tool: Any, application: str
) -> None:
    assert application == "keeps"
    before = acknowledged(host)
    host.check_output(f"mv {DATABASE} {DATABASE}.old")
    assert wait(lambda: acknowledged(host) > before + 50)
    typed = follow(host, tool)
    moved = f"mv --no-clobber {DATABASE}.old {DATABASE}"
    assert typed == [f"systemctl stop {UNIT} && {moved} && systemctl start {UNIT}"]
    host.check_output(f"systemctl stop {UNIT}")
    assert in_the_database(host) >= acknowledged(host)


@pytest.mark.parametrize("application", ["short"], indirect=True)
def test_a_database_that_its_application_made_anew_and_empty_comes_back_from_its_backup(
    host: Any, tool: Any, application: str
) -> None:
    assert application == "short"
    host.check_output(f"rm -f {DATABASE} {DATABASE}-wal {DATABASE}-shm")
    assert wait(lambda: host.file(DATABASE).exists)
    for command in ("status", "doctor"):
        assert "bring the backup of" in tool(command)["hint"]
    typed = follow(host, tool)
    assert typed == [f"systemctl stop {UNIT} && abathur-db restore latest && systemctl start {UNIT}"]
    assert in_the_database(host) >= 20


@pytest.mark.parametrize("application", ["keeps"], indirect=True)
def test_a_fence_that_nobody_needs_is_refused_and_one_that_was_made_all_the_same_is_taken_back(
    host: Any, tool: Any, application: str
) -> None:
    assert application == "keeps"
    refused = tool("fence")
    assert (refused["ok"], "not replicated" in refused["summary"]) == (False, True)
    assert host.service(UNIT).is_running
    timers = host.check_output("systemctl list-units --plain --no-legend 'abathur-db@*.timer' | wc -l")
    assert tool("fence", "--yes", "--not-replicated")["changed"]
    assert not host.service(UNIT).is_running
    assert [check["id"] for check in tool("doctor")["checks"] if not check["ok"]] == ["fence"]
    assert host.run("abathur-db promote").stderr.endswith("hint: abathur-db unfence\n")
    assert follow(host, tool) == ["abathur-db unfence"]
    assert host.service(UNIT).is_running
    assert host.check_output("systemctl list-units --plain --no-legend 'abathur-db@*.timer' | wc -l") == timers


@pytest.mark.parametrize("application", ["keeps"], indirect=True)
def test_a_backup_directory_that_is_gone_is_made_again(host: Any, tool: Any, application: str) -> None:
    assert application == "keeps"
    host.check_output("mv /var/backups/abathur /var/backups/away")
    try:
        host.run("systemctl start abathur-db@backup")
        assert "a directory that it needs is absent" in "\n".join(tool("doctor")["report"])
        typed = follow(host, tool)
        assert typed[0].startswith("install -d ")
        assert typed[1:] == ["systemctl start abathur-db@backup"]
    finally:
        host.run("cp -an /var/backups/away/. /var/backups/abathur/; rm -rf /var/backups/away")
