"""What plays take for a preflight's answer, among words of other programs; and what a role says that runs alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from databases import ROOT

pytestmark = pytest.mark.engine

ANSWER = {"command": "preflight", "ok": True, "summary": "all 20 checks passed", "data": {"drift": {}}}
SUDO = "sudo: unable to resolve host ip-10-0-0-7: Name or service not known"


def played(tmp_path: Path, **play: Any) -> subprocess.CompletedProcess[str]:
    """Run a play against this machine, with the roles of this checkout."""
    everything = {"hosts": "localhost", "connection": "local", "gather_facts": False, **play}
    (tmp_path / "play.yml").write_text(json.dumps([everything]))
    command = [str(Path(sys.executable).with_name("ansible-playbook")), str(tmp_path / "play.yml")]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ANSIBLE_ROLES_PATH": str(ROOT / "roles")}
    return subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)


def plan(tmp_path: Path, *lines: str) -> Any:
    """Return what the variables of the role make of a terminal's lines."""
    said = {"stdout_lines": lines}
    tasks: list[dict[str, Any]] = [
        {"ansible.builtin.include_vars": str(ROOT / "roles/abathur_db/vars/main.yml")},
        {"ansible.builtin.copy": {"content": "{{ __abathur_db_plan | to_json }}", "dest": str(tmp_path / "plan")}},
    ]
    variables = {"__abathur_db_installed": {"absent": True}, "__abathur_db_carried": said}
    done = played(tmp_path, vars=variables, tasks=tasks)
    assert done.returncode == 0, done.stdout
    return json.loads((tmp_path / "plan").read_text())


@pytest.mark.parametrize(
    ("lines", "taken"),
    [
        ([json.dumps(ANSWER)], ANSWER),
        # Cloud images: the script action asks for a terminal, where sudo's own words come as well.
        ([SUDO, json.dumps(ANSWER), "Connection to host closed."], ANSWER),
        (["Traceback (most recent call last):", '{"command'], {}),
        ([], {}),
    ],
    ids=["the answer alone", "sudo's words around it", "no answer", "nothing at all"],
)
def test_the_answer_is_the_line_that_is_one(tmp_path: Path, lines: list[str], taken: Any) -> None:
    assert plan(tmp_path, *lines) == taken


@pytest.mark.parametrize(
    ("role", "says"),
    [
        (
            "abathur_db",
            "The role abathur_db works from what its preflight.yml finds out, which did not run in this play",
        ),
        ("abathur_maintenance", "The role abathur_maintenance works from what its state.yml finds out"),
        ("abathur_monitoring", "abathur_db_metrics_textfile is empty, so there is nothing to read"),
    ],
)
def test_a_role_in_a_play_of_one_s_own_says_what_it_needs(tmp_path: Path, role: str, says: str) -> None:
    done = played(tmp_path, roles=[role])
    assert done.returncode != 0
    assert says in " ".join(done.stdout.split()), done.stdout
    assert "changed=0" in done.stdout
