"""The summary of a fleet: reasons of every ansible-core that is promised, whatever failed, wherever it is run."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from ansible import context  # type: ignore[import-untyped]  # ansible-core has no types
from databases import ROOT

PLUGIN = ROOT / "roles/abathur_fleet/callback_plugins/abathur_fleet.py"


@pytest.fixture
def callback(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the callback, and what it displays as `said`."""
    spec = importlib.util.spec_from_file_location("abathur_fleet", PLUGIN)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(context, "CLIARGS", {"check": False})
    made = module.CallbackModule()
    made.said = []
    made._display = SimpleNamespace(
        banner=made.said.append, display=lambda line, **_: made.said.append(line), warning=made.said.append
    )
    made.get_option = lambda _: None
    return made


def stats(done: dict[str, dict[str, Any]], failures: int, **run: Any) -> Any:
    """Return what Ansible counts, with one failed host where `failures` is 1."""
    custom = {"_run": {"abathur_fleet": {"hosts": ["a"], **run}}}
    custom |= {host: {"abathur_fleet": told} for host, told in done.items()}
    counted = {"failures": failures, "unreachable": 0, "changed": 1}
    return SimpleNamespace(custom=custom, summarize=lambda _: counted)


@pytest.mark.parametrize("prefix", ["", "_"])
@pytest.mark.parametrize(
    ("result", "reason"),
    [
        ({"msg": "the disk is full"}, "the disk is full"),
        ({"msg": ["first", "second", "last"]}, "first; last"),
        ({}, "it gave no reason"),
        (
            {
                "msg": "One or more items failed",
                "results": [{"msg": "fine"}, {"failed": True, "msg": "usermod: user abathur is in use"}],
            },
            "usermod: user abathur is in use",
        ),
    ],
)
def test_the_reason_of_a_failure_is_the_item_s_or_the_task_s_own_sentence(
    callback: Any, prefix: str, result: dict[str, Any], reason: str
) -> None:
    """Before ansible-core 2.19 host and result had an underscore."""
    callback.v2_runner_on_failed(
        SimpleNamespace(**{f"{prefix}host": SimpleNamespace(name="a"), f"{prefix}result": result})
    )
    callback.v2_playbook_on_stats(stats({}, 1))
    assert callback.said[1] == f"a  failed  {reason}"


def test_a_summary_that_cannot_be_written_is_a_sentence(callback: Any, tmp_path: Any) -> None:
    (tmp_path / "reports").mkdir()
    callback.get_option = lambda _: str(tmp_path / "reports")
    callback.v2_playbook_on_stats(stats({"a": {"state": "deployed", "release": "one"}}, 0))
    assert callback.said[1] == "a  deployed  release one"
    assert callback.said[-1].startswith(f"the summary was not written to {tmp_path}/reports: Is a directory. Next: ")


def test_a_host_that_was_passed_over_says_why(callback: Any) -> None:
    callback.v2_playbook_on_stats(stats({"a": {"state": "passed over", "reason": "no former release"}}, 0))
    assert callback.said[1] == "a  passed over  no former release"


def test_unknown_variables_are_named_with_the_nearest_one(callback: Any) -> None:
    names = ["abathur_db_backup_keep_day", "abathur_db_database", "abathur_zzz"]
    command: list[Any] = [sys.executable, ROOT / "scripts/unknown.py", "--lookup", json.dumps(names)]
    found = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["unknown"]
    callback.v2_playbook_on_stats(stats({}, 0, unknown=found))
    assert callback.said[-2:] == [
        "abathur_db_backup_keep_day is no variable of the roles, and nothing reads it;"
        " did you mean abathur_db_backup_keep_daily?",
        "abathur_zzz is no variable of the roles, and nothing reads it",
    ]
