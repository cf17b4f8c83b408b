"""Each fault really made, and what the doctor says of it: what is wrong, the evidence, the command that repairs it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import sqlite3
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from abathur_db import (
    ailments,
    backup,
    catalog,
    database,
    doctor,
    host,
    maintenance,
    processes,
    replica,
    requirements,
    restore,
    runs,
    schema,
    status,
)
from abathur_db.config import Config
from abathur_db.result import Check, Exit, Failure
from conftest import Cli
from databases import ROOT, application, at_work, corrupt, rows, run, value

OPEN = "import sqlite3, sys, time; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
WAIT = "print('ready', flush=True); time.sleep(600)"
SESSION = "INSERT INTO sessions (id, app_name, user_id) VALUES ('held', 'a', 'u')"
WRITER = f"{OPEN} c.execute('BEGIN IMMEDIATE'); {WAIT}"
ALONE = f"{OPEN} c.execute('BEGIN EXCLUSIVE'); c.execute(\"{SESSION}\"); {WAIT}"
READER = f"{OPEN} c.execute('BEGIN'); c.execute('SELECT * FROM sessions').fetchall(); {WAIT}"


@pytest.fixture
def sound(conf: Config) -> Config:
    """Return the configuration of a new, sound database."""
    schema.init(conf)
    return conf


def diagnosis(config: Config, name: str) -> Check:
    """Return one check of the doctor."""
    return next(check for check in doctor.doctor(config).checks if check.id == name)


def repaired(command: str, cli: Cli) -> None:
    """Run a command that the doctor named, as an operator would."""
    words = shlex.split(command)
    if words[0] == "abathur-db":
        code, _, errors = cli(*words[1:])
        assert code == 0, errors
    else:
        subprocess.run(["bash", "-euc", command], check=True, capture_output=True)


def test_nothing_is_said_to_be_wrong_with_a_sound_database(sound: Config) -> None:
    result = doctor.doctor(sound)
    assert result.ok, result.report()
    warned = [check.id for check in result.checks if check.warning]
    # Debian 12's SQLite has a defect that is told on every host.
    assert set(warned) <= {"sqlite_wal_reset"}
    assert result.summary == f"nothing is wrong: {len(result.checks)} things examined" + ", 1 warning" * len(warned)
    assert {"owner", "locked", "wal", "journal_mode", "foreign_keys", "disk_1"} <= {each.id for each in result.checks}


def test_the_exit_code_is_1_when_something_is_wrong_and_the_first_finding_is_the_sentence(
    sound: Config, cli: Cli
) -> None:
    assert cli("doctor", sound.database)[0] == 0
    run(sound.database, "PRAGMA journal_mode = DELETE")
    code, _, errors = cli("doctor", sound.database)
    assert code == Exit.FAILED
    assert errors.startswith("doctor: WAL is off: the journal mode is delete")
    assert errors.endswith(f"hint: abathur-db init {sound.database}\n")


def test_wal_that_is_off_is_switched_on_again_by_the_command_it_names(sound: Config, cli: Cli) -> None:
    run(sound.database, "PRAGMA journal_mode = DELETE")
    found = diagnosis(sound, "journal_mode")
    assert not found.ok
    repaired(found.hint, cli)
    assert diagnosis(sound, "journal_mode").ok


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_a_locked_database_names_the_process_that_holds_it_and_ends_it(sound: Config, cli: Cli, mode: str) -> None:
    run(sound.database, f"PRAGMA journal_mode = {mode}")
    with at_work(WRITER, sound.database) as process:
        found = diagnosis(sound, "locked")
        assert not found.ok
        assert f"locked for 0.1 s by {host.process_name(process.pid)}" in found.measured
        assert found.hint == f"kill {process.pid}"
        repaired(found.hint, cli)
        process.wait()
        assert diagnosis(sound, "locked").ok


def test_a_database_that_nobody_else_may_even_read_names_its_holder(sound: Config) -> None:
    run(sound.database, "PRAGMA journal_mode = DELETE")
    with at_work(ALONE, sound.database) as process:
        result = doctor.doctor(sound)
    assert f"(pid {process.pid})" in result.summary
    assert "journal_mode" not in {each.id for each in result.checks}


def test_a_writer_that_is_quick_locks_nobody_out(sound: Config) -> None:
    busy = (
        f"{OPEN} print(c.execute('PRAGMA journal_mode').fetchone(), flush=True)\n"
        "while True: c.execute('BEGIN IMMEDIATE'); time.sleep(0.02); c.execute('COMMIT'); time.sleep(0.02)"
    )
    with at_work(busy, sound.database):
        assert diagnosis(replace(sound, busy_timeout_ms=5000), "locked").ok


def test_a_log_that_does_not_shrink_names_the_reader_that_pins_it(sound: Config, cli: Cli) -> None:
    tight = replace(sound, wal_limit_mb=1)
    # Open meanwhile, so that the log with the first row is there when the reader begins.
    connection = sqlite3.connect(sound.database)
    connection.execute("SELECT * FROM sessions").fetchall()
    rows(sound.database, 1)
    with at_work(READER, sound.database) as process:
        rows(sound.database, 2000, "user:2")
        _, frames, written_back = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
        found = diagnosis(tight, "wal")
        connection.close()
        assert frames > written_back > 0
        assert f", {written_back} of {frames} frames written back; " in found.measured
        assert not found.ok
        assert f"{host.process_name(process.pid)} reads a snapshot of frame {written_back} and" in found.measured
        repaired(found.hint, cli)
        process.wait()
        assert " and pins the rest" not in diagnosis(tight, "wal").measured


def test_a_large_log_that_no_reader_pins_is_written_back_by_the_command_it_names(
    sound: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    tight = replace(sound, wal_limit_mb=1)
    idle = f"{OPEN} c.execute('SELECT * FROM sessions').fetchall(); {WAIT}"
    with at_work(idle, sound.database):
        rows(sound.database, 2000)
        found = diagnosis(tight, "wal")
        assert not found.ok
        assert "no reader pins it" in found.measured
        assert found.hint == f"abathur-db checkpoint {sound.database}"
        # What replicates shortens it itself, and our command leaves that to it.
        with monkeypatch.context() as patch:
            patch.setattr(replica, "settings", lambda _: SimpleNamespace(standby=False))
            assert diagnosis(tight, "wal").hint == "systemctl restart abathur-db-replicate.service"
        assert maintenance.checkpoint(tight).ok
        assert diagnosis(tight, "wal").ok


def test_a_log_that_nobody_has_open_is_told_and_left_as_it_is(sound: Config, tmp_path: Path) -> None:
    log = database.sidecars(sound.database)[0]
    with at_work(READER, sound.database):
        rows(sound.database, 2000)
        shutil.copy(log, tmp_path / "log")
    shutil.copy(tmp_path / "log", log)
    assert not diagnosis(replace(sound, wal_limit_mb=1), "wal").ok
    assert log.stat().st_size == (tmp_path / "log").stat().st_size


def test_a_foreign_key_that_the_schema_would_have_set_to_null_is_mended_by_the_command(sound: Config, cli: Cli) -> None:
    run(
        sound.database,
        "INSERT INTO tasks (id, prompt, status, input_data, submitted_at, last_updated_at, session_id)"
        " VALUES ('t', 'p', 'pending', '{}', '2026-01-01', '2026-01-01', 'gone')",
    )
    found = diagnosis(sound, "foreign_keys")
    assert (found.ok, found.warning) == (True, True)
    assert "1 violation: 1 in tasks; first: tasks row 1, session_id in sessions" in found.measured
    repaired(found.hint, cli)
    assert not diagnosis(sound, "foreign_keys").warning
    assert value(sound.database, "SELECT count(*) FROM tasks") == 1


def test_a_row_that_cannot_do_without_its_parent_is_shown_not_deleted(sound: Config, cli: Cli) -> None:
    run(
        sound.database,
        "INSERT INTO agents (id, name, specialization, task_id, state, model, spawned_at)"
        " VALUES ('a', 'n', 's', 'gone', 'idle', 'm', '2026-01-01')",
    )
    found = diagnosis(sound, "foreign_keys")
    assert "SELECT rowid, *" in found.hint
    repaired(found.hint, cli)
    assert value(sound.database, "SELECT count(*) FROM agents") == 1


def test_violations_that_an_adopted_database_brought_along_are_told_and_do_not_fail(conf: Config) -> None:
    application(
        conf.database,
        "INSERT INTO tasks (id, prompt, status, input_data, submitted_at, last_updated_at, parent_task_id)"
        " VALUES ('t', 'p', 'pending', '{}', '2026-01-01', '2026-01-01', 'gone')",
    )
    schema.init(conf)
    found = diagnosis(conf, "foreign_keys")
    assert (found.ok, found.warning) == (True, True)


def test_a_missing_index_names_the_query_that_scans_and_the_command_that_makes_it_again(
    sound: Config, cli: Cli
) -> None:
    run(sound.database, "DROP INDEX idx_audit_task")
    found = diagnosis(sound, "query_audit_by_task")
    assert (found.ok, found.warning) == (True, True)
    assert "audit_by_task lacks its index idx_audit_task (SCAN audit" in found.measured
    assert diagnosis(sound, "indexes").warning
    repaired(found.hint, cli)
    assert not diagnosis(sound, "indexes").warning
    assert not diagnosis(sound, "query_audit_by_task").warning


def test_a_query_over_its_budget_is_told_with_its_time(sound: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    from abathur_db import resources

    strict = tuple(replace(query, budget_ms=0.0) for query in resources.queries())
    monkeypatch.setattr(resources, "queries", lambda: strict)
    found = diagnosis(sound, "query_session_by_id")
    assert not found.ok
    assert re.match(r"session_by_id is slow though it uses its index: \d+\.\d ms, budget 0 ms", found.measured)
    assert found.hint == f"abathur-db analyze {sound.database}"


def test_a_lost_table_is_told_and_its_queries_are_not_tried(sound: Config, cli: Cli) -> None:
    run(sound.database, "DROP TABLE audit")
    result = doctor.doctor(sound)
    found = next(check for check in result.checks if check.id == "tables")
    assert "lacking audit" in found.measured
    assert not any(check.id.startswith("query_") for check in result.checks)
    repaired(found.hint, cli)
    assert doctor.doctor(sound).ok


def test_a_column_that_differs_is_told_with_what_a_restore_would_lose(sound: Config) -> None:
    backup.backup(sound)
    run(sound.database, "ALTER TABLE tasks DROP COLUMN dependencies")
    found = diagnosis(sound, "columns")
    assert found.measured == "the schema differs: table tasks lacks column dependencies"
    assert found.hint == f"abathur-db restore latest --database {sound.database} --dry-run"


def test_a_damaged_database_is_told_and_restored_by_the_command_it_names(sound: Config, cli: Cli) -> None:
    rows(sound.database, 200)
    backup.backup(sound)
    run(sound.database, "PRAGMA wal_checkpoint(TRUNCATE)")
    corrupt(sound.database)
    result = doctor.doctor(sound)
    assert not result.ok
    assert re.search("damaged|corrupt|malformed", result.summary), result.summary
    repaired(f"abathur-db restore latest --database {sound.database}", cli)
    assert doctor.doctor(sound).ok


def test_a_missing_database_is_told_with_what_brings_it_back(conf: Config) -> None:
    result = doctor.doctor(conf)
    assert not result.ok
    assert "there is no database at" in result.summary


@pytest.mark.parametrize("suffix", ["", "-wal", "-shm"])
def test_a_file_of_another_user_is_given_back_by_the_command_it_names(sound: Config, cli: Cli, suffix: str) -> None:
    if os.geteuid() != 0:
        pytest.fail("run the tests as root: make unit")
    path = Path(f"{sound.database}{suffix}")
    with at_work(READER, sound.database):
        os.chown(path, 65534, 65534)
        found = diagnosis(sound, "owner")
        assert not found.ok
        assert found.measured == f"{path.name} belongs to nobody (uid 65534)"
        assert "locked" not in {check.id for check in doctor.doctor(sound).checks}
        repaired(found.hint, cli)
        assert diagnosis(sound, "owner").ok


def test_a_file_that_others_may_read_is_closed_by_the_command_it_names(sound: Config, cli: Cli) -> None:
    sound.database.chmod(0o644)
    found = diagnosis(sound, "mode")
    assert (found.ok, found.warning) == (True, True)
    assert "abathur.db has mode 0644" in found.measured
    repaired(found.hint, cli)
    assert not diagnosis(sound, "mode").warning


def test_a_process_that_writes_into_a_deleted_database_is_named(sound: Config, cli: Cli, tmp_path: Path) -> None:
    with at_work(READER, sound.database) as process:
        shutil.copy(sound.database, tmp_path / "copy")
        for each in database.files(sound.database):
            each.unlink(missing_ok=True)
        shutil.move(tmp_path / "copy", sound.database)
        found = diagnosis(sound, "deleted_file")
        assert not found.ok
        assert f"{host.process_name(process.pid)} has the deleted abathur.db open" in found.measured
        repaired(found.hint, cli)
        process.wait()
        assert doctor.doctor(sound).ok


def test_a_deleted_database_s_holder_is_named_whatever_way_the_database_is_named(sound: Config, cli: Cli) -> None:
    with at_work(READER, sound.database) as process:
        shutil.copy(sound.database, sound.database.with_name("copy"))
        for each in database.files(sound.database):
            each.unlink(missing_ok=True)
        sound.database.with_name("copy").rename(sound.database)
        code, _, errors = cli("doctor", os.path.relpath(sound.database, ROOT / "scripts"))
        assert (code, f"(pid {process.pid}) has the deleted abathur.db open" in errors) == (1, True), errors


def test_a_file_that_is_called_deleted_is_not_a_deleted_one(sound: Config) -> None:
    other = sound.database.with_name("abathur.db (deleted)")
    shutil.copy(sound.database, other)
    with at_work(READER, other):
        assert doctor.doctor(sound).ok


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_a_lock_s_holder_is_named_whatever_way_the_database_is_named(sound: Config, tmp_path: Path, mode: str) -> None:
    run(sound.database, f"PRAGMA journal_mode = {mode}")
    (tmp_path / "link").symlink_to(tmp_path)
    with at_work(WRITER, sound.database) as process:
        for way in (Path(os.path.relpath(sound.database)), tmp_path / "link/abathur.db"):
            assert processes.writers(way) == [process.pid]


def test_a_low_disk_is_told_with_its_numbers(sound: Config) -> None:
    found = diagnosis(replace(sound, minimum_free_mb=99_000_000), "disk_1")
    assert not found.ok
    assert re.search(r"\d+ %\) free at .+: jobs do not start", found.measured)
    assert re.fullmatch(r"du -xah /\S* \| sort -h \| tail", found.hint)


def test_a_former_database_on_the_low_disk_is_named_as_evidence_and_no_command_deletes_it(
    sound: Config, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(host, "mount_point", lambda _: sound.database.parent)
    kept = Path(restore.restore(sound, "fresh").data["kept"])
    found = diagnosis(replace(sound, minimum_free_mb=99_000_000), "disk_1")
    assert found.measured.endswith(
        f"; former databases kept there, for you to delete when no longer needed: {kept.name}"
    )
    assert found.hint.startswith(f"du -xah {sound.database.parent} |")
    repaired(found.hint, cli)
    assert kept.is_dir()


def test_a_former_database_on_another_disk_than_the_low_one_is_not_named(
    sound: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(catalog, "kept_aside", lambda _: [Path("/proc/self")])
    found = diagnosis(replace(sound, minimum_free_mb=99_000_000), "disk_1")
    assert found.measured.endswith(": jobs do not start")


def test_the_defect_of_sqlite_is_a_warning_with_the_version(sound: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "wal_reset_fix", lambda _: False)
    found = diagnosis(sound, "sqlite_wal_reset")
    assert (found.ok, found.warning) == (True, True)
    assert found.measured.startswith(f"SQLite {sqlite3.sqlite_version} lacks the fix")
    monkeypatch.setattr(requirements, "wal_reset_fix", lambda _: True)
    assert not diagnosis(sound, "sqlite_wal_reset").warning


TIMERS = """Id=abathur-db@backup.timer
ActiveState=active
UnitFileState=enabled
NextElapseUSecRealtime=Wed 2026-11-25 02:00:00 UTC

Id=abathur-db@drill.timer
ActiveState=inactive
UnitFileState=disabled
NextElapseUSecRealtime="""


@pytest.fixture
def deployed(sound: Config, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], Config]:
    """Return a host's configuration, its systemd listing these timers and its application in this state."""

    def systemctl(timers: str, state: str) -> Config:
        def answer(verb: str, *arguments: str) -> list[str]:
            if verb == "list-unit-files":
                return re.findall(r"^Id=(.+)$", timers, re.MULTILINE)
            unit = [
                "Id=abathur.service",
                "LoadState=loaded",
                f"ActiveState={state}",
                "UnitFileState=enabled",
                "Type=simple",
            ]
            return unit if arguments[0] == "abathur.service" else timers.splitlines()

        monkeypatch.setattr(host, "systemctl", answer)
        return replace(sound, owner="root", application_units=["abathur.service"])

    return systemctl


def test_a_timer_that_is_not_enabled_is_told(deployed: Callable[[str, str], Config]) -> None:
    found = diagnosis(deployed(TIMERS, "active"), "timer_drill")
    assert not found.ok
    assert found.measured == "the timer of drill is disabled, inactive, next never"
    assert found.hint == "systemctl enable --now abathur-db@drill.timer"
    assert diagnosis(deployed(TIMERS, "active"), "timer_backup").ok


def test_a_host_without_any_timer_is_told(deployed: Callable[[str, str], Config]) -> None:
    assert diagnosis(deployed("", "active"), "timers").hint == "ansible-playbook deploy.yml"


def test_a_job_that_failed_and_a_backup_too_old_are_told(deployed: Callable[[str, str], Config]) -> None:
    config = deployed(TIMERS, "active")
    config.backup_directory.mkdir()
    failed = {"command": "backup", "ok": False, "finished": "2026-11-24", "summary": "disk low", "invocation": ""}
    for hint, says in (("", ""), ("free some", " (it says: free some)")):
        runs.record(config.state_directory, {**failed, "hint": hint})
        again = "; it runs again by itself at Wed 2026-11-25 02:00:00 UTC"
        assert diagnosis(config, "job_backup").measured == f"backup failed at 2026-11-24: disk low{says}{again}"
    assert "too old or absent: no verified backup" in diagnosis(config, "backup_age").measured
    backup.backup(config)
    assert diagnosis(config, "backup_age").ok


def test_an_application_that_systemd_gave_up_is_told(deployed: Callable[[str, str], Config]) -> None:
    assert diagnosis(deployed(TIMERS, "failed"), "abathur.service").hint == "systemctl restart abathur.service"
    assert diagnosis(deployed(TIMERS, "active"), "abathur.service").ok
    idle = diagnosis(deployed(TIMERS, "inactive"), "abathur.service")
    assert (idle.ok, idle.warning, idle.hint) == (True, True, "systemctl start abathur.service")
    # By status as well, and so by the page, the fleet's and every deploy.
    found = {each.id: each.ok for each in status.status(deployed(TIMERS, "failed")).checks}
    assert found["abathur.service"] is False


def test_a_backup_directory_that_is_absent_is_told_before_what_it_causes(
    deployed: Callable[[str, str], Config], cli: Cli
) -> None:
    config = deployed(TIMERS, "active")
    found = doctor.doctor(config)
    assert "absent: its disk is not mounted, or somebody deleted it" in found.summary
    assert not {each.id: each.ok for each in status.status(config).checks}["backup_directory"]
    repaired(found.hint.rpartition("else make it: ")[2], cli)
    assert diagnosis(config, "backup_age").hint == "systemctl start abathur-db@backup"


def test_a_warning_that_was_accepted_is_told_no_more_until_it_says_something_else(
    sound: Config, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "wal_reset_fix", lambda _: False)
    hint = diagnosis(sound, "sqlite_wal_reset").hint
    assert hint.endswith("abathur-db doctor --accept")
    assert cli("doctor", "--accept", sound.database)[0] == 0
    found = diagnosis(sound, "sqlite_wal_reset")
    assert (found.warning, found.measured.endswith("(accepted)")) == (False, True)
    monkeypatch.setattr(sqlite3, "sqlite_version", "3.40.2")
    assert diagnosis(sound, "sqlite_wal_reset").warning
    for damaged in ("", "[]", "\xff"):
        (sound.state_directory / doctor.ACKNOWLEDGED).write_text(damaged)
        assert diagnosis(sound, "sqlite_wal_reset").warning


def test_an_owner_that_does_not_exist_is_a_sentence(sound: Config) -> None:
    with pytest.raises(Failure, match="the user nobody-here does not exist"):
        doctor.doctor(replace(sound, owner="nobody-here"))


def test_somebody_who_is_neither_root_nor_the_owner_is_told_so(sound: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 65534)
    with pytest.raises(Failure, match="this is the work of root"):
        doctor.doctor(replace(sound, owner="root"))


def test_the_try_for_the_lock_gives_it_back(sound: Config) -> None:
    assert not ailments.locked(sound)
    assert not ailments.locked(sound)
    with at_work(WRITER, sound.database):
        assert ailments.locked(sound)


def test_a_failure_that_is_no_lock_comes_out_of_the_try_for_the_lock(conf: Config) -> None:
    with pytest.raises(Failure, match="there is no database"):
        ailments.locked(conf)


def test_an_index_of_the_log_that_is_not_in_use_says_nothing(sound: Config) -> None:
    database.sidecars(sound.database)[1].write_bytes(bytes(200))
    assert processes.wal_index(sound.database) is None


def test_a_reader_of_an_index_that_came_after_it_was_looked_for_is_no_defect(sound: Config) -> None:
    """An application that opens the database for each operation makes the -shm anew each time."""
    with at_work(READER, sound.database):
        assert processes.readers(sound.database, processes.WalIndex(0, 0, ())) == []
        assert processes.readers(sound.database, processes.wal_index(sound.database))  # type: ignore[arg-type]


def test_a_process_that_is_gone_holds_nothing(sound: Config) -> None:
    assert processes._held(1, Path("/proc/0/fdinfo/0"), sound.database) == []
    assert processes.repair(999_999_999, ["abathur.service"]) == "kill 999999999"


def test_a_unit_s_process_is_ended_through_its_unit() -> None:
    """The cgroup of this very process stands for a service's."""
    groups = Path("/proc/self/cgroup").read_text().splitlines()
    name = next((line.rpartition("/")[2] for line in groups if line.rpartition("/")[2]), "")
    expected = f"systemctl restart {name}" if name else f"kill {os.getpid()}"
    assert processes.repair(os.getpid(), ["abathur.service", name or "x"]) == expected
