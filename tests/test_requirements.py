"""What the tool needs of a host, told also by an interpreter that is too old for it."""

from __future__ import annotations

import ast
import json
import sqlite3
import sys

import pytest
from abathur_db import requirements
from databases import ROOT


@pytest.mark.parametrize("name", ["__init__", "__main__", "requirements"])
def test_what_runs_before_the_check_of_python_keeps_to_old_syntax(name: str) -> None:
    source = (ROOT / f"scripts/abathur_db/{name}.py").read_text()
    ast.parse(source, feature_version=(3, 8))


def test_an_older_python_is_refused_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))
    assert requirements.refuse() == 2
    assert capsys.readouterr().err.startswith("abathur-db: ")


def test_an_older_python_answers_in_json_when_asked(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "version_info", (3, 9, 2, "final", 0))
    monkeypatch.setattr(sys, "argv", ["abathur-db", "preflight", "--json"])
    monkeypatch.setattr(requirements.os.path, "isdir", lambda _: True)  # type: ignore[attr-defined]
    assert requirements.refuse() == 2
    answer = json.loads(capsys.readouterr().out)
    assert (answer["command"], answer["ok"]) == ("preflight", False)
    assert answer["summary"] == "python is 3.9.2, needed: >= 3.11"
    assert answer["hint"].startswith("upgrade the host to Debian 12")


def test_an_older_sqlite_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    assert requirements.sqlite()["ok"]
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 34, 1))
    assert not requirements.sqlite()["ok"]


def test_a_sqlite_without_json_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    def without(_: str) -> object:
        raise sqlite3.OperationalError("no such function: json_valid")

    monkeypatch.setattr(sqlite3, "connect", without)
    assert str(requirements.sqlite()["measured"]).endswith("without JSON")


@pytest.mark.parametrize(
    ("version", "fixed"),
    [
        ((3, 40, 1), False),
        ((3, 44, 5), False),
        ((3, 44, 6), True),
        ((3, 45, 0), False),
        ((3, 46, 1), False),
        ((3, 50, 6), False),
        ((3, 50, 7), True),
        ((3, 51, 2), False),
        ((3, 51, 3), True),
        ((3, 52, 0), True),
    ],
)
def test_the_fix_of_the_wal_reset_defect_is_known_by_version(version: tuple[int, ...], fixed: bool) -> None:
    assert requirements.wal_reset_fix(version) is fixed


def test_a_sqlite_without_that_fix_is_a_warning_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite3, "sqlite_version_info", (3, 40, 1))
    check = requirements.sqlite_wal_reset()
    assert (check["ok"], check["warning"]) == (True, True)
    assert sqlite3.sqlite_version in str(check["measured"])
