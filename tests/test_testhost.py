"""Test hosts belong to the checkout that made them: real hosts, and another checkout on the same machine."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import testhost
from databases import ROOT

pytestmark = pytest.mark.engine

NAME = "of-a-checkout"


@pytest.fixture
def elsewhere(tmp_path: Path) -> Iterator[Path]:
    """Return another checkout, with no host in the end."""
    shutil.copytree(ROOT / "molecule/resources", tmp_path / "molecule/resources")
    yield tmp_path
    ask(tmp_path, "destroy", "--all")


def ask(checkout: Path, *arguments: str) -> Any:
    """Run a checkout's testhost.py; return its answer."""
    command: list[str | Path] = [sys.executable, checkout / "molecule/resources/testhost.py", *arguments]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_a_checkout_throws_no_host_of_another_one_away(elsewhere: Path) -> None:
    try:
        ours = ask(ROOT, "create", NAME)["inventory"]["abathur"]["hosts"][NAME]
        assert ask(elsewhere, "list") == []
        assert ask(elsewhere, "destroy", NAME) == {"changed": False}
        theirs = ask(elsewhere, "create", NAME)["inventory"]["abathur"]["hosts"][NAME]
        assert ours["ansible_port"] != theirs["ansible_port"]
        assert ask(elsewhere, "destroy", "--all") == {"changed": True}
        assert testhost.alive(NAME)
    finally:
        ask(ROOT, "destroy", NAME)
    assert not testhost.alive(NAME)
