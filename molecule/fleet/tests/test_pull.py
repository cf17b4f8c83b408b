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
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import testinfra
from conftest import ROOT

PARTS = (".ci", "ansible.cfg", "deploy.yml", "playbooks", "requirements.txt", "roles", "scripts", "sql")
LOCK = ROOT / "roles/abathur_pull/files/requirements.txt"
NAMES = ("fleet-4-debian12", "fleet-5-debian13")
VARIABLES = {
    "abathur_db_validation_sessions": [2],
    "abathur_db_validation_seconds": 1,
    "abathur_db_validation_p99_ms": 60_000,
}


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
        host.run("systemctl disable --now abathur-pull.timer")


def pulled() -> list[bool]:
    """Let the hosts pull now, both at a time; return of each whether that went well."""
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda host: host.run("systemctl start abathur-pull").rc == 0, hosts()))


def limits() -> list[str]:
    """Return what tells the commits of these tests apart, a limit in the configuration of each host."""
    return [host.check_output("sed -n 's/^wal_limit_mb = //p' /etc/abathur-db.toml") for host in hosts()]


def releases() -> list[str]:
    """Return the release that each host runs."""
    return [host.check_output("readlink /opt/abathur-db/current") for host in hosts()]


def journals(unit: str, *arguments: str) -> list[str]:
    """Return what a unit said on each host."""
    return [host.check_output(f"journalctl --no-pager -o cat {' '.join(arguments)} -u {unit}") for host in hosts()]


def test_a_host_deploys_itself_from_the_repository_by_its_timer(repository: Repository) -> None:
    repository.commit(abathur_db_wal_limit_mb=91)
    assert pulled() == [True, True], journals("abathur-pull")
    assert limits() == ["91", "91"]
    for host, said in zip(hosts(), journals("abathur-pull"), strict=True):
        assert "abathur-pull.timer" in host.check_output("systemctl list-timers abathur-pull.timer")
        assert host.run("abathur-db status").rc == 0
        assert re.search(r"fleet-\d-debian\d+ +deployed +release ", said)


def test_a_pull_repairs_what_differs_and_says_when_nothing_does(repository: Repository) -> None:  # noqa: ARG001
    for host in hosts():
        host.check_output("systemctl disable --now abathur-db@vacuum.timer")
    assert pulled() == [True, True]
    assert all(host.service("abathur-db@vacuum.timer").is_enabled for host in hosts())
    assert pulled() == [True, True]
    assert ["1 host: 1 unchanged" in said for said in journals("abathur-pull", "-n 20")] == [True, True]


def test_a_bad_commit_leaves_the_host_as_it_was_and_is_an_alert(repository: Repository) -> None:
    before = releases()
    repository.commit(abathur_db_wal_limit_mb=92, abathur_db_validation_p99_ms=0)
    assert pulled() == [False, False]
    assert limits() == ["91", "91"]
    assert releases() == before
    assert all(host.run("abathur-db status").rc == 0 for host in hosts())
    for told in journals("abathur-db-alert@pull", "-p err"):
        assert "job pull failed: ended with exit-code 2" in told
        assert "hint: see why: journalctl -u abathur-pull -n 50" in told


def test_a_commit_that_is_no_playbook_leaves_the_host_as_it_was(repository: Repository) -> None:
    sound = (repository.home / "playbooks/deploy.yml").read_text()
    (repository.home / "playbooks/deploy.yml").write_text("- hosts: [")
    repository.commit(abathur_db_wal_limit_mb=93)
    (repository.home / "playbooks/deploy.yml").write_text(sound)
    assert pulled() == [False, False]
    assert limits() == ["91", "91"]


def test_with_signatures_only_a_signed_commit_is_deployed(repository: Repository) -> None:
    key = repository.key.with_suffix(".pub").read_text().strip()
    for host in hosts():
        host.check_output(f"echo 'operator@example.org {key}' > /root/signers")
        host.check_output("git config --global gpg.format ssh")
        host.check_output("git config --global gpg.ssh.allowedSignersFile /root/signers")
    repository.commit(signed=True, abathur_db_wal_limit_mb=94, abathur_pull_verify_commit=True)
    assert (pulled(), limits()) == ([True, True], ["94", "94"])
    repository.commit(abathur_db_wal_limit_mb=95, abathur_pull_verify_commit=True)
    assert (pulled(), limits()) == ([False, False], ["94", "94"])
    repository.commit(signed=True, abathur_db_wal_limit_mb=96, abathur_pull_verify_commit=True)
    assert (pulled(), limits()) == ([True, True], ["96", "96"])


def test_a_host_that_the_bundle_was_removed_from_pulls_no_more(repository: Repository, playbook: Any) -> None:  # noqa: ARG001
    for host in hosts():
        host.check_output("systemctl start --no-block abathur-pull")
    done = playbook("playbooks/remove.yml", "--limit", ",".join(NAMES))
    assert done.returncode == 0, done.stdout
    for host in hosts():
        assert host.check_output("systemctl list-units --all --no-legend --plain 'abathur-*'") == ""
        assert host.run("pgrep --full '[a]nsible-pull'").failed
        assert not host.file("/opt/abathur-pull").exists
        assert host.file("/var/lib/abathur/abathur.db").exists
