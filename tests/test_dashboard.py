"""The Grafana dashboard: queries that Prometheus understands, over metrics that the collector writes."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import yaml
from abathur_db import textfile
from databases import ROOT

DASHBOARD: dict[str, Any] = json.loads((ROOT / "roles/abathur_monitoring/files/abathur-dashboard.json").read_text())
PANELS = DASHBOARD["panels"]
ELSEWHERE = {"backup_age_seconds", "backup_bytes", "backup_maximum_age_seconds", "job_last_success_timestamp_seconds"}
ELSEWHERE |= {"replication_arrived_timestamp_seconds", "replication_lineage", "standby"}
"""Metrics that no panel shows: for the table, for rules, or to ask for by hand."""


def queries() -> dict[str, str]:
    return {f"{panel['title']} {target['refId']}": target["expr"] for panel in PANELS for target in panel["targets"]}


def test_every_metric_of_the_dashboard_is_one_that_the_collector_writes_and_none_is_forgotten() -> None:
    named = set(re.findall(r"abathur_db_(\w+)", json.dumps(DASHBOARD)))
    assert named == set(textfile.HELP) - ELSEWHERE


def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(queries().values())]
    path = tmp_path / "rules.yml"
    path.write_text(yaml.safe_dump({"groups": [{"name": "dashboard", "rules": rules}]}))
    done = subprocess.run(["promtool", "check", "rules", path], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(rules)} rules found" in done.stdout


def test_every_query_asks_for_the_chosen_hosts_only() -> None:
    for title, expr in queries().items():
        assert len(re.findall("abathur_db_", expr)) == len(re.findall(r'\{instance=~"\$instance"', expr)), title


def test_no_two_panels_lie_over_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
