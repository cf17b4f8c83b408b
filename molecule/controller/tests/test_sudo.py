"""A host as a cloud makes it: an operator who is not root, sudo, and a name that does not resolve."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

SUDO = ("-e", "ansible_user=ops", "-e", "ansible_become=true")


@pytest.fixture
def cloud(host: Any) -> Iterator[Any]:
    """Give the host an operator with sudo, and the name that a cloud gives; takes both away again."""
    name = host.check_output("hostname")
    host.check_output("apt-get update -qq && apt-get install -y -qq --no-install-recommends sudo")
    host.check_output(
        "useradd -m ops && echo 'ops ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/ops"
        " && install -d -o ops -m 0700 ~ops/.ssh && install -o ops -m 0600 ~/.ssh/authorized_keys ~ops/.ssh/"
        " && hostname ip-10-0-0-7"
    )
    try:
        yield host
    finally:
        host.check_output(f"hostname {name} && userdel -fr ops && rm /etc/sudoers.d/ops")


def test_sudo_that_has_words_of_its_own_spoils_no_answer(cloud: Any, playbook: Any) -> None:
    said = cloud.run("runuser -u ops -- sudo true").stderr
    assert "unable to resolve host ip-10-0-0-7" in said
    for name, also in (
        ("deploy.yml", ("-e", "abathur_db_wal_limit_mb=92")),
        ("playbooks/validate.yml", ()),
        ("playbooks/backup.yml", ()),
        ("deploy.yml", ("--check",)),
        ("rollback.yml", ()),
    ):
        done = playbook(name, *SUDO, *also)
        assert done.returncode == 0, done.stdout + done.stderr
        assert "from_json" not in done.stdout
    assert "wal_limit_mb = 100" in cloud.file("/etc/abathur-db.toml").content_string
