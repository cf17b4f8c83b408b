"""SIGKILL at any moment of every command, with writers at work: run again it ends well, no acknowledged row is gone."""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import databases
import pytest

from faults import moments
from faults.world import ROOT, Ledger, World, counted_backups_are_whole, next_release, writers

ROWS = 12_000
"""About 15 MB: every command but the smallest then takes a good part of a second."""


def deployed(world: World) -> None:
    """Make a database as a deploy leaves it, with rows."""
    world.good("init")
    world.good("seed")
    databases.rows(world.conf.database, ROWS)


def unseeded(world: World) -> None:
    world.good("init")


def of_an_application(world: World) -> None:
    databases.application(world.conf.database)
    databases.rows(world.conf.database, ROWS)


def with_free_pages(world: World) -> None:
    deployed(world)
    databases.run(world.conf.database, "DELETE FROM memory_entries WHERE id % 3 > 0")


def adopted(world: World) -> None:
    of_an_application(world)
    world.good("init")


def with_backups(world: World) -> None:
    """Make more backups than are kept, without letting the backup prune them itself."""
    generous = World(world.root, world.checkout)
    deployed(generous)
    for _ in range(6):
        generous.good("backup")


def with_a_backup(world: World) -> None:
    deployed(world)
    world.good("backup")


@dataclass(frozen=True)
class Scene:
    """A command, the world that it finds, and whether writers are at work meanwhile (else they were, just before)."""

    prepare: Callable[[World], None]
    command: tuple[str, ...]
    at_work: bool = True
    before: bool = True
    upgrades: bool = False


SCENES = {
    "init": Scene(lambda _: None, ("init",), at_work=False, before=False),
    "adopt": Scene(of_an_application, ("init",), at_work=False),
    "migrate": Scene(deployed, ("init",), upgrades=True),
    "seed": Scene(unseeded, ("seed",)),
    "backup": Scene(deployed, ("backup",)),
    "prune": Scene(with_backups, ("prune",)),
    "vacuum": Scene(with_free_pages, ("vacuum",)),
    "convert": Scene(adopted, ("vacuum", "--convert"), at_work=False),
    "restore": Scene(with_a_backup, ("restore", "latest"), at_work=False),
    "rollback": Scene(with_a_backup, ("rollback", "--to", "latest"), at_work=False),
}
ROUNDS = max(1, moments.number("KILLS", 20) * 9 // 10 // len(SCENES))
"""A tenth of the kills is left for deploys and rollbacks by Ansible."""

ATTEMPTS = 10
"""A command that is faster this time ends before its kill; only kills are counted."""

FEW = {"backup_keep_daily": 1, "backup_keep_weekly": 0, "backup_keep_monthly": 0, "backup_keep_minimum": 1}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], tuple[World, moments.Course]]]:
    """Give the prepared world of a scene, made once, with the measured course of its command."""
    made: dict[str, tuple[World, moments.Course]] = {}
    later = next_release(tmp_path_factory.mktemp("release") / "next")

    def prepared(name: str) -> tuple[World, moments.Course]:
        if name not in made:
            scene, folder = SCENES[name], tmp_path_factory.mktemp(name)
            # A dictionary has one type for its values, and World's settings have several.
            world = World(folder / "origin", **(FEW if name == "prune" else {}))  # type: ignore[arg-type]
            scene.prepare(world)
            world.checkout = later if scene.upgrades else ROOT
            twins = world.copied(folder / "first"), world.copied(folder / "second")
            made[name] = world, moments.course(*twins, world.command(*scene.command))
            for each in twins:
                shutil.rmtree(each.root)
        return made[name]

    yield prepared
    for world, _ in made.values():
        shutil.rmtree(world.root)


def all_is_well(world: World, ledger: Ledger) -> None:
    """Check what has to be true after a command that was killed has been run again."""
    assert moments.lock_is_free(world.conf.state_directory / "lock")
    assert world.leftovers() == []
    assert ledger.acknowledged() - world.sessions() == set()
    with closing(sqlite3.connect(world.conf.database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    checks: dict[str, Any] = {each["id"]: each["ok"] for each in world.tool("status").result["checks"]}
    assert checks["database"]
    assert checks["journal_mode"]


@pytest.mark.parametrize("round_", range(ROUNDS))
@pytest.mark.parametrize("name", SCENES)
def test_a_killed_command_run_again_ends_well_and_no_acknowledged_row_is_gone(
    stage: Callable[[str], tuple[World, moments.Course]], tmp_path: Path, name: str, round_: int
) -> None:
    origin, way = stage(name)
    scene, draw = SCENES[name], moments.chance(name, round_)
    command = origin.command(*scene.command)
    for attempt in range(ATTEMPTS):
        world, ledger = origin.copied(tmp_path / f"world{attempt}"), Ledger(tmp_path)
        if scene.before and not scene.at_work:
            with writers(world.conf.database, tmp_path):
                pass
        with writers(world.conf.database, tmp_path) if scene.at_work else nullcontext():
            struck = moments.strike(world, command, way, draw)
            counted_backups_are_whole(world)
            again = world.tool(*scene.command)
        assert again.code == 0, again
        assert ledger.errors() == []
        counted_backups_are_whole(world)
        all_is_well(world, ledger)
        shutil.rmtree(world.root)
        ledger.rows.unlink(missing_ok=True)
        if struck:
            return
    pytest.fail(f"it ended before the kill {ATTEMPTS} times")
