"""Proving backups: whatever is damaged is refused by verify, drill and restore alike, and named."""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from abathur_db import backup, catalog, cli, database, host, objects, packing, proof, schema, seed
from abathur_db.config import Config
from abathur_db.result import Failure
from backups import edit, flip
from databases import rows, run


@pytest.fixture(autouse=True)
def _database(conf: Config) -> None:
    schema.init(conf)
    seed.seed(conf)
    rows(conf.database, 200)


def test_a_sound_backup_is_proven_and_that_is_remembered(conf: Config) -> None:
    identity = backup.backup(conf).data["id"]
    assert proof.verify(conf, "latest").ok
    assert set(catalog.checks(conf)[identity]) == {"verify", "ok"}
    drilled = proof.drill(conf)
    assert drilled.ok
    assert drilled.data["recovery_seconds"] > 0
    assert set(catalog.checks(conf)[identity]) == {"verify", "drill", "ok"}
    assert catalog.checks(conf)[identity]["drill"]["seconds"] > 0
    assert drilled.summary.startswith(f"{identity} restored, checked and queried in")


@pytest.mark.parametrize("compression", ["gzip", "none"])
def test_other_compressions_are_proven_too_and_their_damage_is_found(conf: Config, compression: str) -> None:
    other = replace(conf, backup_compression=compression)
    identity = backup.backup(other).data["id"]
    assert proof.verify(other, identity).ok
    flip(other, identity)
    assert not proof.verify(other, identity).ok


def test_verify_proves_all_and_one_bad_one_fails_it(conf: Config) -> None:
    first, second = (backup.backup(conf).data["id"] for _ in range(2))
    flip(conf, first)
    result = proof.verify(conf, "all")
    assert {check.id: check.ok for check in result.checks} == {first: False, second: True}


def test_a_check_that_cannot_be_noted_is_told_with_its_result_and_the_others_are_made(conf: Config) -> None:
    first, second = (backup.backup(conf).data["id"] for _ in range(2))
    flip(conf, second)
    (conf.state_directory / catalog.CHECKS / "something").mkdir(parents=True)
    result = proof.verify(conf, "all")
    verdicts = {check.id: (check.ok, check.warning) for check in result.checks}
    assert (verdicts[first], verdicts[second]) == ((True, False), (False, False))
    assert (verdicts[f"note_{first}"], verdicts[f"note_{second}"]) == ((True, True), (True, True))
    assert proof.verify(conf, first).ok


def test_a_drill_that_cannot_be_noted_is_told_with_its_result(conf: Config) -> None:
    identity = backup.backup(conf).data["id"]
    (conf.state_directory / catalog.CHECKS / "something").mkdir(parents=True)
    result = proof.drill(conf)
    assert result.ok
    assert {check.id: check.warning for check in result.checks}[f"note_{identity}"]


def test_verify_without_any_backup_says_how_to_make_one(conf: Config) -> None:
    with pytest.raises(Failure, match="there is no backup in") as caught:
        proof.verify(conf, "all")
    assert caught.value.hint == f"make one: abathur-db backup {conf.database}"


def test_a_drill_without_any_backup_fails(conf: Config) -> None:
    result = proof.drill(conf)
    assert (result.ok, result.checks[0].measured) == (False, "no verified backup")


@pytest.mark.parametrize(("up", "ok"), [(7200.0, False), (60.0, True)], ids=["up for long", "just started"])
def test_a_drill_fails_when_the_newest_backup_is_too_old_but_not_while_a_missed_one_is_made_up_for(
    conf: Config, monkeypatch: pytest.MonkeyPatch, up: float, ok: bool
) -> None:
    monkeypatch.setattr(host, "seconds_since_boot", lambda: up)
    identity = backup.backup(conf).data["id"]
    edit(conf, identity, created="2026-01-01T00:00:00+00:00")
    result = proof.drill(conf)
    assert {check.id: check.ok for check in result.checks} == {"restore": True, "backup_age": ok}
    assert result.checks[1].hint == f"make one: abathur-db backup {conf.database}"


def test_a_full_disk_while_unpacking_leaves_nothing(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = backup.backup(conf).data["id"]

    def full(*_: Any, **__: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packing, "_unpacked", full)
    result = proof.verify(conf, identity)
    assert "cannot be unpacked to" in result.checks[0].measured
    assert list(conf.scratch_directory.iterdir()) == []


def test_space_for_unpacking_is_asked_for_first(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    identity = backup.backup(conf).data["id"]
    monkeypatch.setattr(host, "free_bytes", lambda _: 1000)
    assert f"unpacking {identity} needs" in proof.verify(conf, identity).checks[0].measured


@pytest.mark.parametrize("suffix", ["gz", "zst"])
def test_what_unpacks_to_more_than_it_should_is_stopped(tmp_path: Path, suffix: str) -> None:
    zeros = tmp_path / "zeros"
    zeros.write_bytes(b"\0" * 10_000_000)
    bomb = tmp_path / f"bomb.{suffix}"
    subprocess.run(["zstd", "-q", zeros, "-o", tmp_path / "bomb.zst"], check=True)
    (tmp_path / "bomb.gz").write_bytes(gzip.compress(zeros.read_bytes()))
    with pytest.raises(Failure, match=r"bomb\.\w+ unpacks to more than 5000000 bytes"):
        packing.unpack(bomb, tmp_path / "out", 5_000_000)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["cut.zst", "cut.gz", "none.gz"])
def test_what_cannot_be_unpacked_says_why(tmp_path: Path, name: str) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(os.urandom(3_000_000))
    whole = subprocess.run(["zstd", "-qc", plain], capture_output=True, check=True).stdout
    data = {"cut.zst": whole[:1000], "cut.gz": gzip.compress(plain.read_bytes())[:1000], "none.gz": b"none"}[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(Failure, match=f"{name} cannot be unpacked"):
        packing.unpack(tmp_path / name, tmp_path / "out", 5_000_000)
    assert not (tmp_path / "out").exists()


def test_a_missing_zstd_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _: None)
    with pytest.raises(Failure, match="zstd is not installed") as caught:
        packing.zstd()
    assert "apt-get install zstd" in caught.value.hint


def test_memory_stays_flat_while_a_large_backup_is_proven(conf: Config) -> None:
    """Ten times the limit in data, measured in a process of its own (issue: under 100 MB)."""
    rows(conf.database, 60_000, "user:2")
    identity = backup.backup(conf).data["id"]
    assert catalog.find(conf, identity).plain_bytes > 60_000_000
    code = (
        "import re, resource, sys\nfrom abathur_db import cli\n"
        "code = cli.main(sys.argv[1:])\n"
        # Not ru_maxrss of its own: that one begins with what the process had that started it.
        "print(re.search(r'VmHWM:\\s+(\\d+)', open('/proc/self/status').read())[1])\n"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)\n"
        "sys.exit(code)"
    )
    for arguments in (["backup", str(conf.database)], ["verify", "--database", str(conf.database), "latest"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            # Measured without what measures the lines.
            env={name: value for name, value in os.environ.items() if not name.startswith("COVERAGE")}
            | {"PYTHONPATH": "scripts"},
            cwd=Path(__file__).resolve().parents[1],
            capture_output=True,
            text=True,
            check=True,
        )
        assert max(map(int, done.stdout.splitlines()[-2:])) < 100_000


def test_a_copy_kept_for_a_proof_is_a_closed_one(conf: Config) -> None:
    identity = backup.backup(conf).data["id"]
    with proof.scratch(conf, "proof.db") as plain:
        proof.prove(conf, catalog.find(conf, identity), plain)
        assert [each.name for each in conf.scratch_directory.iterdir()] == ["proof.db"]
        with database.opened(plain, 0, immutable=True) as connection:
            assert objects.row_counts(connection)["memory_entries"] == 203


GONE = {
    "restore": (["restore", "{id}", "--database", "{database}"], 1, "is gone: it was pruned or moved away"),
    "verify": (["verify", "{id}", "--database", "{database}"], 0, ""),
    "drill": (["drill", "{database}"], 1, "is gone: it was pruned or moved away"),
}


@pytest.mark.parametrize("moment", ["before it is hashed", "before it is unpacked"])
@pytest.mark.parametrize("command", GONE)
def test_a_backup_that_is_pruned_after_it_was_found_is_told_in_a_sentence(
    conf: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str, moment: str
) -> None:
    """Where the backups have a user of their own, prune and restore hold different locks."""
    identity = backup.backup(conf).data["id"]
    before = conf.database.read_bytes()

    def pruned(really: Callable[..., Any]) -> Callable[..., Any]:
        def and_then(*arguments: Any) -> Any:
            found = really(*arguments)
            for each in conf.backup_directory.glob("abathur_*"):
                each.unlink()
            return found

        return and_then

    where, name = (host, "require_free") if moment == "before it is hashed" else (packing, "sha256")
    monkeypatch.setattr(where, name, pruned(getattr(where, name)))
    arguments, code, said = GONE[command]
    assert cli.main([each.format(id=identity, database=conf.database) for each in arguments]) == code
    answer = capsys.readouterr()
    assert (said in answer.err, "Traceback" in answer.err) == (True, False), answer.err
    assert conf.database.read_bytes() == before


def test_a_query_without_an_answer_is_told_and_one_that_was_cut_off_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tmp_path / "plain", "CREATE TABLE sessions (id)")
    assert "sessions_by_status has no answer: no such column: status" in proof._unanswered(tmp_path / "plain")
    opened = database.opened

    @contextmanager
    def cut_off(*arguments: Any, **options: Any) -> Iterator[Any]:
        with opened(*arguments, **options) as connection:
            connection.set_progress_handler(lambda: 1, 1)
            yield connection

    monkeypatch.setattr(database, "opened", cut_off)
    with pytest.raises(Failure, match="interrupted"):
        proof._unanswered(tmp_path / "plain")
