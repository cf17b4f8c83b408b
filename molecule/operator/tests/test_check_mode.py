"""Check mode of every state that a deploy repairs: it fails for none, changes nothing, and says what would be."""

from __future__ import annotations

import re
from typing import Any

import pytest
from conftest import DATABASE, ask

REPAIRED = {
    "a stopped timer": "systemctl disable --now abathur-db@vacuum.timer",
    "a unit that is gone": "rm /etc/systemd/system/abathur-db-ping@.service",
    "a directory open to others": "chmod 0755 /var/lib/abathur",
    "another configuration": "sed -i 's/^wal_limit_mb = .*/wal_limit_mb = 7/' /etc/abathur-db.toml",
    "no tool on the path": "rm /usr/local/bin/abathur-db",
    "a release that is gone": "rm -r $(readlink -f /opt/abathur-db/current)",
    "a package that is gone": "dpkg --purge --force-depends zstd",
}
NO_INDEX = "runuser -u abathur -- python3 -c \"import sqlite3; sqlite3.connect('{}').execute('DROP INDEX {}')\""
INDEX = NO_INDEX.format(DATABASE, "idx_tasks_parent")
"""Alone: the release is the same then, and the database is what changes."""


@pytest.mark.parametrize(
    "broken",
    [[REPAIRED["a stopped timer"]], [INDEX], [*REPAIRED.values(), INDEX]],
    ids=["a timer alone", "an index alone", "all at once"],
)
def test_check_mode_says_what_would_be_done_and_the_deploy_does_it(host: Any, playbook: Any, broken: list[str]) -> None:
    for command in broken:
        host.check_output(command)
    before = host.check_output("find /etc/systemd/system /opt/abathur-db /etc/abathur-db.toml -printf '%p %m %T@\n'")
    checked = playbook("deploy.yml", "--check", "--diff")
    assert checked.returncode == 0, checked.stdout
    assert re.search(r"^operator-\S+ +would be deployed", checked.stdout, re.MULTILINE), checked.stdout
    after = host.check_output("find /etc/systemd/system /opt/abathur-db /etc/abathur-db.toml -printf '%p %m %T@\n'")
    assert after == before
    deployed = playbook("deploy.yml")
    assert deployed.returncode == 0, deployed.stdout
    assert ask(host, "SELECT count(*) FROM sqlite_master WHERE name = 'idx_tasks_parent'") == [[1]]
    assert host.service("abathur-db@vacuum.timer").is_enabled
    assert re.search(r"^operator-\S+ +unchanged", playbook("deploy.yml").stdout, re.MULTILINE)
