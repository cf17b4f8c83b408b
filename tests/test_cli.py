"""The command line as its users meet it: output, exit codes, the JSON contract, and errors read aloud."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path

import pytest
from abathur_db import cli as module
from abathur_db import database, maintenance, runs
from abathur_db.config import Config
from abathur_db.result import Check, Exit, Result
from conftest import Cli
from databases import application, run, toml, value

CONTRACT = ["command", "ok", "changed", "summary", "checks", "report", "data", "hint"]


def call(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Run the tool in this process, where coverage sees it."""
    code = module.main([str(each) for each in arguments])
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.fixture
def file(conf: Config, tmp_path: Path) -> Path:
    """Return the path of a configuration file, as a host has it."""
    path = tmp_path / "abathur-db.toml"
    path.write_text(toml(conf))
    return path


def test_a_database_is_made_and_used_from_a_checkout_without_root_or_ansible(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / "data" / "abathur.db"
    assert cli("init", path) == (0, f"init: created {path} at schema version 1\n", "")
    assert cli("seed", path)[0] == 0
    code, output, _ = cli("backup", path, "--json")
    assert (code, json.loads(output)["changed"]) == (0, True)
    made = {each.name for each in path.parent.iterdir()} - {each.name for each in database.sidecars(path)}
    assert made == {".abathur.db.abathur-db", "abathur.db", "abathur.db.backups"}


def test_the_pages_of_a_fleet_need_neither_a_database_nor_a_configuration(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, _, errors = call(capsys, "fleet", tmp_path, "--config", tmp_path / "none.toml")
    assert (code, errors.splitlines()[0]) == (Exit.USAGE, f"fleet: there is no HOST/report.json in {tmp_path}")


def test_every_command_answers_with_one_json_object_of_the_contract(
    capsys: pytest.CaptureFixture[str], file: Path, conf: Config
) -> None:
    for command in ("init", "seed", "backup", "analyze", "vacuum", "integrity-check", "status"):
        code, output, errors = call(capsys, command, "--config", file, "--json")
        answer = json.loads(output)
        assert (command, code, errors) == (command, 0, "")
        assert list(answer) == CONTRACT
        assert (answer["command"], answer["ok"]) == (command, True)
    assert value(conf.database, "SELECT count(*) FROM memory_entries") == 3


def test_a_failure_is_a_sentence_and_a_hint_on_standard_error(cli: Cli, tmp_path: Path) -> None:
    code, output, errors = cli("analyze", tmp_path / "none.db")
    assert (code, output) == (1, "")
    assert errors.splitlines()[0] == f"analyze: there is no database at {tmp_path / 'none.db'}"
    assert errors.splitlines()[1].startswith("hint: make a new one: abathur-db init ")


def test_a_failure_with_json_is_on_standard_output_alone(cli: Cli, tmp_path: Path) -> None:
    code, output, errors = cli("analyze", tmp_path / "none.db", "--json")
    assert (code, errors) == (1, "")
    assert json.loads(output)["ok"] is False


def test_a_host_that_was_not_deployed_says_what_to_do(cli: Cli, tmp_path: Path) -> None:
    code, _, errors = cli("status", "--config", tmp_path / "none.toml")
    assert code == Exit.USAGE
    assert "there is no configuration at" in errors
    assert "ansible-playbook deploy.yml" in errors


def test_the_configuration_can_come_from_the_environment(cli: Cli, conf: Config) -> None:
    assert cli("init", ABATHUR_DB_CONFIG=toml(conf))[0] == 0
    code, _, errors = cli("status", ABATHUR_DB_CONFIG="nonsense")
    assert code == Exit.USAGE
    assert "the configuration in ABATHUR_DB_CONFIG is not TOML" in errors


def test_where_the_configuration_comes_from(
    capsys: pytest.CaptureFixture[str], conf: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ABATHUR_DB_CONFIG", toml(conf))
    assert call(capsys, "init")[1] == f"init: created {conf.database} at schema version 1\n"
    mine = tmp_path / "mine.db"
    assert call(capsys, "init", mine)[1] == f"init: created {mine} at schema version 1\n"


def test_a_dry_run_neither_writes_nor_waits_for_the_lock(
    capsys: pytest.CaptureFixture[str], file: Path, conf: Config
) -> None:
    conf.state_directory.mkdir()
    with (conf.state_directory / "lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        code, output, _ = call(capsys, "init", "--config", file, "--dry-run")
    assert (code, output) == (0, f"init: would create {conf.database} at schema version 1\n")
    assert not conf.database.exists()
    assert not (conf.state_directory / "last").exists()


def test_a_second_job_ends_as_busy_and_that_is_recorded(
    capsys: pytest.CaptureFixture[str], file: Path, conf: Config
) -> None:
    with runs.locked(conf.state_directory, "vacuum", 0):
        code, _, errors = call(capsys, "backup", "--config", file)
    assert code == Exit.BUSY
    assert "backup waited 0 s for vacuum" in errors
    last = runs.recorded(conf.state_directory, "last", "backup")
    assert last is not None
    assert (last["ok"], last["exit_code"]) == (False, Exit.BUSY)


def test_a_run_is_recorded_with_its_time_duration_version_and_exit_code(
    capsys: pytest.CaptureFixture[str], file: Path, conf: Config
) -> None:
    call(capsys, "init", "--config", file)
    last = runs.recorded(conf.state_directory, "success", "init")
    assert last is not None
    assert set(last) == {*CONTRACT, "version", "finished", "seconds", "exit_code", "invocation"}
    assert (last["ok"], last["changed"], last["exit_code"]) == (True, True, 0)


def test_a_result_that_cannot_be_kept_is_said_and_the_run_still_counts(
    capsys: pytest.CaptureFixture[str], file: Path, conf: Config
) -> None:
    conf.state_directory.mkdir()
    (conf.state_directory / "last").write_text("in the way")
    code, _, errors = call(capsys, "init", "--config", file)
    assert code == 0
    assert f"the result could not be kept in {conf.state_directory}" in errors


def test_a_defect_shows_its_traceback_and_ends_with_70(
    capsys: pytest.CaptureFixture[str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def defect(*_: object, **__: object) -> Result:
        raise ZeroDivisionError("a defect")

    monkeypatch.setattr(maintenance, "analyze", defect)
    code, output, errors = call(capsys, "analyze", "--config", file, "--json")
    assert (code, output) == (Exit.CRASH, "")
    assert "ZeroDivisionError: a defect" in errors
    assert errors.splitlines()[-1].startswith("abathur-db: this is a defect of the tool")


def test_what_the_system_refuses_is_told_and_recorded_and_no_defect(
    capsys: pytest.CaptureFixture[str], file: Path, conf: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object, **__: object) -> Result:
        raise PermissionError(1, "Operation not permitted", "/srv/file")

    monkeypatch.setattr(maintenance, "analyze", refused)
    code, _, errors = call(capsys, "analyze", "--config", file)
    assert code == 1
    assert errors.startswith("analyze: /srv/file cannot be written or read: Operation not permitted\n")
    last = runs.recorded(conf.state_directory, "last", "analyze")
    assert last is not None
    assert last["summary"].startswith("/srv/file cannot be written or read: Operation not permitted")


OPENS = (
    "seed",
    "validate",
    "status",
    "report",
    "backup",
    "analyze",
    "vacuum",
    "checkpoint",
    "integrity-check",
    "retain",
)


@pytest.mark.parametrize("made", ["CREATE TABLE x (y)", "PRAGMA user_version = 1; CREATE TABLE x (y)", "other id"])
def test_another_applications_database_is_refused_by_every_command_and_stays_as_it_is(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, made: str
) -> None:
    path = tmp_path / "other.db"
    if made == "other id":
        application(path, "PRAGMA application_id = 7")
        refusal = f"{path} belongs to another application (application_id 0x00000007)"
    else:
        run(path, made)
        refusal = f"{path} does not hold Abathur's tables, so it belongs to another application"
    before = path.read_bytes()
    for command in ("init", *OPENS):
        assert call(capsys, command, path)[2] == (
            f"{command}: {refusal}\nhint: configure another path for Abathur's database\n"
        )
    assert call(capsys, "vacuum", "--convert", path)[0] == Exit.FAILED
    assert call(capsys, "restore", "fresh", "--database", path)[0] == Exit.FAILED
    assert f"\ndoctor: {refusal}\n" in f"\n{call(capsys, 'doctor', path)[2]}"
    assert path.read_bytes() == before
    assert not path.with_name("other.db.backups").exists()


def test_a_failed_check_names_itself_what_was_expected_and_the_next_step(
    capsys: pytest.CaptureFixture[str], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checks = [
        Check("first", True, "1", "1", "not shown"),
        Check("second", True, "2", "2", "a word of warning", warning=True),
        Check("third", False, "3", "4", "mend it"),
    ]
    monkeypatch.setattr(
        maintenance, "analyze", lambda *_, **__: Result("analyze", "one failed", checks=checks, hint="mend it")
    )
    code, output, errors = call(capsys, "analyze", "--config", file)
    assert code == Exit.FAILED
    assert output.splitlines() == [
        "ok    first   1",
        "warn  second  2",
        "              next: a word of warning",
        "FAIL  third   4",
        "              expected: 3",
        "              next: mend it",
    ]
    assert errors.splitlines() == ["analyze: one failed", "hint: mend it"]


def test_nothing_that_the_tool_makes_is_for_others(
    capsys: pytest.CaptureFixture[str], file: Path, conf: Config
) -> None:
    for command in ("init", "seed", "backup", "validate"):
        assert call(capsys, command, "--config", file)[0] == 0
    found = [conf.database, *conf.backup_directory.rglob("*"), *conf.state_directory.rglob("*")]
    assert len(found) > 8
    assert [each for each in found if each.stat().st_mode & 0o077] == []


@pytest.mark.parametrize("arguments", [[], ["conquer"], ["init", "a", "b"]])
def test_a_wrong_command_line_shows_the_usage_and_ends_with_2(cli: Cli, arguments: list[str]) -> None:
    code, output, errors = cli(*arguments)
    assert (code, output) == (Exit.USAGE, "")
    assert errors.startswith("usage: abathur-db")


def test_help_lists_every_command(cli: Cli) -> None:
    _, output, _ = cli("--help")
    assert [name for name in module.COMMANDS if name not in output] == []


BAD = "not utf-8 \udcff.db"


def arguments(command: str, path: Path) -> list[str | Path]:
    """Return what a command needs to be called for a database."""
    about = module.COMMANDS[command]
    named: list[str | Path] = ["x"] if about.positional and command != "fleet" else []
    return [*named, *(["--database"] if named else []), path]


@pytest.mark.parametrize("command", [name for name, each in module.COMMANDS.items() if each.takes_database])
def test_a_path_that_is_no_utf_8_and_a_name_too_long_are_refused_by_every_command_and_nothing_is_made(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    (tmp_path / "\udcff").mkdir()
    monkeypatch.chdir(tmp_path / "\udcff")
    with pytest.raises(SystemExit) as ended:
        call(capsys, command, *arguments(command, tmp_path / BAD))
    assert (ended.value.code, "an argument is not UTF-8: /" in capsys.readouterr().err) == (2, True)
    # A relative name is of the directory that the command is called in.
    code, _, errors = call(capsys, command, *arguments(command, Path("a.db")))
    assert (code, "/\\udcff/a.db is not UTF-8" in errors) == (2, True), errors
    code, _, errors = call(capsys, command, *arguments(command, tmp_path / f"{'ä' * 100}.db"))
    assert (code, "has a name of more than 200 bytes" in errors) == (2, True), errors
    assert [each.name for each in tmp_path.rglob("*")] == ["\udcff"]


def test_a_name_as_long_as_may_be_serves_for_every_command(cli: Cli, tmp_path: Path) -> None:
    path = tmp_path / ("a" * 197 + ".db")
    first = ("init", "seed", "backup", "verify latest --database", "drill", "vacuum --convert", "integrity-check")
    for command in (*first, "restore fresh --database", "restore latest --database", "report", "doctor", "status"):
        code, _, errors = cli(*command.split(), path)
        assert (code, errors) == (0, ""), command


@pytest.mark.parametrize(
    "changes",
    [
        {"database": f"/srv/{BAD}"},
        {"backup_directory": f"/srv/{BAD}"},
        {"metrics_textfile": f"/srv/{BAD}"},
        {"metrics_textfile": "/srv/a\0b"},
        {"database": f"/srv/{'a' * 228}"},
    ],
)
def test_a_configuration_with_such_a_path_is_refused(
    capsys: pytest.CaptureFixture[str], conf: Config, monkeypatch: pytest.MonkeyPatch, changes: dict[str, str]
) -> None:
    # The environment holds any bytes; a file is read as UTF-8.
    monkeypatch.setenv(module.CONFIG_VARIABLE, toml(conf, **changes))
    code, _, errors = call(capsys, "status")
    assert (code, "which is not an absolute path" in errors or "more than 200 bytes" in errors) == (2, True), errors
