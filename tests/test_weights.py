"""Of several findings the heaviest is told first, by every command and page alike; a cause before its symptom."""

from __future__ import annotations

import itertools
import re
from pathlib import Path

import pytest
from abathur_db import page, weights
from abathur_db.result import Check, summarize
from databases import ROOT

HEAVY_TO_LIGHT = (
    ("deleted_file", "its rows are lost when the application ends"),
    ("tables", "rows are lost"),
    ("owner", "the application cannot write"),
    ("disk_1", "the disk is full"),
    ("free_space", "the disk is full, as status says it"),
    ("backup_directory", "the disk of the backups is not mounted"),
    ("backup_age", "no backup is proven"),
    ("abathur.service", "the application failed"),
    ("timer_drill", "a timer is off"),
    ("job_backup_of_another_kind", "a job failed"),
    ("plan_session_by_id", "an index is absent"),
)


def failed(identity: str) -> Check:
    return Check(identity, False, "well", f"{identity} is not", f"mend {identity}")


@pytest.mark.parametrize(("heavy", "light"), itertools.combinations([name for name, _ in HEAVY_TO_LIGHT], 2))
def test_the_heavier_of_two_is_named_first_everywhere(heavy: str, light: str) -> None:
    checks = [failed(light), failed(heavy)]
    said, hint = summarize("status", checks)
    assert (f"failed at {heavy}:" in said, hint) == (True, f"mend {heavy}")
    data = {"host": "one", "name": "one", "checks": [vars(each) for each in checks], "ok": False, "status": {}}
    assert f"first {heavy}:" in page.sentence(data)
    assert page.failures(data)[0]["id"] == heavy


def test_what_has_no_weight_keeps_its_order_behind_the_others() -> None:
    found = weights.heaviest_first(["one", "two", "job_backup", "three"], str)
    assert found == ["job_backup", "one", "two", "three"]


def test_every_weight_is_of_a_check_that_there_is() -> None:
    source = "\n".join(each.read_text(encoding="utf-8") for each in Path(ROOT / "scripts/abathur_db").glob("*.py"))
    for pattern in itertools.chain(*weights.GROUPS):
        stem = re.escape(pattern.strip("*"))
        assert re.search(rf"[\"'{{]\w*{stem}|\.{stem.lstrip('.')}", source.replace(repr(pattern), "")), pattern
