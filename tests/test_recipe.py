"""The README's recipe for a job, followed in a copy of this checkout: what compares facts there is content."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from databases import ROOT

NOT_COPIED = shutil.ignore_patterns(".git", ".venv", ".cache", ".*_cache", "__pycache__", "dist", "reports")


def insert(path: Path, before: str, text: str) -> None:
    """Put text in front of the first line that is `before`."""
    lines = path.read_text().splitlines(keepends=True)
    lines.insert(next(number for number, line in enumerate(lines) if line.strip() == before), text)
    path.write_text("".join(lines))


def test_a_job_is_added_by_following_the_recipe(tmp_path: Path) -> None:
    copy = tmp_path / "checkout"
    shutil.copytree(ROOT, copy, ignore=NOT_COPIED)
    row = 'optimize: {calendar: "*-*-* 07:30:00 UTC"}\n'
    command = (
        '    "optimize": Command("maintenance:analyze", "a job of ours", lock=True, dry_run=True, recorded=True),\n'
    )
    insert(copy / "scripts/abathur_db/cli.py", '"vacuum": Command(', command)
    insert(copy / "roles/abathur_maintenance/defaults/main.yml", "analyze:", f"  {row}")
    example = copy / "inventories/example/group_vars/abathur.yml"
    insert(example, '#   analyze: {calendar: "Sun *-*-* 03:30:00 UTC"}', f"#   {row}")
    insert(copy / "roles/abathur_maintenance/meta/argument_specs.yml", "prune: *job", "          optimize: *job\n")
    # What lies in this copy is no source of ours whose lines count.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    environment["PYTHONPATH"] = f"{copy}:{copy}/scripts"
    for module in ([str(copy / "scripts/docs.py")], ["-m", "pytest", "-q", "-p", "no:xdist", "tests/test_contract.py"]):
        done = subprocess.run(
            [sys.executable, *module], cwd=copy, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert "abathur-db optimize" in (copy / "README.md").read_text()
