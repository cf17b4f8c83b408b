"""Disks that are full, fill up, have no inodes or cannot be written: a sentence, an exit code, the old state whole."""

from __future__ import annotations

import re
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import databases
import pytest

from faults import moments, places
from faults.world import Answer, World, counted_backups_are_whole, next_release

ROWS = 3000
"""About 4 MB."""
SPACE = 40
"""MB of the small file systems."""

JOBS = {
    "init": ("init",),
    "migrate": ("init",),
    "seed": ("seed",),
    "backup": ("backup",),
    "prune": ("prune",),
    "verify": ("verify", "latest"),
    "drill": ("drill",),
    "analyze": ("analyze",),
    "vacuum": ("vacuum",),
    "convert": ("vacuum", "--convert"),
    "integrity-check": ("integrity-check",),
    "validate": ("validate",),
    "restore": ("restore", "latest"),
    "rollback": ("rollback", "--to", "latest"),
}
PLACES = {"data": "", "backups": "abathur.db.backups", "state": ".abathur.db.abathur-db"}
LEFT = (0, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048, 4096, 8192)
"""kB that are left."""
POINTS = moments.number("POINTS", 1)
"""How many fillings of each place by each job, and as many disks that fill up meanwhile."""
LEVELS = LEFT[:: max(1, len(LEFT) // POINTS)]

CAUSES = "No space left|is full|free at .* are; nothing was changed|[Rr]ead-only|readonly|no inodes|B free"

Stage = Callable[[str], World]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """Give the prepared world of a job, made once."""
    folder = tmp_path_factory.mktemp("worlds")
    later = next_release(folder / "next")
    made: dict[str, World] = {}

    def prepared(name: str) -> World:
        if name not in made:
            world = World(folder / name, backup_keep_daily=1, backup_keep_weekly=0, backup_keep_monthly=0)
            made[name] = world
            little = {"validation_sessions": [2], "validation_seconds": 1, "validation_p99_ms": 60_000}
            world.changes |= {"minimum_free_mb": 0, **little}
            if name == "init":
                return world
            if name == "convert":
                databases.application(world.conf.database)
            world.good("init")
            if name != "seed":
                world.good("seed")
            databases.rows(world.conf.database, ROWS)
            for _ in range(5 if name == "prune" else 2):
                world.good("backup")
            databases.run(world.conf.database, "DELETE FROM memory_entries WHERE id % 3 = 0 AND key LIKE 'key%'")
            if name == "migrate":
                world.checkout = later
        return made[name]

    yield prepared
    shutil.rmtree(folder)


def content(world: World) -> dict[str, int]:
    """Return what of the applications is in the database; nothing of it may change."""
    if not world.conf.database.exists():
        return {}
    with closing(sqlite3.connect(world.conf.database)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        rows = connection.execute("SELECT count(*), total(id), max(value) FROM memory_entries WHERE key LIKE 'key%'")
        return dict(zip(("count", "ids", "last"), rows.fetchone(), strict=True))


def failed_in_a_sentence(answer: Answer) -> None:
    """Check that a failure says what failed and what to do next, with its exit code and without a traceback."""
    assert answer.code == 1, answer
    assert "Traceback" not in answer.errors
    assert re.search(CAUSES, answer.result["summary"]), answer.result["summary"]
    assert answer.result["hint"], answer.result["summary"]


def old_state_is_whole_and_the_job_ends_well(
    world: World, name: str, before: dict[str, int], counted: set[str]
) -> None:
    """Check what has to be true once there is space again."""
    if name in ("restore", "rollback"):
        # What it replaced is what the backup holds as well, or kept aside.
        assert world.conf.database.exists()
    elif before:
        assert content(world) == before
    counted_backups_are_whole(world)
    now = {each["id"] for each in world.good("backups")["data"]["backups"] if each["counts"]}
    if name not in ("prune", "backup"):
        assert counted <= now
    assert max(counted, default="") in now | {""}
    again = world.tool(*JOBS[name])
    assert again.code == 0, again
    assert world.leftovers() == []


def counts(world: World) -> set[str]:
    return {each["id"] for each in world.good("backups")["data"]["backups"] if each["counts"]}


@pytest.mark.parametrize("left", LEVELS)
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", JOBS)
def test_a_job_on_a_full_disk_says_so_and_leaves_the_old_state_whole(
    stage: Stage, tmp_path: Path, name: str, place: str, left: int
) -> None:
    world = stage(name).copied(tmp_path / "world")
    before, counted = content(world), counts(world)
    directory = world.root / PLACES[place]
    with places.small(directory, SPACE):
        with places.filled(directory, left * 1024):
            answer = world.tool(*JOBS[name])
        if answer.code != 0:
            failed_in_a_sentence(answer)
        old_state_is_whole_and_the_job_ends_well(world, name, before, counted)


@pytest.mark.parametrize("left", [192, 256, 384, 440])
def test_a_new_database_is_whole_or_not_there(tmp_path: Path, left: int) -> None:
    """Where the log of a new database has room and the database itself has not; closing it tells nobody of that."""
    world = World(tmp_path / "world", minimum_free_mb=0)
    with places.small(world.root, SPACE):
        with places.filled(world.root, left * 1024):
            failed_in_a_sentence(world.tool("init"))
        assert not world.conf.database.exists()
        assert world.tool("init").code == 0
        assert world.good("integrity-check")["ok"]


@pytest.mark.parametrize("round_", range(POINTS))
@pytest.mark.parametrize("name", JOBS)
def test_a_job_whose_disk_fills_while_it_works_says_so_and_leaves_the_old_state_whole(
    stage: Stage, tmp_path: Path, name: str, round_: int
) -> None:
    draw = moments.chance("fills", name, round_)
    world = stage(name).copied(tmp_path / "world")
    before, counted = content(world), counts(world)
    after, left = draw.randrange(1, 6_000_000), draw.choice((0, 4096, 16384, 65536))
    print(f"SEED={moments.SEED}: full up to {left} bytes, after {after}")
    with places.small(world.root, SPACE):
        with places.filled_meanwhile(world.root, after, left):
            answer = world.tool(*JOBS[name])
        if answer.code != 0:
            failed_in_a_sentence(answer)
        old_state_is_whole_and_the_job_ends_well(world, name, before, counted)


@pytest.mark.parametrize("left", range(min(POINTS, 4)))
@pytest.mark.parametrize("name", JOBS)
def test_a_job_without_inodes_says_so_and_leaves_the_old_state_whole(
    stage: Stage, tmp_path: Path, name: str, left: int
) -> None:
    world = stage(name).copied(tmp_path / "world")
    before, counted = content(world), counts(world)
    with places.small(world.root, SPACE, inodes=200):
        with places.no_inodes(world.root, left):
            answer = world.tool(*JOBS[name])
        if answer.code != 0:
            failed_in_a_sentence(answer)
        old_state_is_whole_and_the_job_ends_well(world, name, before, counted)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", JOBS)
def test_a_job_in_a_read_only_directory_says_so_and_leaves_the_old_state_whole(
    stage: Stage, tmp_path: Path, name: str, place: str
) -> None:
    world = stage(name).copied(tmp_path / "world")
    before, counted = content(world), counts(world)
    directory = world.root / PLACES[place]
    with ExitStack() as stack:
        directory.mkdir(exist_ok=True)
        stack.enter_context(places.read_only(directory))
        answer = world.tool(*JOBS[name])
        if answer.code != 0:
            failed_in_a_sentence(answer)
    old_state_is_whole_and_the_job_ends_well(world, name, before, counted)
