"""What the play takes for the answer of a preflight that was carried to a host, among words of other programs."""

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


def plan(tmp_path: Path, *lines: str) -> Any:
    """Return what the variables of the role make of a terminal's lines."""
    said = {"stdout_lines": lines}
    tasks: list[dict[str, Any]] = [
        {"ansible.builtin.include_vars": str(ROOT / "roles/abathur_db/vars/main.yml")},
        {"ansible.builtin.copy": {"content": "{{ __abathur_db_plan | to_json }}", "dest": str(tmp_path / "plan")}},
    ]
    variables = {"__abathur_db_installed": {"absent": True}, "__abathur_db_carried": said}
    play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "vars": variables, "tasks": tasks}
    (tmp_path / "play.yml").write_text(json.dumps([play]))
    command = [str(Path(sys.executable).with_name("ansible-playbook")), str(tmp_path / "play.yml")]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, text=True, check=False)
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
