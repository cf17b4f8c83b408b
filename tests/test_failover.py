"""A standby and a failover, with Litestream itself: what follows, is refused, is promoted and is kept."""

from __future__ import annotations

import json
import os
import pwd
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from io import StringIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import replicas
from abathur_db import (
    cli,
    doctor,
    failover,
    fleet_page,
    host,
    metrics,
    page,
    preflight,
    release,
    replica,
    replication,
    report,
    restore,
    schema,
    shape,
    standby,
    status,
)
from abathur_db.config import Config
from abathur_db.result import Exit, Failure
from databases import rows, until, value
from replicas import ended_by_itself, recorded, service, set_clock, snapshot_arrives

pytestmark = pytest.mark.engine


@pytest.fixture(autouse=True)
def _host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have settings, fence and units in a directory of the test, and no systemd."""
    monkeypatch.setattr(replica, "SETTINGS", tmp_path / "replication.yml")
    monkeypatch.setattr(host, "FENCE", tmp_path / "fenced")
    monkeypatch.setattr(host, "UNITS", tmp_path / "units")
    monkeypatch.setattr(standby, "LOOK_AGAIN_SECONDS", 0.2)
    monkeypatch.setattr(replica, "SEND", "100ms")
    (tmp_path / "units").mkdir()


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return what systemd is told; every unit of the application is there."""
    said: list[str] = []
    monkeypatch.setattr(host, "control", lambda *arguments: said.append(" ".join(arguments)))
    monkeypatch.setattr(
        host, "properties_of", lambda units, *_: {each: {"Id": each, "LoadState": "loaded"} for each in units}
    )
    return said


def settings(conf: Config, *, follows: bool, **others: Any) -> None:
    replicas.settings(conf, **{"maximum_lag_seconds": 5, "standby": follows, **others})


def as_root(conf: Config) -> Config:
    """Return the configuration of a host that is deployed to, where the owner is whoever runs the tests."""
    return replace(conf, owner=pwd.getpwuid(os.geteuid()).pw_name, application_units=["abathur.service"])


@pytest.fixture
def primary(conf: Config, tmp_path: Path) -> Config:
    """Return a primary with a database of its own."""
    (tmp_path / "one").mkdir()
    made = replace(
        conf,
        database=tmp_path / "one/abathur.db",
        state_directory=tmp_path / "one/state",
        install_directory=tmp_path / "one",
    )
    schema.init(made)
    settings(made, follows=False)
    return made


@pytest.fixture
def follower(conf: Config, tmp_path: Path) -> Config:
    """Return a host that is to follow it."""
    (tmp_path / "two/state").mkdir(parents=True)
    return replace(
        conf,
        database=tmp_path / "two/abathur.db",
        state_directory=tmp_path / "two/state",
        install_directory=tmp_path / "two/state",
    )


def replicated(primary: Config, monkeypatch: pytest.MonkeyPatch, count: int, name: str) -> None:
    """Let the primary write some rows, and send them."""
    settings(primary, follows=False)
    with service(primary, monkeypatch):
        rows(primary.database, count, name)
        assert replication.replication(primary).ok
        snapshot_arrives(primary)


@contextmanager
def following(follower: Config) -> Iterator[list[Any]]:
    """Follow, as the unit does, until the end; yields what it ended with, once it has."""
    settings(follower, follows=True)
    ended: list[Any] = []
    children: list[Any] = []
    original = standby._following

    def started(*arguments: Any) -> Any:
        children.append(original(*arguments))
        return children[-1]

    def work() -> None:
        try:
            ended.append(standby.follow(follower))
        except Failure as failure:
            ended.append(failure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(standby, "_following", started)
        thread = threading.Thread(target=work)
        thread.start()
        try:
            yield ended
        finally:
            if children:
                children[0].terminate()
            ended_by_itself(thread)


def caught_up(follower: Config) -> standby.Copy:
    found: standby.Copy = until(lambda: standby.current(follower), "the copy has caught up")
    return found


def test_a_standby_follows_and_shows_its_lag(
    primary: Config, follower: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicated(primary, monkeypatch, 5, "user:1")
    with following(follower):
        copy = caught_up(follower)
        result = recorded(follower, replication.replication(follower))
        assert result.ok
        assert result.summary.endswith(", in lineage 0001")
        shown = "\n".join(status.status(follower).report())
        assert "a standby: schema version 1, " in shown
        assert re.search(r"lineage 0001, \d+\.\d s behind", shown)
        assert value(copy.path, "SELECT count(*) FROM memory_entries") == 5
        assert [each.id for each in doctor.doctor(follower).checks if each.id == "standby"] == ["standby"]
    assert not follower.database.exists()


def test_a_standby_tells_prometheus_alone_how_far_it_is_behind(
    primary: Config, follower: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    replicated(primary, monkeypatch, 1, "user:1")
    conf = replace(follower, metrics_textfile=str(tmp_path / "abathur.prom"))
    with following(follower):
        caught_up(follower)
        recorded(follower, replication.replication(follower))
        assert metrics.collect(conf, dry_run=True).ok
        assert not Path(conf.metrics_textfile).exists()
        assert metrics.collect(conf).ok
    told = Path(conf.metrics_textfile).read_text()
    for line in ("up 1.0", "standby 1.0", "replication_lineage 1"):
        assert f"\nabathur_db_{line}\n" in told
    assert "\nabathur_db_replication_lag_seconds " in told
    shutil.rmtree(standby.place(follower))
    assert metrics.collect(conf).ok
    assert "\nabathur_db_up 0.0\n" in Path(conf.metrics_textfile).read_text()


def test_a_restart_makes_a_new_copy_and_the_old_one_stays_until_it_has_caught_up(
    primary: Config, follower: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicated(primary, monkeypatch, 1, "user:1")
    with following(follower):
        first = caught_up(follower)
    (standby.place(follower) / "0001-5").mkdir()
    with following(follower):
        until(lambda: standby.current(follower) not in (None, first), "the new copy has caught up")
    assert [each.folder.exists() for each in (first, standby.copies(follower)[0])] == [False, True]
    assert len(standby.copies(follower)) == 1


def test_a_copy_is_ready_once_it_has_what_was_there_at_first_also_of_a_primary_that_goes_on(
    follower: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings(follower, follows=True)
    applied, last = iter(range(3, 20)), iter(range(5, 30))
    ended: list[Any] = []
    copy: Any = SimpleNamespace(ready=tmp_path / "ready", lineage=1, applied=lambda: next(applied))
    monkeypatch.setattr(standby, "_last", lambda *_: (next(last), "now"))
    monkeypatch.setattr(standby, "_ready", lambda *_: ended.append(next(applied)))
    monkeypatch.setattr(replica, "changes", lambda *_: [])
    child: Any = SimpleNamespace(poll=lambda: 0 if ended else None)
    assert standby._watch(follower, replica.required(follower), copy, child) == 0
    assert ended == [6]


def test_a_newer_lineage_is_moved_on_to(primary: Config, follower: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    replicated(primary, monkeypatch, 1, "user:1")
    with following(follower) as ended:
        caught_up(follower)
        found = replica.required(follower)
        (replica.SETTINGS.parent / "store/0002").mkdir()
        shutil.copytree(replica.SETTINGS.parent / "store/0001/ltx", replica.SETTINGS.parent / "store/0002/ltx")
        assert replica.newest(follower, found) == 2
        until(lambda: ended, "it ends")
        assert ended[0].summary == "lineage 0002 has begun after 0001; it is followed from now on"


def test_a_lineage_is_found_also_when_the_ones_before_it_were_deleted(
    primary: Config, follower: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicated(primary, monkeypatch, 1, "user:1")
    store = replica.SETTINGS.parent / "store"
    (store / "0001").rename(store / "0003")
    settings(follower, follows=True)
    found = replica.required(follower)
    assert replica.newest(follower, found) == 3
    with following(follower):
        assert caught_up(follower).lineage == 3
    settings(primary, follows=False)
    note = replica.home(primary) / "lineage.json"
    known = json.loads(note.read_text())
    note.write_text(json.dumps({**known, "lineage": 3, "file": "another"}))
    assert replica.point(primary, found).lineage == 3  # type: ignore[union-attr]
    assert replica.lineage(primary, found) == 4
    # Nor does a primary go back to a number that was there, when all are gone.
    shutil.rmtree(store / "0003")
    assert replica.newest(follower, found) == 0
    note.write_text(json.dumps({**known, "lineage": 4, "file": "another"}))
    assert replica.point(primary, found) is None
    assert replica.lineage(primary, found) == 5


def test_a_host_whose_lineage_was_deleted_still_sees_the_ones_that_others_have_begun(
    primary: Config, follower: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was off meanwhile: it is neither the primary nor level with it."""
    conf = as_root(primary)
    replicated(primary, monkeypatch, 1, "user:1")
    with following(follower):
        caught_up(follower)
    store = replica.SETTINGS.parent / "store"
    (store / "0001").rename(store / "0004")
    assert "of lineage 0004" in standby.level(follower, replica.required(follower), 0)[0]
    settings(primary, follows=False)
    host.FENCE.write_text("now\n")
    with pytest.raises(Failure, match="lineage 0004 is newer than this host's"):
        failover.promote(conf, lose_rows=False, alone=True)
    assert not all(each.ok for each in replication._alone(primary, replica.required(primary)))
    assert failover.rejoin(conf, dry_run=True).changed


def test_a_standby_that_is_started_again_goes_on_from_what_it_followed(
    primary: Config, follower: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicated(primary, monkeypatch, 1, "user:1")
    store = replica.SETTINGS.parent / "store"
    # One that is new to the replica would find none of those after the tenth.
    for former, number in (("0001", 8), ("0008", 11)):
        (store / former).rename(store / f"{number:04}")
        with following(follower) as ended:
            found = replica.required(follower)

            def goes_on(found: replica.Settings = found, number: int = number) -> bool:
                assert ended == []
                return bool(standby.known(follower, found)["lineage"] == number)

            until(goes_on, "the next lineage is followed")


def test_a_standby_that_makes_a_new_copy_is_given_time_for_it(
    primary: Config, follower: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicated(primary, monkeypatch, 1, "user:1")
    with following(follower):
        copy = caught_up(follower)
        recorded(follower, replication.replication(follower))
    replicated(primary, monkeypatch, 1, "user:2")
    settings(follower, follows=True, maximum_lag_seconds=0)
    time.sleep(1)
    assert not replication.replication(follower).ok
    copy.folder.with_name("0001-9999999999999").mkdir()
    told = replication.replication(follower)
    assert told.ok
    assert told.summary.endswith("a whole copy is on its way")
    monkeypatch.setattr(replication, "FIRST_COPY_SECONDS", 0)
    assert not replication.replication(follower).ok


def test_what_cannot_be_followed_is_said(
    primary: Config, follower: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings(primary, follows=False)
    with pytest.raises(Failure, match="this host is no standby") as refused:
        standby.follow(primary)
    assert refused.value.code is Exit.USAGE
    settings(primary, follows=True)
    with pytest.raises(Failure, match=r"abathur\.db is its own"):
        standby.follow(primary)
    settings(follower, follows=True)
    with pytest.raises(Failure, match="has no lineage to follow yet"):
        standby.follow(follower)
    assert standby.level(follower, replica.required(follower), 0)[0] == "the replica has no lineage yet"
    assert standby.checks(follower)[0].measured == "there is no copy yet"
    assert replication.replication(follower).ok  # the first copy has its time
    assert standby.first_copy_age(follower) == 0
    replicated(primary, monkeypatch, 1, "user:1")
    settings(follower, follows=True)
    monkeypatch.setattr(replica, "newest", lambda *_: 1)
    settings(follower, follows=True, litestream="/nonexistent/litestream")
    with pytest.raises(Failure, match="/nonexistent/litestream cannot be run"):
        standby.follow(follower)
    assert standby.first_copy_age(follower) < 60
    program = tmp_path / "ends"
    program.write_text("#!/bin/sh\ncat >/dev/null\nsleep 0.5\nexit 3\n")
    program.chmod(0o755)
    settings(follower, follows=True, litestream=str(program))
    with pytest.raises(Failure, match="has stopped following lineage 0001, with exit code 3"):
        standby.follow(follower)


def test_a_copy_that_is_none_does_not_answer(follower: Config) -> None:
    settings(follower, follows=True)
    folder = standby.place(follower) / "0001-1"
    folder.mkdir(parents=True)
    (folder / "ready").touch()
    (folder / "abathur.db").write_text("no database")
    assert not standby.checks(follower)[0].ok
    (folder / "abathur.db-txid").write_text("no number")
    assert standby.copies(follower)[0].applied() == 0
    (folder / "ready").unlink()
    assert standby.copies(follower)[0].url == ""


def test_a_fence_stops_all_that_writes_and_is_there_once(primary: Config, told: list[str]) -> None:
    conf = as_root(primary)
    wants = host.UNITS / "timers.target.wants"
    wants.mkdir()
    (wants / "abathur-db@backup.timer").touch()
    assert failover.fence(conf, lose_rows=False, dry_run=True).changed
    assert not host.fenced()
    assert failover.fence(conf, lose_rows=False).changed
    assert told == [
        "daemon-reload",
        "disable --now abathur-db@backup.timer",
        "stop abathur-db@*.service abathur.service",
    ]
    held = (host.UNITS / "abathur.service.d" / failover.DROP_IN).read_text()
    assert "\nAssertPathExists=!/etc/abathur-db.fenced\n" in held
    again = failover.fence(conf, lose_rows=False)
    assert not again.changed
    assert again.summary.startswith("fenced already, since 20")


def test_a_fence_ends_replication_once_all_has_arrived(
    primary: Config, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    conf = as_root(primary)
    unit = host.UNITS / "multi-user.target.wants" / replica.UNIT
    unit.parent.mkdir()
    unit.symlink_to("/nowhere")
    monkeypatch.setattr(standby, "LEVEL_SECONDS", 1)
    monkeypatch.setattr(host, "as_owner", lambda _, function: function())
    ended = f"disable --now {replica.UNIT}"
    for _ in range(2):
        with pytest.raises(
            Failure, match="the last changes are not at the replica: replication is not running"
        ) as refused:
            failover.fence(conf, lose_rows=False)
        assert "abathur-db promote" in refused.value.hint
        assert ended not in told
        assert not failover.complete(conf)
    monkeypatch.setattr(standby, "LEVEL_SECONDS", 30)
    with service(primary, monkeypatch):
        rows(primary.database, 5)
        assert failover.fence(conf, lose_rows=False).changed
    assert told[-1] == ended
    told.clear()
    assert failover.fence(conf, lose_rows=True).changed
    assert told[-1] == ended
    # A standby has nothing of its own to send.
    settings(primary, follows=True)
    told.clear()
    assert failover.fence(conf, lose_rows=False).changed
    assert told[-1] == ended
    unit.unlink()
    assert not failover.fence(conf, lose_rows=False).changed


@pytest.mark.usefixtures("told")
def test_a_fence_holds_an_application_that_is_named_without_the_type_of_its_unit(primary: Config) -> None:
    failover.fence(replace(as_root(primary), application_units=["swarm", "at.work", "bus.socket"]), lose_rows=False)
    found = sorted(each.parent.name for each in host.UNITS.glob(f"*/{failover.DROP_IN}"))
    assert found == ["at.work.service.d", "bus.socket.d", "swarm.service.d"]


def test_a_fence_that_is_not_complete_can_be_taken_back_while_the_store_is_away(
    primary: Config, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    conf = as_root(primary)
    replicated(primary, monkeypatch, 1, "user:1")
    settings(primary, follows=False, litestream="/nonexistent/litestream")
    host.FENCE.write_text("now\n")
    with pytest.raises(Failure, match="/nonexistent/litestream cannot be run"):
        failover.promote(conf, lose_rows=False, alone=True)
    assert host.fenced()
    (host.UNITS / "multi-user.target.wants").mkdir()
    (host.UNITS / "multi-user.target.wants" / replica.UNIT).symlink_to("/nowhere")
    said = failover.promote(conf, lose_rows=False, alone=True).summary
    assert "whether another host was promoted could not be seen: /nonexistent/litestream cannot be run" in said
    assert not host.fenced()
    assert told[-1] == "start abathur.service"


def timers(*jobs: str) -> None:
    wants = host.UNITS / "timers.target.wants"
    wants.mkdir(exist_ok=True)
    for job in jobs:
        (wants / f"abathur-db@{job}.timer").touch()
        (host.UNITS / f"abathur-db@{job}.timer").touch()


def test_a_host_without_a_replica_is_not_fenced_by_mistake(primary: Config, told: list[str]) -> None:
    conf = as_root(primary)
    replica.SETTINGS.unlink()
    with pytest.raises(Failure, match="not replicated, so no other one could take over") as refused:
        failover.fence(conf, lose_rows=False)
    assert "systemctl stop abathur.service" in refused.value.hint
    assert (host.fenced(), told) == ("", [])
    assert failover.fence(conf, lose_rows=False, not_replicated=True).changed
    # Whatever one tries next leads out of it.
    with pytest.raises(Failure, match="not replicated, and fenced since 20") as refused:
        failover.promote(conf, lose_rows=False, alone=False)
    assert refused.value.hint == "abathur-db unfence"
    assert "abathur-db unfence" in failover.may_write(conf).hint
    assert "rejoin" not in failover.may_write(conf).hint


@pytest.mark.parametrize("replicated", [False, True])
def test_a_fence_is_taken_back_with_all_that_it_had_stopped(
    primary: Config, monkeypatch: pytest.MonkeyPatch, told: list[str], replicated: bool
) -> None:
    conf = as_root(primary)
    monkeypatch.setattr(failover, "_sole", lambda *_: {"added": ""})
    if not replicated:
        replica.SETTINGS.unlink()
    timers("backup", "drill")
    assert not failover.unfence(conf).changed
    failover.fence(conf, lose_rows=True, not_replicated=True)
    since = host.fenced()
    assert failover.unfence(conf, dry_run=True).changed
    assert host.fenced() == since
    told.clear()
    done = failover.unfence(conf)
    assert f"the fence of {since} is gone" in done.summary
    assert "enable --now abathur-db@backup.timer abathur-db@drill.timer" in told
    assert "start abathur.service" in [*told, *(each.replace(f"{replica.UNIT} ", "") for each in told)]
    assert (f"enable --now {replica.UNIT}" in told) is replicated
    assert not host.fenced()
    assert not list(host.UNITS.glob(f"*/{failover.DROP_IN}"))


def test_a_standby_is_not_taken_for_a_host_that_was_fenced_by_mistake(primary: Config, told: list[str]) -> None:
    settings(primary, follows=True)
    host.FENCE.write_text("2026-11-25T12:00:00+00:00\n")
    with pytest.raises(Failure, match="this host is a standby") as refused:
        failover.unfence(as_root(primary))
    assert "failover.yml" in refused.value.hint
    assert (host.fenced() != "", told) == (True, [])


def test_another_host_that_took_over_keeps_a_fence(
    primary: Config, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    def replaced(*_: object) -> None:
        raise Failure("lineage 0002 is newer than this host's", "rejoin")

    monkeypatch.setattr(failover, "_sole", replaced)
    failover.fence(as_root(primary), lose_rows=True)
    told.clear()
    with pytest.raises(Failure, match="newer"):
        failover.unfence(as_root(primary))
    assert (host.fenced() != "", told) == (True, [])


@pytest.mark.parametrize(("answer", "fenced"), [("y\n", True), ("\n", False), ("no\n", False)])
def test_a_fence_asks_at_a_terminal(
    primary: Config, monkeypatch: pytest.MonkeyPatch, told: list[str], answer: str, fenced: bool
) -> None:
    terminal = StringIO(answer)
    terminal.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr("sys.stdin", terminal)
    with nullcontext() if fenced else pytest.raises(Failure, match="nothing was changed"):
        failover.fence(as_root(primary), lose_rows=True, yes=False)
    assert bool(told) is fenced
    assert bool(host.fenced()) is fenced


def test_a_fenced_host_refuses_what_writes(
    primary: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    conf = as_root(primary)
    assert failover.may_write(conf).ok
    host.FENCE.write_text("2026-11-25T12:00:00+00:00\n")
    with pytest.raises(Failure, match="backup is the primary's work: this host is fenced since 2026") as refused:
        failover.refuse(conf, "backup")
    assert "rejoin.yml" in refused.value.hint
    settings(primary, follows=True)
    with pytest.raises(Failure, match="this host is a standby") as refused:
        failover.refuse(conf, "backup")
    assert "failover.yml" in refused.value.hint
    settings(primary, follows=False)
    with pytest.raises(Failure, match="metrics is the primary's work: this host is fenced since 2026"):
        metrics.collect(conf)
    settings(primary, follows=True)
    # A database of one's own is nobody's primary.
    assert failover.may_write(primary).ok
    mask = os.umask(0o077)
    for configured, code in ((conf, 1), (primary, 0)):
        monkeypatch.setattr(cli, "_configuration", lambda _, configured=configured: configured)
        assert cli.main(["checkpoint"]) == code
    os.umask(mask)
    assert "checkpoint is the primary's work: this host is a standby" in capsys.readouterr().err


def test_a_standby_is_promoted_with_every_change_that_the_replica_has(
    primary: Config, follower: Config, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    conf = as_root(follower)
    replicated(primary, monkeypatch, 3, "user:1")
    settings(follower, follows=True)
    with pytest.raises(Failure, match="has no copy that has caught up once"):
        failover.promote(conf, lose_rows=False, alone=True)
    with pytest.raises(Failure, match="the primary may be at work") as refused:
        failover.promote(conf, lose_rows=True, alone=False, dry_run=True)
    assert refused.value.hint.startswith("on the primary: abathur-db fence")
    with pytest.raises(Failure, match="has no copy any more"):
        failover._take(conf, replica.required(conf))
    with following(follower):
        caught_up(follower)
        replicated(primary, monkeypatch, 4, "user:2")
        settings(follower, follows=True)
        host.FENCE.write_text("now\n")
        (follower.install_directory / "kept").mkdir()
        assert failover.promote(conf, lose_rows=False, alone=True, dry_run=True).data["lineage"] == 1
        assert not follower.database.exists()
        until(lambda: standby.level(follower, replica.required(follower), 5)[0] == "", "the copy is level")
        (host.UNITS / replica.FOLLOW).touch()
        del told[:]
        result = failover.promote(conf, lose_rows=False, alone=True)
    assert result.changed
    assert result.data["recovery_point"].startswith("20")
    assert told == [
        f"start {replica.FOLLOW}",
        f"stop {replica.FOLLOW}",
        f"enable {replica.UNIT}",
        "daemon-reload",
        f"disable --now {replica.FOLLOW}",
        f"enable --now {replica.UNIT}",
        "start abathur.service",
    ]
    assert value(follower.database, "SELECT count(*) FROM memory_entries") == 7
    assert not host.fenced()
    assert not replica.required(follower).standby
    assert not standby.place(follower).exists()
    # What a rollback would have returned to was a standby's.
    assert not (follower.install_directory / "kept").exists()
    assert "it is a primary" in failover.promote(conf, lose_rows=False, alone=True).summary


def test_a_promotion_that_was_cut_before_the_application_ran_is_finished_by_the_next(
    primary: Config, monkeypatch: pytest.MonkeyPatch, told: list[str]
) -> None:
    conf = as_root(primary)
    host.FENCE.write_text("now\n")

    def refuse(*arguments: str) -> None:
        told.append(" ".join(arguments))
        if arguments == ("start", "abathur.service"):
            raise Failure("it does not start", "look")

    with monkeypatch.context() as patch:
        patch.setattr(host, "control", refuse)
        with pytest.raises(Failure, match="it does not start"):
            failover.promote(conf, lose_rows=False, alone=True)
    assert not host.fenced()
    told.clear()
    assert failover.promote(conf, lose_rows=False, alone=True).changed
    assert told[-2:] == [f"enable --now {replica.UNIT}", "start abathur.service"]
    assert not failover.promote(conf, lose_rows=False, alone=True).changed


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize("step", ["forget", "note"])
def test_a_promotion_of_a_former_primary_that_was_cut_is_finished_by_the_next(
    primary: Config, follower: Config, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    conf = as_root(follower)
    replicated(primary, monkeypatch, 1, "user:1")
    store = replica.SETTINGS.parent / "store"
    shutil.copytree(store / "0001", store / "0012")
    (store / "0001").rename(store / "0011")
    settings(follower, follows=True)
    replica.remember(follower, {"lineage": 11, "url": replica.required(follower).url, "file": "put aside"})
    (follower.install_directory / "kept").mkdir()
    host.FENCE.write_text("now\n")
    with following(follower):
        assert caught_up(follower).lineage == 12
        with monkeypatch.context() as patch:
            patch.setattr(release, step, lambda *_: (_ for _ in ()).throw(Failure("killed", "")))
            with pytest.raises(Failure, match="killed"):
                failover.promote(conf, lose_rows=False, alone=True)
    assert failover.promote(conf, lose_rows=False, alone=True).changed
    # What a rollback would return to was a standby's.
    assert not (follower.install_directory / "kept").exists()
    assert replica.lineage(follower, replica.required(follower)) == 13


def test_a_copy_of_a_newer_schema_is_not_promoted_by_an_older_tool(
    primary: Config, follower: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicated(primary, monkeypatch, 1, "user:1")
    with following(follower):
        caught_up(follower)
    monkeypatch.setattr(shape, "latest", lambda: 0)
    with pytest.raises(Failure, match="schema version 1, newer than this host's tool, which knows 0") as refused:
        failover.promote(as_root(follower), lose_rows=False, alone=True, dry_run=True)
    assert "deploy this standby" in refused.value.hint


def test_a_copy_that_was_stopped_before_the_last_change_is_fetched_anew(
    primary: Config, follower: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have a part of that change, which SQLite's checks do not find."""
    replicated(primary, monkeypatch, 3, "user:1")
    with following(follower):
        caught_up(follower)
    replicated(primary, monkeypatch, 4, "user:2")
    settings(follower, follows=True, maximum_lag_seconds=60)
    found = replica.required(follower)
    with monkeypatch.context() as patch:
        patch.setattr(replica, "fetch", lambda *_: (_ for _ in ()).throw(Failure("no space", "df")))
        assert failover._anew(follower, found, standby.copies(follower)[0]) is None
    taken = failover._take(follower, found)
    assert taken["lineage"] == 1
    assert taken["recovery_point"].startswith("20")
    assert value(follower.database, "SELECT count(*) FROM memory_entries") == 7


def test_of_two_promotions_at_once_the_later_one_does_not_replace_the_database(
    primary: Config, follower: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicated(primary, monkeypatch, 3, "user:1")
    with following(follower):
        caught_up(follower)
    to_wal = restore.to_wal

    def meanwhile(path: Path) -> None:
        to_wal(path)
        shutil.copy(path, follower.database)
        rows(follower.database, 4, "user:2")

    monkeypatch.setattr(restore, "to_wal", meanwhile)
    with pytest.raises(Failure, match="another promotion was faster"):
        failover._take(follower, replica.required(follower))
    assert value(follower.database, "SELECT count(*) FROM memory_entries") == 7


def test_a_copy_that_was_torn_is_fetched_anew(
    primary: Config, follower: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicated(primary, monkeypatch, 3, "user:1")
    with following(follower):
        copy = caught_up(follower)
    with copy.path.open("r+b") as stream:
        stream.seek(4096)
        stream.write(b"torn" * 2048)
    with monkeypatch.context() as patch:
        patch.setattr(replica, "point", lambda *_: None)
        with pytest.raises(Failure, match="corrupt"):
            failover._take(follower, replica.required(follower))
    failover._take(follower, replica.required(follower))
    assert value(follower.database, "SELECT count(*) FROM memory_entries") == 3


def test_the_last_changes_of_a_copy_that_follows_are_waited_for(
    follower: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings(follower, follows=True)
    applied = iter([3, 4, 5])
    found = replica.required(follower)
    copy = SimpleNamespace(lineage=1, url=found.url, applied=lambda: next(applied))
    monkeypatch.setattr(standby, "current", lambda _: copy)
    monkeypatch.setattr(replica, "newest", lambda *_: 1)
    monkeypatch.setattr(standby, "_last", lambda *_: (5, "the moment"))
    assert standby.level(follower, found, 30) == ("", "the moment")
    assert list(applied) == []


def test_a_copy_of_another_replica_is_not_level_and_is_not_promoted(
    primary: Config, follower: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(standby, "LEVEL_SECONDS", 0)
    replicated(primary, monkeypatch, 1, "user:1")
    with following(follower):
        copy = caught_up(follower)
        recorded(follower, replication.replication(follower))
    copy.ready.write_text("")  # as an earlier tool left it
    assert standby.level(follower, replica.required(follower), 0)[0] == ""
    copy.ready.write_text(replica.required(follower).url)
    moved = f"{copy.url}/moved"
    shutil.copytree(replica.SETTINGS.parent / "store/0001", replica.SETTINGS.parent / "store/moved/0001")
    settings(follower, follows=True, url=moved, maximum_lag_seconds=0)
    fault = standby.level(follower, replica.required(follower), 0)[0]
    assert re.fullmatch(rf"the copy has transaction \d+ of lineage 0001 of {copy.url}, the replica .*", fault)
    with pytest.raises(Failure, match="had all of the replica at an unknown time"):
        failover.promote(as_root(follower), lose_rows=False, alone=True, dry_run=True)
    assert not replication.replication(follower).data["arrived"]
    settings(follower, follows=True)
    shutil.rmtree(replica.SETTINGS.parent / "store/0001")
    assert standby.level(follower, replica.required(follower), 0)[0] == "the replica has no lineage 0001 any more"


def test_a_standby_that_is_behind_is_promoted_only_when_told_so(
    primary: Config, follower: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    conf = as_root(follower)
    monkeypatch.setattr(standby, "LEVEL_SECONDS", 0)
    replicated(primary, monkeypatch, 1, "user:1")
    with following(follower):
        caught_up(follower)
        recorded(follower, replication.replication(follower))
    replicated(primary, monkeypatch, 1, "user:2")
    settings(follower, follows=True, maximum_lag_seconds=0)
    time.sleep(1)
    with pytest.raises(Failure, match=r"more than 0 s ago: the copy has transaction \d+ of lineage 0001") as refused:
        failover.promote(conf, lose_rows=False, alone=True, dry_run=True)
    assert "abathur_db_failover_lose_rows=true" in refused.value.hint
    assert failover.promote(conf, lose_rows=True, alone=True, dry_run=True).data["fault"]
    with monkeypatch.context() as patch:
        set_clock(-3600, patch)
        with pytest.raises(Failure, match="of a time to come: the copy has transaction"):
            failover.promote(conf, lose_rows=False, alone=True, dry_run=True)
        # Nor does a standby that never had a copy count as young.
        assert standby.first_copy_age(follower) > 3000
    settings(follower, follows=True, maximum_lag_seconds=60)
    assert failover.promote(conf, lose_rows=False, alone=True, dry_run=True).data["recovery_point"].startswith("20")
    settings(follower, follows=True, litestream="/nonexistent/litestream")
    assert "cannot be run" in failover._caught_up(follower, replica.required(follower), lose_rows=True)["fault"]


@pytest.mark.usefixtures("told")
def test_a_standby_that_is_promoted_without_the_replica_says_what_it_may_lack(
    primary: Config, follower: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicated(primary, monkeypatch, 2, "user:1")
    with following(follower):
        caught_up(follower)
    settings(follower, follows=True, litestream="/nonexistent/litestream")
    host.FENCE.write_text("now\n")
    said = failover.promote(as_root(follower), lose_rows=True, alone=True).summary
    assert said.endswith(
        "it may lack changes of the replica: /nonexistent/litestream cannot be run: No such file or directory"
    )
    assert value(follower.database, "SELECT count(*) FROM memory_entries") == 2


def test_a_standby_and_a_fenced_host_are_not_rolled_back(follower: Config, told: list[str]) -> None:
    for follows, fence in ((True, False), (False, True)):
        settings(follower, follows=follows)
        if fence:
            host.FENCE.write_text("now\n")
        for to in ("", "latest"):
            with pytest.raises(Failure, match="nothing is rolled back on a standby or a fenced host"):
                release.rollback(as_root(follower), to, lose_rows=False, failed_deploy=False)
    settings(follower, follows=True)
    assert release.rollback(follower, "", lose_rows=False, failed_deploy=True).data["done"] == []
    assert told == []


def test_the_page_of_the_fleet_says_how_far_a_standby_is_behind(
    primary: Config, follower: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    replicated(primary, monkeypatch, 1, "user:1")
    with following(follower):
        caught_up(follower)
        before = {**report.gather(follower), "name": "memory2"}
        recorded(follower, replication.replication(follower))
        found = {**report.gather(follower), "name": "memory2"}
    assert "standby, lag not known" in fleet_page.render([before], before["generated"])
    assert re.search(r"standby, \S+ m?s behind", fleet_page.render([found], found["generated"]))
    assert "Replica" in page.render(found)


@pytest.mark.usefixtures("told")
def test_the_older_of_two_primaries_says_so_and_rejoins_with_its_database_kept(
    primary: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    conf = as_root(primary)
    replicated(primary, monkeypatch, 2, "user:1")
    with pytest.raises(Failure, match="may be the newest there is"):
        failover.rejoin(conf)
    host.FENCE.write_text("now\n")
    assert failover.promote(conf, lose_rows=False, alone=True, dry_run=True).changed
    assert (
        "the fence is gone; one that was promoted a moment ago"
        in failover.promote(conf, lose_rows=False, alone=True).summary
    )
    shutil.copytree(tmp_path / "store/0001", tmp_path / "store/0002")
    with service(primary, monkeypatch):
        result = replication.replication(primary)
        assert not result.ok
        assert "lineage 0002 has begun after this host's" in result.summary
    host.FENCE.write_text("now\n")
    with pytest.raises(Failure, match="lineage 0002 is newer than this host's"):
        failover.promote(conf, lose_rows=False, alone=True)
    assert failover.rejoin(conf, dry_run=True).changed
    assert primary.database.exists()
    result = failover.rejoin(conf)
    kept = Path(result.data["kept"]) / "abathur.db"
    assert value(kept, "SELECT count(*) FROM memory_entries") == 2
    assert not primary.database.exists()
    assert standby.is_one(primary)
    assert failover.rejoin(conf).summary == "this host has no database of its own"


def test_the_older_of_two_primaries_goes_on_once_it_has_begun_a_newer_lineage(
    primary: Config, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: list[str]
) -> None:
    replicated(primary, monkeypatch, 2, "user:1")
    shutil.copytree(tmp_path / "store/0001", tmp_path / "store/0002")
    with pytest.raises(Failure, match="lineage 0002 is newer than this host's") as refused:
        failover.promote(as_root(primary), lose_rows=False, alone=False)
    assert refused.value.hint.endswith("abathur-db promote --new-lineage")
    dry = failover.promote(as_root(primary), lose_rows=False, alone=False, new_lineage=True, dry_run=True)
    assert dry.changed
    assert replica.newer(primary, replica.required(primary)) == 2
    settings(primary, follows=False, litestream="/nonexistent/litestream")
    with pytest.raises(Failure, match="/nonexistent/litestream cannot be run"):
        failover.promote(as_root(primary), lose_rows=False, alone=False, new_lineage=True)
    assert told == []
    settings(primary, follows=False)
    result = failover.promote(as_root(primary), lose_rows=False, alone=False, new_lineage=True)
    assert result.summary.endswith("its replication begins lineage 0003")
    assert result.hint == ""
    assert told[0] == f"stop {replica.UNIT}"
    assert told[-2:] == [f"enable --now {replica.UNIT}", "start abathur.service"]
    with service(primary, monkeypatch):
        assert replication.replication(primary).summary.endswith("in lineage 0003")
    assert "it is a primary" in failover.promote(as_root(primary), lose_rows=False, alone=False).summary


def test_a_store_that_does_not_answer_is_no_second_primary(primary: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    replicated(primary, monkeypatch, 1, "user:1")
    settings(primary, follows=False, litestream="/nonexistent/litestream")
    assert replication._alone(primary, replica.required(primary)) == []


def test_a_deploy_is_told_what_a_standby_is(conf: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    isdir = os.path.isdir
    monkeypatch.setattr(os.path, "isdir", lambda path: path == "/run/systemd/system" or isdir(path))
    home = Path("/var/lib") / f"abathur-failover-{os.getpid()}"
    home.mkdir(mode=0o700)
    conf = replace(as_root(conf), database=home / "data/a.db", backup_directory=home / "b")
    conf = replace(conf, state_directory=home / "s", install_directory=home / "o")
    try:
        fresh = preflight.preflight(conf, "r", "{}", standby=True)
        assert fresh.ok, fresh.summary
        assert not fresh.data["current"]
        assert not fresh.data["backup_needed"]
        host.FENCE.write_text("now\n")
        assert [each.id for each in preflight.preflight(conf, "", "").checks if not each.ok] == ["fence"]
        conf = replace(conf, owner="")
        conf.database.parent.mkdir(mode=0o700)
        schema.init(conf)
        own = preflight.preflight(conf, "", "", standby=True)
        assert [each.id for each in own.checks if not each.ok] == ["database"]
        assert "rejoin.yml" in own.hint
        assert preflight.preflight(conf, "", "").ok
    finally:
        shutil.rmtree(home)
