"""The oldest ansible-core that is promised deploys and says why it fails; an older one is refused."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import ROOT

LOCK = ROOT / "molecule/controller/oldest.txt"


@pytest.fixture(scope="module")
def oldest() -> Path:
    """Return ansible-playbook of the oldest version, in an environment that is made once for each lock file."""
    home = ROOT / ".cache/oldest"
    if not (home / "lock").exists() or (home / "lock").stat().st_mtime < LOCK.stat().st_mtime:
        subprocess.run([ROOT / ".ci/venv", sys.base_prefix + "/bin/python3", home, LOCK], check=True)
    return home / "bin/ansible-playbook"


def test_the_oldest_ansible_deploys_and_its_summary_has_reasons(playbook: Any, oldest: Path) -> None:
    done = playbook("deploy.yml", "-e", "abathur_db_wal_limit_mb=93", program=oldest)
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"^controller-\S+ +deployed +release ", done.stdout, re.MULTILINE)
    failed = playbook("deploy.yml", "-e", "abathur_db_minimum_free_mb=99000000", program=oldest)
    assert failed.returncode != 0
    told = re.search(r"^controller-\S+ +failed +(.*)$", failed.stdout, re.MULTILINE)
    assert told is not None, failed.stdout
    assert told[1].startswith("preflight failed at data_free_space: ")
    assert "WARNING" not in failed.stderr
    back = playbook("deploy.yml")
    assert back.returncode == 0, back.stdout


def test_an_ansible_that_is_too_old_is_refused_first_of_all(playbook: Any, tmp_path: Path) -> None:
    """Tried with 2.14, which Debian 12 has; here the least that is asked for is one that nobody has."""
    for part in ("ansible.cfg", "deploy.yml", "playbooks", "roles"):
        copy = shutil.copytree if (ROOT / part).is_dir() else shutil.copy
        copy(ROOT / part, tmp_path / part)
    first = tmp_path / "playbooks/inventory.yml"
    first.write_text(first.read_text().replace("2.17", "9.9"))
    done = playbook("deploy.yml", root=tmp_path)
    assert done.returncode != 0
    assert re.search(
        r"This is ansible-core 2\.\d+\.\d+, and the playbooks need 9\.9 or later, so nothing was", done.stdout
    )
    assert "TASK [abathur" not in done.stdout
