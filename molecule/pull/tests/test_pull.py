"""Pull mode: a host deploys itself from a git repository, and a bad commit leaves it as it was."""

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
from conftest import ROOT, hosts
from packaging.markers import Marker

PARTS = (".ci", "ansible.cfg", "deploy.yml", "playbooks", "requirements.txt", "roles", "scripts", "sql")
LOCK = ROOT / "roles/abathur_pull/files/requirements.txt"
VARIABLES = {
    "abathur_db_validation_sessions": [2],
    "abathur_db_validation_seconds": 1,
    "abathur_db_validation_p99_ms": 60_000,
}


def puller() -> Any:
    """Return the host that pulls."""
    return hosts()[0]


def name() -> str:
    return str(puller().backend.get_hostname())


class Repository:
    """A repository of an operator's, and its copy on the host, which reaches it without a network."""

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
        """Commit an inventory with these variables, and bring the commit to the host."""
        inventory = self.home / "inventories/production/hosts.json"
        inventory.parent.mkdir(parents=True, exist_ok=True)
        everything = {"hosts": {name(): {}}, "vars": {**VARIABLES, **PULL, **variables}}
        inventory.write_text(json.dumps({"abathur": everything}))
        self._git("add", "--all")
        self._git("commit", "--quiet", "--message", "next", *(["--gpg-sign"] if signed else []))
        self._git("bundle", "create", "--quiet", "../bundle", "main")
        host = puller()
        given(host, self.home.parent / "bundle", "/srv/bundle")
        host.check_output("git init --quiet --bare --initial-branch=main /srv/abathur.git")
        host.check_output("git -C /srv/abathur.git fetch --quiet --force /srv/bundle main:main")


PULL = {"abathur_pull_repository": "file:///srv/abathur.git"}


def given(host: Any, source: Path | str, target: str) -> None:
    """Copy a file to a host."""
    host.ansible("ansible.builtin.copy", f"src={source} dest={target} mode=preserve", check=False)


def locked(version: str) -> str:
    """Return what the lock file pins for a version of Python: pip goes by the Python that it runs with."""
    wanted = {"python_version": version, "python_full_version": f"{version}.0"}
    pins = []
    for each in re.split(r"\n(?=\w)", LOCK.read_text()):
        name, _, marker = each.partition(" \\\n")[0].partition(" ; ")
        if not marker or Marker(marker).evaluate(wanted):
            pins.append(each.replace(f" ; {marker}", "", 1) if marker else each)
        assert "==" in name
    return "\n".join(pins)


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a directory with the packages that the lock names, for the host's Python."""
    home = tmp_path_factory.mktemp("wheels")
    tags = [f"--platform=manylinux{each}_{platform.machine()}" for each in ("2014", "_2_17", "_2_28")]
    version = puller().check_output("python3 -c 'import sys; print(*sys.version_info[:2], sep=\".\")'")
    lock = home / "lock.txt"
    lock.write_text(locked(version))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--require-hashes", "--only-binary=:all:"]
    subprocess.run([*command, f"--python-version={version}", *tags, "-r", lock, "-d", home], check=True)
    return home


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory, wheels: Path) -> Iterator[Repository]:
    """Set the host up to pull, by the playbook, and give the repository that it pulls from."""
    host = puller()
    host.check_output("mkdir -p /srv/wheels")
    given(host, f"{wheels}/", "/srv/wheels/")
    host.check_output("printf '[global]\\nno-index = true\\nfind-links = /srv/wheels\\n' > /etc/pip.conf")
    arguments = ["playbooks/pull.yml", "--limit", name(), "-e", json.dumps(PULL)]
    command = ["ansible-playbook", "-i", os.environ["MOLECULE_INVENTORY_FILE"], *arguments]
    # With git on the host, but no repository there yet.
    refused = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    said = " ".join(refused.stdout.split()).replace("''", "'")
    assert "cannot be asked by this host: fatal: '/srv/abathur.git' does not appear to be" in said
    assert not host.file("/etc/systemd/system/abathur-pull.timer").exists
    made = Repository(tmp_path_factory.mktemp("operator"))
    made.commit()
    subprocess.run(command, cwd=ROOT, check=True)
    yield made
    host.run("systemctl disable --now abathur-pull.timer")


def pulled() -> bool:
    """Let the host pull now; return whether that went well."""
    return bool(puller().run("systemctl start abathur-pull").rc == 0)


def limit() -> str:
    """Return what tells the commits of these tests apart, a limit in the host's configuration."""
    return str(puller().check_output("sed -n 's/^wal_limit_mb = //p' /etc/abathur-db.toml"))


def journal(unit: str, *arguments: str) -> str:
    """Return what a unit said."""
    return str(puller().check_output(f"journalctl --no-pager -o cat {' '.join(arguments)} -u {unit}"))


def test_a_host_deploys_itself_from_the_repository_by_its_timer(repository: Repository) -> None:
    repository.commit(abathur_db_wal_limit_mb=91)
    assert pulled(), journal("abathur-pull")
    assert limit() == "91"
    assert "abathur-pull.timer" in puller().check_output("systemctl list-timers abathur-pull.timer")
    assert puller().run("abathur-db status").rc == 0
    assert re.search(rf"{name()} +deployed +release ", journal("abathur-pull"))


@pytest.mark.usefixtures("repository")
def test_a_pull_repairs_what_differs_and_says_when_nothing_does() -> None:
    puller().check_output("systemctl disable --now abathur-db@vacuum.timer")
    assert pulled()
    assert puller().service("abathur-db@vacuum.timer").is_enabled
    assert pulled()
    assert "1 host: 1 unchanged" in journal("abathur-pull", "-n 20")


def test_a_bad_commit_leaves_the_host_as_it_was_and_is_an_alert(repository: Repository) -> None:
    release = "readlink /opt/abathur-db/current"
    before = puller().check_output(release)
    repository.commit(abathur_db_wal_limit_mb=92, abathur_db_validation_p99_ms=0)
    assert not pulled()
    assert limit() == "91"
    assert puller().check_output(release) == before
    assert puller().run("abathur-db status").rc == 0
    told = journal("abathur-db-alert@pull", "-p err")
    assert "job pull failed: ended with exit-code 2" in told
    assert "hint: see why: journalctl -u abathur-pull -n 50" in told


def test_a_commit_that_is_no_playbook_leaves_the_host_as_it_was(repository: Repository) -> None:
    sound = (repository.home / "playbooks/deploy.yml").read_text()
    (repository.home / "playbooks/deploy.yml").write_text("- hosts: [")
    repository.commit(abathur_db_wal_limit_mb=93)
    (repository.home / "playbooks/deploy.yml").write_text(sound)
    assert not pulled()
    assert limit() == "91"


def test_a_commit_that_names_what_is_not_there_cuts_no_host_off(repository: Repository) -> None:
    """The host would ask there alone from then on, and no later commit would reach it."""
    for wrong, says in (
        ({"abathur_pull_version": "ain"}, "file:///srv/abathur.git has no branch and no tag ain"),
        ({"abathur_pull_repository": "file:///srv/none.git"}, "file:///srv/none.git cannot be asked by this host"),
    ):
        repository.commit(abathur_db_wal_limit_mb=97, **wrong)
        assert not pulled()
        told = " ".join(journal("abathur-pull", "-n 60").split())
        assert says in told
        assert "What pulls was not changed" in told
    repository.commit(abathur_db_wal_limit_mb=90)
    assert (pulled(), limit()) == (True, "90")


@pytest.mark.usefixtures("repository")
def test_a_rollback_is_not_undone_by_the_next_pull(playbook: Any) -> None:
    assert limit() == "90"
    done = playbook("rollback.yml", "--limit", name())
    assert done.returncode == 0, done.stdout
    assert "pulling is paused" in " ".join(done.stdout.split())
    assert limit() == "91"
    assert not puller().service("abathur-pull.timer").is_enabled
    assert not puller().service("abathur-pull.timer").is_running
    puller().check_output("systemctl enable --now abathur-pull.timer")


def test_with_signatures_only_a_signed_commit_is_deployed(repository: Repository) -> None:
    key = repository.key.with_suffix(".pub").read_text().strip()
    host = puller()
    host.check_output(f"echo 'operator@example.org {key}' > /root/signers")
    host.check_output("git config --global gpg.format ssh")
    host.check_output("git config --global gpg.ssh.allowedSignersFile /root/signers")
    repository.commit(signed=True, abathur_db_wal_limit_mb=94, abathur_pull_verify_commit=True)
    assert (pulled(), limit()) == (True, "94")
    repository.commit(abathur_db_wal_limit_mb=95, abathur_pull_verify_commit=True)
    assert (pulled(), limit()) == (False, "94")
    repository.commit(signed=True, abathur_db_wal_limit_mb=96, abathur_pull_verify_commit=True)
    assert (pulled(), limit()) == (True, "96")


@pytest.mark.usefixtures("repository")
def test_a_host_that_the_bundle_was_removed_from_pulls_no_more(playbook: Any) -> None:
    host = puller()
    host.check_output("systemctl start --no-block abathur-pull")
    done = playbook("playbooks/remove.yml", "--limit", name())
    assert done.returncode == 0, done.stdout
    assert host.check_output("systemctl list-units --all --no-legend --plain 'abathur-*'") == ""
    assert host.run("pgrep --full '[a]nsible-pull'").failed
    assert not host.file("/opt/abathur-pull").exists
    assert host.file("/var/lib/abathur/abathur.db").exists
