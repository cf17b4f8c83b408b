"""Pull mode on Debian 12 and 13: a host deploys itself from a git repository, and a bad commit leaves it as it was."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import testinfra
from conftest import ROOT

PARTS = (".ci", "ansible.cfg", "deploy.yml", "playbooks", "requirements.txt", "roles", "scripts", "sql")
LOCK = ROOT / "roles/abathur_pull/files/requirements.txt"
NAMES = ("fleet-4-debian12", "fleet-5-debian13")
VARIABLES = {"abathur_db_validation_sessions": [2], "abathur_db_validation_seconds": 1}


def hosts() -> list[Any]:
    """Return the two hosts that pull."""
    path = os.environ["MOLECULE_INVENTORY_FILE"]
    return [testinfra.get_host(f"ansible://{name}", ansible_inventory=path) for name in NAMES]


class Repository:
    """A repository of an operator's, and its copies on the hosts, which they reach without a network."""

    def __init__(self, home: Path) -> None:
        """Begin with this checkout and a key to sign with."""
        self.home = home / "repository"
        self.home.mkdir()
        for part in PARTS:
            copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
            copy(ROOT / part, self.home / part)
        self.key = home / "key"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", self.key], check=True)
        self._git("init", "--quiet", "--initial-branch=main")

    def _git(self, *arguments: str) -> None:
        who = ("-c", "user.name=Operator", "-c", "user.email=operator@example.org")
        signing = ("-c", "gpg.format=ssh", "-c", f"user.signingkey={self.key}")
        subprocess.run(["git", "-C", self.home, *who, *signing, *arguments], check=True)

    def commit(self, *, signed: bool = False, **variables: object) -> None:
        """Commit an inventory with these variables, and bring the commit to the hosts."""
        inventory = self.home / "inventories/production/hosts.json"
        inventory.parent.mkdir(parents=True, exist_ok=True)
        everything = {"hosts": {name: {} for name in NAMES}, "vars": {**VARIABLES, **PULL, **variables}}
        inventory.write_text(json.dumps({"abathur": everything}))
        self._git("add", "--all")
        self._git("commit", "--quiet", "--message", "next", *(["--gpg-sign"] if signed else []))
        self._git("bundle", "create", "--quiet", "../bundle", "main")
        for host in hosts():
            given(host, self.home.parent / "bundle", "/srv/bundle")
            host.check_output("git init --quiet --bare --initial-branch=main /srv/abathur.git")
            host.check_output("git -C /srv/abathur.git fetch --quiet --force /srv/bundle main:main")


PULL = {"abathur_pull_repository": "file:///srv/abathur.git"}


def given(host: Any, source: Path, target: str) -> None:
    """Copy a file to a host."""
    host.ansible("ansible.builtin.copy", f"src={source} dest={target} mode=preserve", check=False)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the packages that the lock names, for Python 3.11 and 3.13."""
    home = tmp_path_factory.mktemp("wheels")
    tags = [f"--platform=manylinux{each}_{platform.machine()}" for each in ("2014", "_2_17", "_2_28")]
    for version in ("3.11", "3.13"):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes", "--only-binary=:all:"]
        subprocess.run([*command, f"--python-version={version}", *tags, "-r", LOCK, "-d", home], check=True)
    return home


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Iterator[Repository]:
    """Set the hosts up to pull, by the playbook, and give the repository that they pull from."""
    for host in hosts():
        host.check_output("mkdir -p /srv/wheels")
        given(host, f"{wheels}/", "/srv/wheels/")  # type: ignore[arg-type]
        host.check_output("printf '[global]\\nno-index = true\\nfind-links = /srv/wheels\\n' > /etc/pip.conf")
    arguments = ["playbooks/pull.yml", "--limit", ",".join(NAMES), "-e", json.dumps(PULL)]
    inventory = ("-i", os.environ["MOLECULE_INVENTORY_FILE"])
    subprocess.run(["ansible-playbook", *inventory, *arguments], cwd=ROOT, check=True)
    yield Repository(tmp_path_factory.mktemp("operator"))
    for host in hosts():
        host.check_output("systemctl disable --now abathur-pull.timer")


def pulled(host: Any) -> bool:
    """Let a host pull now; return whether that went well."""
    return bool(host.run("systemctl start abathur-pull").rc == 0)


def limit(host: Any) -> str:
    """Return what tells the commits of these tests apart, a limit in the host's configuration."""
    return str(host.check_output("sed -n 's/^wal_limit_mb = //p' /etc/abathur-db.toml"))


def alerts(host: Any) -> str:
    """Return what was told of pulls that failed."""
    return str(host.check_output("journalctl --no-pager -o cat -p err -u abathur-db-alert@pull"))


def test_a_host_deploys_itself_from_the_repository_by_its_timer(repository: Repository) -> None:
    repository.commit(abathur_db_wal_limit_mb=91)
    for host in hosts():
        assert "abathur-pull.timer" in host.check_output("systemctl list-timers abathur-pull.timer")
        assert pulled(host), host.check_output("journalctl --no-pager -o cat -u abathur-pull")
        assert limit(host) == "91"
        assert host.run("abathur-db status").rc == 0
        said = host.check_output("journalctl --no-pager -o cat -u abathur-pull")
        assert re.search(r"fleet-\d-debian\d+ +deployed +release ", said)


def test_a_pull_repairs_what_differs_and_says_when_nothing_does(repository: Repository) -> None:  # noqa: ARG001
    for host in hosts():
        host.check_output("systemctl disable --now abathur-db@vacuum.timer")
        assert pulled(host)
        assert host.service("abathur-db@vacuum.timer").is_enabled
        assert pulled(host)
        assert "1 hosts: 1 unchanged" in host.check_output("journalctl --no-pager -o cat -n 20 -u abathur-pull")


def test_a_bad_commit_leaves_the_host_as_it_was_and_is_an_alert(repository: Repository) -> None:
    repository.commit(abathur_db_wal_limit_mb=92, abathur_db_validation_p99_ms=0)
    for host in hosts():
        release = host.check_output("readlink /opt/abathur-db/current")
        assert not pulled(host)
        assert limit(host) == "91"
        assert host.check_output("readlink /opt/abathur-db/current") == release
        assert host.run("abathur-db status").rc == 0
        assert "job pull failed: ended with exit-code 2" in alerts(host)
        assert "hint: see why: journalctl -u abathur-pull -n 50" in alerts(host)


def test_a_commit_that_is_no_playbook_leaves_the_host_as_it_was(repository: Repository) -> None:
    sound = (repository.home / "playbooks/deploy.yml").read_text()
    (repository.home / "playbooks/deploy.yml").write_text("- hosts: [")
    repository.commit(abathur_db_wal_limit_mb=93)
    (repository.home / "playbooks/deploy.yml").write_text(sound)
    for host in hosts():
        assert not pulled(host)
        assert limit(host) == "91"


def test_with_signatures_only_a_signed_commit_is_deployed(repository: Repository) -> None:
    key = repository.key.with_suffix(".pub").read_text().strip()
    for host in hosts():
        host.check_output(f"echo 'operator@example.org {key}' > /root/signers")
        host.check_output("git config --global gpg.format ssh")
        host.check_output("git config --global gpg.ssh.allowedSignersFile /root/signers")
    repository.commit(signed=True, abathur_db_wal_limit_mb=94, abathur_pull_verify_commit=True)
    assert [(pulled(host), limit(host)) for host in hosts()] == [(True, "94")] * 2
    repository.commit(abathur_db_wal_limit_mb=95, abathur_pull_verify_commit=True)
    assert [(pulled(host), limit(host)) for host in hosts()] == [(False, "94")] * 2
    repository.commit(signed=True, abathur_db_wal_limit_mb=96, abathur_pull_verify_commit=True)
    assert [(pulled(host), limit(host)) for host in hosts()] == [(True, "96")] * 2
