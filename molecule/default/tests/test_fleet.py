"""Two hosts, and one that does not answer: the pages of a fleet, and a deploy to some of it."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

from conftest import hosts


def test_each_host_has_its_page_and_the_worst_is_first(playbook: Any, tmp_path: Path) -> None:
    silent = "abathur:\n  hosts:\n    silent:\n      ansible_host: 127.0.0.1\n      ansible_port: 1\n"
    (tmp_path / "more.yml").write_text(silent)
    directory = tmp_path / "reports"
    variables = json.dumps({"abathur_validation_report_directory": str(directory)})
    sick = hosts()[0]
    sick.check_output("systemctl disable --now abathur-db@vacuum.timer")
    try:
        done = playbook("playbooks/report.yml", "-i", str(tmp_path / "more.yml"), "-e", variables)
    finally:
        sick.check_output("systemctl enable --now abathur-db@vacuum.timer")
    assert done.returncode == 0, done.stdout
    assert "changed=0" in done.stdout
    assert "3 hosts, 2 in need of attention: silent, " in done.stdout
    fleet = (directory / "fleet.html").read_text()
    names = [f"{os.environ['MOLECULE_SCENARIO_NAME']}-{suite}" for suite in ("bookworm", "trixie")]
    bad = next(name for name in names if not json.loads((directory / name / "report.json").read_text())["ok"])
    order = [fleet.index(f">{name}<") for name in ("silent", bad, next(name for name in names if name != bad))]
    assert order == sorted(order)
    assert "no answer" in fleet
    assert "Connection refused" in fleet
    assert "Timer vacuum: disabled" in fleet
    assert not (directory / "silent" / "report.html").exists()
    for name in names:
        page = (directory / name / "report.html").read_text()
        assert f"<title>{name}: " in page
        assert "<script" not in page


def test_limit_and_tags_narrow_a_deploy(playbook: Any) -> None:
    done = playbook("deploy.yml", "--limit", "*-bookworm", "--tags", "schema")
    assert done.returncode == 0, done.stdout
    assert "trixie" not in done.stdout
    assert "TASK [abathur_validation : Validate the database]" not in done.stdout
    assert re.search(r"^default-bookworm .*changed=0 ", done.stdout, re.MULTILINE)
