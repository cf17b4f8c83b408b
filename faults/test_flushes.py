"""The order in which commands write, flush and name: contents before their name, a name before the next step."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from faults.flushes import Order, recorded
from faults.world import World

PROGRAM = """
import os, sys
from pathlib import Path
from abathur_db import config, host, release, restore
from abathur_db.result import Failure
root = Path(sys.argv[1])
release.ETC = root / "etc"
host.control = lambda *arguments: None
host.unit_properties = lambda *arguments: {}
conf = config.parse(os.environ["ABATHUR_DB_CONFIG"], "a test")
"""
"""What comes before a step that no command takes alone: it has an /etc of its own, and no systemd to ask."""


def python(step: str, world: World) -> list[str]:
    """Return the command that takes one step of the tool."""
    return [sys.executable, "-c", PROGRAM + step, str(world.root)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    """Return a database with two backups, of which the next one prunes one, and a release that is installed."""
    kept = dict.fromkeys(("daily", "weekly", "monthly", "minimum"), 1)
    retention: dict[str, Any] = {f"backup_keep_{period}": count for period, count in kept.items()}
    made = World(tmp_path / "made", install_directory=tmp_path / "made/opt", **retention)
    for command in ("init", "backup", "backup"):
        made.good(command)
    install(made, "one")
    return made


def install(world: World, name: str) -> list[Path]:
    """Put a release in place, as a deploy does; return its files."""
    units = world.root / "etc/systemd/system/timers.target.wants"
    units.mkdir(parents=True, exist_ok=True)
    (world.root / f"opt/{name}").mkdir(parents=True)
    (world.root / f"opt/{name}/abathur-db").write_text(name)
    (world.root / "opt/current").unlink(missing_ok=True)
    (world.root / "opt/current").symlink_to(name)
    (world.root / "etc/abathur-db.toml").write_text(f"# of {name}\n")
    (units.parent / "abathur-db@.service").write_text(f"# Made by Abathur Ops\n# of {name}\n")
    return [each for part in (f"opt/{name}", "etc") for each in (world.root / part).rglob("*") if each.is_file()]


def test_a_new_database_is_on_the_disk_before_it_has_its_name_and_so_are_its_directories(tmp_path: Path) -> None:
    world = World(tmp_path / "made")
    new = tmp_path / "made/data/below/abathur.db"
    found = recorded(world, world.command("init", new))
    assert [each.partition(" ")[0] for each in found.done] == ["mkdir", "mkdir", "link"]
    assert found.faults == []


def test_a_backup_is_on_the_disk_before_it_counts_and_older_ones_stop_counting_before_they_are_deleted(
    world: World,
) -> None:
    found = recorded(world, world.command("backup"), unordered=r"\.deleting$", lazy=r"backups/")
    named = [Path(each.split(" ")[1]).suffix for each in found.done if each.startswith("rename")]
    assert named == [".zst", ".json", ".deleting"]
    assert [each for each in found.done if each.startswith("unlink")]
    assert found.faults == []


@pytest.mark.parametrize("source", ["latest", "fresh"])
def test_a_restore_keeps_the_former_database_before_it_goes_and_clears_its_place_before_the_new_one_comes(
    world: World, source: str
) -> None:
    found = recorded(world, world.command("restore", source))
    assert [each.partition(" ")[0] for each in found.done] == ["mkdir", "link", "unlink", "rename"]
    assert found.faults == []


def test_a_database_is_kept_aside_before_it_goes_and_one_that_does_not_open_gives_its_place_back(world: World) -> None:
    (world.root / ".other").write_text("no database")
    failed = python("try: restore.swap(conf.database, root / '.other')\nexcept Failure: pass", world)
    undone = recorded(world, failed, lazy="/abathur.db.before-restore_")
    assert [each.partition(" ")[0] for each in undone.done[:4]] == ["mkdir", "link", "unlink", "rename"]
    assert [each.partition(" ")[0] for each in undone.done[4:]] == ["unlink", "link", "unlink", "rmdir"]
    assert undone.faults == []
    aside = recorded(world, python("restore.put_aside(conf.database)", world))
    assert [each.partition(" ")[0] for each in aside.done] == ["mkdir", "link", "unlink"]
    assert aside.faults == []


def test_a_note_that_has_to_survive_is_on_the_disk_before_it_counts(world: World) -> None:
    found = recorded(world, python("release.note(conf, ['app.service'])", world))
    assert [each.partition(" ")[0] for each in found.done] == ["rename"]
    assert found.faults == []


def test_a_deploy_keeps_what_runs_and_a_rollback_brings_it_back_before_anything_is_given_up(world: World) -> None:
    identity = world.good("backups")["data"]["backups"][0]["id"]

    def step(taken: str, before: Iterable[Path] = ()) -> Order:
        return recorded(world, python(taken, world), unordered=r"/etc/|/opt/current$", before=before)

    found = {"keep": step(f"release.keep(conf, {identity!r})")}
    found["confirm"] = step("release.confirm(conf)", install(world, "two"))
    assert json.loads((world.root / "opt/kept/record.json").read_text())["release"] == "one"
    found["again"] = step(f"release.keep(conf, {identity!r})")
    install(world, "three")
    found["return"] = step("release.rollback(conf, '', lose_rows=False, failed_deploy=True)")
    assert os.readlink(world.root / "opt/current") == "two"
    found["back"] = step("release.rollback(conf, '', lose_rows=False, failed_deploy=False)")
    assert os.readlink(world.root / "opt/current") == "one"
    for name, each in found.items():
        assert each.done, name
        assert each.faults == [], name
