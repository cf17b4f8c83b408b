"""The file for node_exporter: what Prometheus' own checker says of it, and how it appears."""

from __future__ import annotations

import stat
import subprocess
from pathlib import Path

import pytest
from abathur_db import metrics, schema, textfile
from abathur_db.config import Config
from abathur_db.textfile import Sample


def test_promtool_finds_no_fault_with_the_textfile(conf: Config) -> None:
    schema.init(conf)
    samples = [Sample(**each) for each in metrics.collect(conf).data["samples"]]
    # Those that a new database of one's own does not have.
    there = {each.name for each in samples}
    samples += [Sample(name, 1, {"job": "backup"}) for name in textfile.HELP if name not in there]
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=textfile.render(samples), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_promtool_finds_a_fault() -> None:
    done = subprocess.run(["promtool", "check", "metrics"], input="abathur_db_x 1\n", text=True, check=False)
    assert done.returncode != 0


def test_a_metric_stands_together_under_its_help_and_its_type() -> None:
    text = textfile.render([Sample("sessions", 2, {"status": "active"}), Sample("up", 1), Sample("sessions", 0.5)])
    assert text.splitlines() == [
        "# HELP abathur_db_up 1 when the database, on a standby its copy, could be opened and read.",
        "# TYPE abathur_db_up gauge",
        "abathur_db_up 1",
        "# HELP abathur_db_sessions Sessions by status.",
        "# TYPE abathur_db_sessions gauge",
        'abathur_db_sessions{status="active"} 2',
        "abathur_db_sessions 0.5",
    ]


@pytest.mark.parametrize(("raw", "written"), [('a"b', 'a\\"b'), ("a\\b", "a\\\\b"), ("a\nb", "a\\nb")])
def test_a_label_of_an_applications_making_cannot_break_a_line(raw: str, written: str) -> None:
    assert str(Sample("tasks", 1, {"status": raw})) == f'abathur_db_tasks{{status="{written}"}} 1'


def test_everybody_can_read_the_textfile_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    path = tmp_path / "abathur.prom"
    (tmp_path / ".abathur.prom.partial").write_text("left by a killed run, for nobody to read")
    (tmp_path / ".abathur.prom.partial").chmod(0o600)
    textfile.write(path, [Sample("up", 1)])
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert path.read_text().endswith("abathur_db_up 1\n")
    assert list(tmp_path.iterdir()) == [path]
