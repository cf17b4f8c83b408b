"""The alert rules, evaluated by Prometheus itself: each fires when its cause is there, and clears when it is gone."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from abathur_db import gauges, textfile
from databases import ROOT

RULES = ROOT / "roles/abathur_monitoring/files/abathur.rules.yml"
HOST = 'instance="a:9100",job="node"'
HOUR = 12
"""Collections in an hour."""


def alerts() -> dict[str, Any]:
    return {rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]}


@dataclass(frozen=True)
class Case:
    """Series by name and further labels, a value per 5 minutes in promtool's notation, and when the alert fires.

    `fires` and `quiet` are numbers of collections; `labels` tell what the alert is about.
    """

    series: dict[str, str]
    fires: tuple[int, ...]
    quiet: tuple[int, ...]
    labels: dict[str, str] = field(default_factory=dict)


def level(*steps: tuple[float, int]) -> str:
    """Return values that stay for a number of collections each."""
    return " ".join(f"{value}x{count - 1}" if count > 1 else f"{value}" for value, count in steps)


CASES = {
    "AbathurDatabaseUnreadable": Case({"up": level((1, 2), (0, 2), (1, 2))}, (2, 3), (1, 4)),
    # Written for the last time after 50 minutes, then again after two hours.
    "AbathurMetricsStale": Case(
        {"collection_timestamp_seconds": "0+300x9 2700x13 7200+300x5"}, (13, 20), (9, 11, 24, 28)
    ),
    "AbathurMetricsAbsent": Case({"collection_timestamp_seconds": "0+300x5 _x12 5400+300x5"}, (12, 17), (5, 7, 18)),
    "AbathurJournalModeNotWal": Case(
        {'journal_mode_info{mode="delete"': "_ _ 1x3 stale", 'journal_mode_info{mode="wal"': "1x1 stale _x3 1x3"},
        (4, 5),
        (1, 2, 6),
        {"mode": "delete"},
    ),
    "AbathurWalLarge": Case(
        {"wal_bytes": level((100e6, 2), (101e6, 4), (1, 2)), "wal_limit_bytes": level((100e6, 8))}, (4, 5), (1, 3, 6)
    ),
    "AbathurGrowth": Case({"growth_bytes_per_day": level((500e6, 2), (501e6, 2), (0, 2))}, (2, 3), (1, 4)),
    "AbathurDiskLow": Case(
        {"disk_free_bytes": level((10, 2), (9, 3), (11, 2)), "disk_size_bytes": level((100, 7))}, (3, 4), (1, 2, 5)
    ),
    "AbathurBackupTooOld": Case(
        {
            "backup_timestamp_seconds": level((300, 30 * HOUR), (30 * HOUR * 300, 2)),
            "backup_maximum_age_seconds": level((26 * 3600, 31 * HOUR)),
        },
        (26 * HOUR + 1, 29 * HOUR),
        (1, 26 * HOUR, 30 * HOUR),
    ),
    "AbathurBackupFailed": Case(
        {'job_ok{job_name="drill"': level((1, 2), (0, 2), (1, 2)), 'job_ok{job_name="backup"': level((1, 6))},
        (2, 3),
        (1, 4),
        {"job_name": "drill"},
    ),
    "AbathurJobFailed": Case(
        {'job_ok{job_name="vacuum"': level((1, 2), (0, 2), (1, 2)), 'job_ok{job_name="backup"': level((0, 6))},
        (2, 3),
        (1, 4),
        {"job_name": "vacuum"},
    ),
    "AbathurReplicationBehind": Case(
        {'job_ok{job_name="replication"': level((1, 2), (0, 2), (1, 2)), 'job_ok{job_name="backup"': level((0, 6))},
        (2, 3),
        (1, 4),
        {"job_name": "replication"},
    ),
    "AbathurJobOverdue": Case(
        {'job_due_timestamp_seconds{job_name="drill"': level((900, 6), (9000, 4))},
        (3, 4, 5),
        (1, 2, 6),
        {"job_name": "drill"},
    ),
    # Two slow collections of 36 are 94.4 % good ones, one is 97.2 %.
    "AbathurQueryP99": Case(
        {
            'query_max_seconds{query="next_task"': level((0.01, 35), (0.2, 1), (0.01, 37), (0.2, 3), (0.01, 40)),
            "query_limit_seconds": level((0.1, 116)),
        },
        (76, 80),
        (35, 40, 112),
        {"query": "next_task"},
    ),
    "AbathurQueryOverBudget": Case(
        {
            'query_seconds{query="next_task"': level((0.01, 12), (0.06, 24), (0.01, 20)),
            'query_budget_seconds{query="next_task"': level((0.05, 56)),
        },
        (30, 36),
        (12, 16, 50),
        {"query": "next_task"},
    ),
    "AbathurQueryWithoutIndex": Case(
        {'query_indexed{query="next_task"': level((1, 2), (0, 4), (1, 2))}, (4, 5), (1, 3, 6), {"query": "next_task"}
    ),
}


def promtool(path: Path, tests: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
    path.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": tests}))
    return subprocess.run(["promtool", "test", "rules", path], capture_output=True, text=True, check=False)


def expectation(alert: str, case: Case) -> dict[str, Any]:
    series = []
    for name, values in case.series.items():
        metric, _, labels = name.partition("{")
        inside = f"{labels},{HOST}" if labels else HOST
        series.append({"series": f"abathur_db_{metric}{{{inside}}}", "values": values})
    about = {"alertname": alert, "alertstate": "firing", "instance": "a:9100", "job": "node", **case.labels}
    about["severity"] = alerts()[alert]["labels"]["severity"]
    sample = f"ALERTS{{{','.join(f'{name}={chr(34)}{value}{chr(34)}' for name, value in about.items())}}}"
    expected = [
        {
            "expr": f'ALERTS{{alertname="{alert}",alertstate="firing"}}',
            # A minute later: what came with this collection has been evaluated.
            "eval_time": f"{5 * moment + 1}m",
            "exp_samples": [{"labels": sample, "value": 1}] if moment in case.fires else [],
        }
        for moment in sorted((*case.fires, *case.quiet))
    ]
    return {"interval": "5m", "input_series": series, "promql_expr_test": expected}


@pytest.mark.parametrize("alert", CASES)
def test_an_alert_fires_for_its_cause_and_clears(alert: str, tmp_path: Path) -> None:
    done = promtool(tmp_path / "test.yml", [expectation(alert, CASES[alert])])
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_alert_is_tested() -> None:
    assert set(CASES) == set(alerts())


def test_no_host_at_all_is_an_alert(tmp_path: Path) -> None:
    sample = 'ALERTS{alertname="AbathurMetricsAbsent",alertstate="firing",severity="warning"}'
    expected = {"expr": "ALERTS", "eval_time": "20m", "exp_samples": [{"labels": sample, "value": 1}]}
    done = promtool(tmp_path / "test.yml", [{"interval": "1m", "input_series": [], "promql_expr_test": [expected]}])
    assert done.returncode == 0, done.stdout + done.stderr


def test_an_alert_says_where_what_and_the_next_command(tmp_path: Path) -> None:
    series = {"series": f'abathur_db_job_ok{{job_name="backup",{HOST}}}', "values": "0x5"}
    expected = {
        "eval_time": "5m",
        "alertname": "AbathurBackupFailed",
        "exp_alerts": [
            {
                "exp_labels": {"severity": "critical", "instance": "a:9100", "job": "node", "job_name": "backup"},
                "exp_annotations": {
                    "summary": "a:9100: the last backup failed",
                    "description": "Next: journalctl -u abathur-db@backup -n 50",
                },
            }
        ],
    }
    done = promtool(
        tmp_path / "test.yml", [{"interval": "5m", "input_series": [series], "alert_rule_test": [expected]}]
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_finds_no_fault_with_the_rules_and_each_names_its_next_command() -> None:
    done = subprocess.run(["promtool", "check", "rules", RULES], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    for name, rule in alerts().items():
        assert rule["annotations"]["summary"].startswith("{{ $labels.instance }}: "), name
        assert "Next: " in rule["annotations"]["description"], name
        assert rule["labels"]["severity"] in ("critical", "warning"), name


def test_every_metric_that_a_rule_names_is_one_that_the_collector_writes() -> None:
    named = set(re.findall(r"abathur_db_(\w+)", " ".join(rule["expr"] for rule in alerts().values())))
    assert named
    assert named - set(textfile.HELP) == set()


def test_the_99th_percentile_follows_from_the_number_of_runs() -> None:
    assert round(0.99**gauges.RUNS, 2) == 0.95


def test_a_replication_whose_job_has_stopped_is_an_alert_as_well(tmp_path: Path) -> None:
    steps = {
        "collection_timestamp_seconds": "0+300x9",
        "replication_arrived_timestamp_seconds": "0+300x3 900x2 2100+300x2",
        "replication_maximum_lag_seconds": level((30, 10)),
    }
    case = Case(steps, (4, 5, 6), (3, 7, 9))
    done = promtool(tmp_path / "test.yml", [expectation("AbathurReplicationBehind", case)])
    assert done.returncode == 0, done.stdout + done.stderr
