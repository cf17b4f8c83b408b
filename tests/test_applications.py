"""Every command over the databases that Abathur's own application made, and over files that are not ours."""

from __future__ import annotations

import sqlite3
import subprocess
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import applications
import pytest
from abathur_db import (
    backup,
    doctor,
    maintenance,
    metrics,
    proof,
    restore,
    retain,
    schema,
    seed,
    status,
    validation,
)
from abathur_db.config import Config
from abathur_db.result import Failure
from databases import contents, dump, picture, run, value

Cli = Callable[..., Any]

pytestmark = pytest.mark.engine


@pytest.fixture(params=applications.SERVED)
def made(request: pytest.FixtureRequest, conf: Config) -> tuple[Config, str]:
    """Give a database that the application made, and its generation."""
    applications.make(conf.database, request.param)
    return conf, request.param


def kept(before: dict[str, list[tuple[Any, ...]]], path: Path) -> bool:
    """Tell whether every row of before is there, as it was in its columns; seeds and more columns may be new."""
    now = contents(path)
    return all(
        any(row == each[: len(row)] for each in now[name])
        for name, found in before.items()
        if name != "metrics"
        for row in found
    )


def test_it_is_adopted_with_every_row_and_every_command_is_at_home(made: tuple[Config, str]) -> None:
    conf, _ = made
    before = contents(conf.database)
    planned = schema.init(conf, dry_run=True)
    assert "create INDEX idx_sessions_status_updated anew, now on (status, last_update_time DESC) WHERE status IN" in (
        "; ".join(planned.data["steps"])
    )
    adopted = schema.init(conf)
    assert (adopted.ok, adopted.data["kind"]) == (True, "adopt")
    assert kept(before, conf.database)
    assert schema.init(conf).data["kind"] == "current"
    assert seed.seed(conf).ok
    made_backup = backup.backup(conf)
    assert made_backup.ok
    for result in (
        proof.verify(conf, "latest"),
        proof.drill(conf),
        maintenance.integrity_check(conf),
        maintenance.analyze(conf),
        maintenance.vacuum(conf),
        metrics.collect(conf),
        # A writer of the rehearsal waits as long as on a host, whatever else this machine does.
        validation.validate(replace(conf, busy_timeout_ms=5000), []),
        status.status(conf),
        doctor.doctor(conf),
    ):
        assert result.ok, result.summary
    assert kept(before, conf.database)
    assert retain.retain(conf).data["memories"] == 1
    conf.database.unlink()
    restored = restore.restore(conf, "latest")
    assert restored.ok
    assert kept(before, conf.database)


def repaired(command: str) -> str:
    """Run a repair as it is told; return what it printed."""
    return subprocess.run(["bash", "-c", command], check=True, capture_output=True, text=True).stdout


def test_what_breaks_a_rule_is_told_with_its_repair_and_stops_nothing(made: tuple[Config, str]) -> None:
    conf, generation = made
    adopted = {check.id: check for check in schema.init(conf).checks}
    broken = adopted["row_rules"]
    assert (broken.ok, broken.warning) == (True, True)
    assert broken.measured == "1 row of table sessions (first: row 5) against CHECK (json_valid(metadata))"
    found = adopted["foreign_keys"]
    assert (found.ok, found.warning) == (True, generation != "D")
    repaired(broken.hint)
    if found.warning:
        # No parent may be made up, and no row deleted: the rows are shown.
        assert "'gone'" in repaired(found.hint)
    assert {check.id for check in maintenance.integrity_check(conf).checks} == {"integrity_check", "foreign_keys"}


@pytest.mark.parametrize("generation", ["D", "A1"])
def test_the_applications_next_release_and_the_next_init_keep_every_row(conf: Config, generation: str) -> None:
    applications.make(conf.database, generation)
    schema.init(conf)
    seed.seed(conf)
    before = contents(conf.database)
    with closing(sqlite3.connect(conf.database)) as connection:
        applications.start(connection, "A2")
    assert kept(before, conf.database)
    drifted = {check.id: check for check in validation.validate(conf, []).checks if check.warning}
    assert "idx_checkpoints_session" in drifted["indexes"].measured
    for result in (status.status(conf), doctor.doctor(conf), validation.validate(conf, []), backup.backup(conf)):
        assert result.ok, result.summary
    assert "create INDEX idx_checkpoints_session" in schema.init(conf).data["steps"]
    assert kept(before, conf.database)
    assert not any(check.warning for check in status.status(conf).checks if check.id == "indexes")


def test_a_backup_made_before_the_adoption_restores(made: tuple[Config, str]) -> None:
    conf, _ = made
    before = contents(conf.database)
    assert backup.backup(conf).ok
    assert proof.verify(conf, "all").ok
    conf.database.unlink()
    restored = restore.restore(conf, "latest")
    assert restored.ok
    assert restored.hint.endswith(conf.command("init"))
    assert contents(conf.database) == before


def test_an_index_with_another_condition_makes_no_backup_unrestorable(conf: Config) -> None:
    schema.init(conf)
    run(
        conf.database,
        "DROP INDEX idx_sessions_status_updated; CREATE INDEX idx_sessions_status_updated"
        " ON sessions (status, last_update_time DESC) WHERE status IN ('active', 'paused')",
        "INSERT INTO sessions (id, app_name, user_id) VALUES ('s1', 'a', 'u')",
    )
    taken = backup.backup(conf)
    assert proof.verify(conf, "latest").ok
    run(conf.database, "DELETE FROM sessions")
    assert taken.data["id"] in restore.restore(conf, "latest").summary
    assert value(conf.database, "SELECT count(*) FROM sessions") == 1
    assert schema.init(conf).data["kind"] == "migrate"
    assert "WHERE" not in value(
        conf.database, "SELECT sql FROM sqlite_master WHERE name = 'idx_sessions_status_updated'"
    )


def todo(path: Path) -> None:
    """Make the database of a to-do list: two of its tables have names that ours have as well."""
    run(
        path,
        "CREATE TABLE tasks (id INTEGER PRIMARY KEY, title TEXT NOT NULL, done INTEGER NOT NULL DEFAULT 0);"
        "CREATE TABLE sessions (id TEXT PRIMARY KEY, user TEXT NOT NULL);"
        "INSERT INTO tasks (title) VALUES ('buy milk')",
    )


STRANGERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "G2": (
        lambda path: applications.make(path, "G2"),
        "was made by a later generation of Abathur; this release serves",
    ),
    "G3": (
        lambda path: applications.make(path, "G3"),
        "was made by a later generation of Abathur; this release serves",
    ),
    "a to-do list": (todo, "does not hold Abathur's tables, so it belongs to another application"),
}

WRITERS = ("init", "seed", "validate", "status", "backup", "analyze", "vacuum", "integrity-check", "metrics", "retain")


@pytest.mark.parametrize("kind", STRANGERS)
@pytest.mark.parametrize("command", [*WRITERS, "vacuum --convert", "doctor"])
def test_nothing_is_written_to_or_beside_another_applications_file(
    kind: str, command: str, tmp_path: Path, cli: Cli
) -> None:
    make, said = STRANGERS[kind]
    path = tmp_path / "theirs" / "app.db"
    path.parent.mkdir()
    make(path)
    before = picture(path.parent)
    code, _, errors = cli(*command.split(), path)
    assert code == 1
    first = errors.splitlines()[0]
    assert said in first
    assert len(first) < 250
    assert picture(path.parent) == before


def test_a_restore_over_another_applications_file_keeps_it_aside(conf: Config) -> None:
    schema.init(conf)
    backup.backup(conf)
    conf.database.unlink()
    todo(conf.database)
    before = dump(conf.database)
    found = restore.restore(conf, "latest")
    assert dump(Path(found.data["kept"]) / conf.database.name) == before
    applications.make(conf.database.with_name("g2.db"), "G2")
    with pytest.raises(Failure, match="later generation"):
        restore.restore(conf, str(conf.database.with_name("g2.db")))
