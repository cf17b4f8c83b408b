"""What a run of the tests says of its parts: real runs of pytest, and a run before."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import timings

pytestmark = pytest.mark.engine

TESTS = """
import time

def test_that_takes_its_time():
    time.sleep(0.3)

def test_that_is_quick():
    assert {quick}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return where the figures of this test are kept."""
    monkeypatch.setattr(timings, "FOLDER", tmp_path / "timings")
    return tmp_path


def run(folder: Path, name: str, *, quick: bool) -> int:
    """Run two tests as a part of the run `mine`."""
    (folder / f"test_{name}.py").write_text(TESTS.format(quick=quick))
    return timings.part(
        "mine", name, [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(folder / f"test_{name}.py")]
    )


def kept(folder: Path) -> dict[str, dict[str, float]]:
    parts: dict[str, dict[str, float]] = json.loads((folder / "timings/mine.json").read_text())["parts"]
    return parts


def test_a_report_names_each_part_with_its_tests_and_the_slowest_first(folder: Path) -> None:
    assert run(folder, "one", quick=True) == 0
    assert run(folder, "two", quick=False) == 1
    said = timings.report("mine").splitlines()
    parts = {line.split()[0]: line.split()[1:] for line in said[1:4]}
    assert parts["one"][1:] == ["2"]
    assert parts["two"][1:] == ["2", "FAILED"]
    assert parts["mine"][1:] == ["4"]
    slowest = said[said.index("slowest tests") + 1 :]
    assert all("test_that_takes_its_time" in line for line in slowest[:2])
    assert set(kept(folder)) == {"one", "two"}


@pytest.mark.parametrize(("factor", "told"), [(0.1, True), (0.9, False)])
def test_a_part_that_became_slower_by_half_is_said(folder: Path, factor: float, told: bool) -> None:
    (folder / "timings/mine").mkdir(parents=True)
    (folder / "timings/mine/part.json").write_text(json.dumps({"begun": 0, "ended": 60, "ok": True}))
    timings.report("mine")
    before = kept(folder) | {"part": {"seconds": 60 * factor, "tests": 0, "ok": True}}
    (folder / "timings/mine.json").write_text(json.dumps({"seconds": 60, "parts": before}))
    said = timings.report("mine")
    assert ("slower by more than half: part, 60 s, before 6 s" in said) == told
    assert ("slower by more than half" in said) == told


def test_a_run_that_begins_forgets_the_parts_of_the_one_before(folder: Path) -> None:
    timings.part("mine", "gone", [sys.executable, "-c", ""])
    timings.begin("mine")
    timings.part("mine", "new", [sys.executable, "-c", ""])
    timings.report("mine")
    assert set(kept(folder)) == {"new"}


def test_a_part_that_was_cut_has_no_tests_and_stops_no_report(folder: Path) -> None:
    timings.part("mine", "cut", [sys.executable, "-c", ""])
    (folder / "timings/mine/cut.xml").write_text("<testsuites><testsu")
    assert "cut" in timings.report("mine")
