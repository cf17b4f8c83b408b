"""Proving backups: whatever is damaged is refused by verify, drill and restore alike, and named."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from abathur_db import backup, catalog, database, host, packing, proof, restore, schema, seed
from abathur_db.config import Config
from abathur_db.result import Failure
from databases import picture, rows, run


@pytest.fixture(autouse=True)
def _database(conf: Config) -> None:
    schema.init(conf)
    seed.seed(conf)
    rows(conf.database, 200)


def file(conf: Config, identity: str) -> Path:
    return conf.backup_directory / catalog.find(conf, identity).file


def edit(conf: Config, identity: str, **changes: Any) -> None:
    path = conf.backup_directory / f"abathur_{identity}.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip(conf: Config, identity: str) -> None:
    """Change one bit in the middle."""
    path = file(conf, identity)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(conf: Config, identity: str) -> None:
    os.truncate(file(conf, identity), 100)


def empty(conf: Config, identity: str) -> None:
    file(conf, identity).write_bytes(b"")


def lose_manifest(conf: Config, identity: str) -> None:
    (conf.backup_directory / f"abathur_{identity}.json").unlink()


def wrong_hash(conf: Config, identity: str) -> None:
    edit(conf, identity, sha256="0" * 64)


def wrong_plain_hash(conf: Config, identity: str) -> None:
    edit(conf, identity, plain_sha256="0" * 64)


def wrong_rows(conf: Config, identity: str) -> None:
    edit(conf, identity, rows={**catalog.find(conf, identity).rows, "memory_entries": 7})


def repack(conf: Config, identity: str, change: Callable[[Path], None]) -> None:
    """Change the database inside a backup, and let its manifest fit."""
    path = file(conf, identity)
    plain = path.with_suffix("")
    subprocess.run(["zstd", "-dq", path], check=True)
    change(plain)
    digest = hashlib.sha256(plain.read_bytes()).hexdigest()
    size = plain.stat().st_size
    subprocess.run(["zstd", "-qf", "--rm", plain], check=True)
    packed = path.read_bytes()
    sha256 = hashlib.sha256(packed).hexdigest()
    edit(conf, identity, sha256=sha256, bytes=len(packed), plain_sha256=digest, plain_bytes=size)


def corrupt_inside(conf: Config, identity: str) -> None:
    def change(plain: Path) -> None:
        data = bytearray(plain.read_bytes())
        data[-4096 * 20 : -4096 * 10] = b"\xff" * 4096 * 10
        plain.write_bytes(data)

    repack(conf, identity, change)


def wrong_schema(conf: Config, identity: str) -> None:
    repack(conf, identity, lambda plain: run(plain, "DROP TABLE sessions; CREATE TABLE sessions (x)"))


def overwrite(plain: Path) -> None:
    plain.write_text("not a database")


def no_database(conf: Config, identity: str) -> None:
    repack(conf, identity, overwrite)


DAMAGES: dict[str, tuple[Callable[[Config, str], None], str]] = {
    "truncated": (truncate, "has 100 bytes, its manifest says"),
    "flipped": (flip, "the SHA-256 of .* is not that of its manifest"),
    "empty": (empty, "has 0 bytes"),
    "without manifest": (lose_manifest, "its manifest .* is gone"),
    "of another hash": (wrong_hash, "the SHA-256 of .* is not that of its manifest"),
    "of another plain hash": (wrong_plain_hash, "unpacked is not that of its manifest"),
    "of other row counts": (wrong_rows, "rows is .*, its manifest says .*'memory_entries': 7"),
    "corrupt inside": (corrupt_inside, "is corrupt: "),
    "of another schema": (wrong_schema, "is not of this schema: table sessions lacks column"),
    "of no database": (no_database, "is not a SQLite database"),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_backup_is_refused_by_verify_drill_and_restore_with_the_reason(conf: Config, case: str) -> None:
    damage, reason = DAMAGES[case]
    identity = backup.backup(conf).data["id"]
    damage(conf, identity)
    before = picture(conf.database.parent)
    with pytest.raises(Failure, match=reason):
        restore.restore(conf, identity)
    assert picture(conf.database.parent) == before
    verified = proof.verify(conf, "all")
    assert not verified.ok
    assert len(verified.checks) == 1
    assert re.search(reason, verified.checks[0].measured)
    drilled = proof.drill(conf)
    assert not drilled.ok
    assert list(conf.scratch_directory.glob("*")) == []


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


def test_verify_without_any_backup_says_how_to_make_one(conf: Config) -> None:
    with pytest.raises(Failure, match="there is no backup in") as caught:
        proof.verify(conf, "all")
    assert "systemctl start abathur-db@backup" in caught.value.hint


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
    assert result.checks[1].hint.startswith("make one: systemctl start abathur-db@backup")


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
        "import resource, sys\nfrom abathur_db import cli\n"
        "code = cli.main(sys.argv[1:])\n"
        "for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):\n"
        "    print(resource.getrusage(who).ru_maxrss)\n"
        "sys.exit(code)"
    )
    for arguments in (["backup", str(conf.database)], ["verify", "--database", str(conf.database), "latest"]):
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            env={**os.environ, "PYTHONPATH": "scripts"},
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
            assert database.row_counts(connection)["memory_entries"] == 203
