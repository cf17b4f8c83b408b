"""What ran before the last deploy, kept so that a rollback can return to it: release, configuration, units.

Lives in the install directory, which only root can write. A deploy first keeps what runs (`pending`),
and confirms at its end; a rollback returns to what a cut or failed deploy left pending, else to what
the last confirmed one replaced.
"""

from __future__ import annotations

import contextlib
import filecmp
import json
import os
import re
import shutil
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from abathur_db import (
    catalog,
    database,
    foreign,
    guarded,
    host,
    interruption,
    replica,
    restore,
    runs,
    schema,
    seed,
    soundness,
    standby,
    takeover,
)
from abathur_db.config import Config
from abathur_db.result import Failure, Result, away

ETC = Path("/etc")
UNITS = "systemd/system"
CONFIGURATION = "abathur-db.toml"
SECRETS = "abathur-db.secrets"
RECORD = "record.json"
OURS = re.compile(
    r"^# Made by Abathur Ops|^Description=((Job|(Alert for|Sign of life of|Mail about) job) %i|Timer of job [a-z-]+"
    r"|Continuous replication|Standby copy) of Abathur's database$"
    r"|^Description=Copy of Abathur's database for a backup$",
    re.MULTILINE,
)
"""What a unit has in it that a deploy made, before there was a mark its description: an operator's own has a name like
ours perhaps. The role abathur_maintenance says the same."""
PULL = "abathur-pull.timer"
"""Deploys what the host's repository has (role abathur_pull)."""
STOPPED = "stopped.json"
"""Units that were stopped and have to be started again; the deploy's role writes and deletes it as well."""


def _files(etc: Path) -> list[Path]:
    """Return what belongs to a release below /etc: the configuration, the units and timers, and their secrets."""
    units = [*(etc / UNITS).glob("abathur-db*.service"), *(etc / UNITS).glob("abathur-db*.timer")]
    found = [etc / CONFIGURATION, etc / replica.SETTINGS.name, *(etc / SECRETS).glob("*"), *units]
    there = [each for each in found if each.is_file() and not each.is_symlink()]
    return sorted(each for each in there if each not in units or OURS.search(each.read_text("utf-8", "replace")))


def _pending(config: Config) -> Path:
    return config.install_directory / "kept.pending"


def _kept(config: Config) -> Path:
    return config.install_directory / "kept"


def current(config: Config) -> str | None:
    """Return the name of the installed release, None where there is none."""
    link = config.install_directory / "current"
    return os.readlink(link) if link.is_symlink() else None


def unfinished(config: Config) -> bool:
    """Tell whether a deploy began to change this host and was cut before its end."""
    return _pending(config).exists()


def record(folder: Path) -> dict[str, Any] | None:
    """Return the record of a kept release: release, backup, user_version, timers, services, time; None without one.

    Raises Failure when it cannot be read: without it nobody knows which backup a rollback needs.
    """
    path = folder / RECORD
    guarded.roots_alone(path)
    try:
        return foreign.record(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except ValueError as error:
        hint = f"move it away, then deploy again: {away(path, 'bad')}"
        raise Failure(f"{path} cannot be read: {error}", hint) from None


def keep(config: Config, backup: str, dry_run: bool = False) -> Result:
    """Keep what runs now; `backup`: ID of the backup that was just taken, empty for none.

    What an earlier deploy that never ended has kept stays: that is the last state known to be good.
    """
    running = current(config)
    if running is None:
        return Result("keep", "no release ran here before, so there is nothing to keep")
    if _pending(config).exists():
        return Result("keep", "kept already, by a deploy that did not end")
    if dry_run:
        return Result("keep", f"would keep release {running}", changed=True)
    # As the owner: root reads nothing in a directory of the application's user.
    manifest = host.as_owner(config.owner, lambda: _backup(config, backup)) if backup else {}
    partial = config.install_directory / "kept.partial"
    _delete(partial)
    partial.mkdir()
    for each in _files(ETC):
        target = partial / "etc" / each.relative_to(ETC)
        target.parent.mkdir(parents=True, exist_ok=True)
        _copy(each, target)
    for each in config.install_directory.glob(replica.PROGRAMS):
        os.link(each, partial / each.name)
    kept = {
        "release": running,
        "backup": manifest.get("id"),
        "user_version": manifest.get("user_version"),
        "timers": _timers(),
        "services": _services(),
        "time": runs.now(),
    }
    (partial / RECORD).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    # Readable for the owner's jobs: pruning spares the backup named in it.
    partial.chmod(0o755)
    (partial / RECORD).chmod(0o644)
    # On the disk before it counts: a rollback must not return to files that a power cut has emptied.
    for each in [*partial.rglob("*"), partial]:
        guarded.sync(each)
    with interruption.change(f"release {running} was kept for a rollback"):
        partial.rename(_pending(config))
        guarded.sync(config.install_directory)
    # Not a change of the host that an operator would look for.
    return Result("keep", f"kept release {running}", data=kept)


def _backup(config: Config, wanted: str) -> dict[str, Any]:
    found = catalog.find(config, wanted)
    return {"id": found.id, "user_version": found.user_version}


def _fitting(config: Config, version: int | None) -> dict[str, Any]:
    """Return the newest backup of a schema version or an older one, a verified one if there is any; any for None."""
    found = catalog.backups(config)
    ordered = [*catalog.verified(config, found), *found]
    fitting = [each.id for each in ordered if version is None or each.user_version <= version]
    return {"id": fitting[0] if fitting else None}


def _copy(source: Path, target: Path) -> None:
    """Copy a file with its mode and its owner: the jobs read their configuration through its group."""
    shutil.copy2(source, target)
    found = source.stat()
    os.chown(target, found.st_uid, found.st_gid)


def _timers() -> list[str]:
    ours = {each.name for each in _files(ETC)}
    wants = ETC / UNITS / "timers.target.wants"
    return sorted(each.name for each in wants.glob("abathur-db@*.timer") if each.name in ours)


def _services() -> list[str]:
    wants = ETC / UNITS / "multi-user.target.wants"
    return [each for each in replica.SERVICES if (wants / each).is_symlink()]


def confirm(config: Config, dry_run: bool = False) -> Result:
    """End a deploy: what was kept becomes what a rollback returns to, unless the deploy changed nothing."""
    pending = record(_pending(config))
    data = {"release": current(config)}
    if pending is None or dry_run:
        return Result("confirm", "no release was kept by this deploy", data=data)
    if pending["release"] == current(config) and _same(_pending(config)):
        _delete(_pending(config))
        return Result("confirm", "the deploy changed neither release nor units", data=data)
    _flush(config)
    _promote(config)
    return Result("confirm", f"a rollback returns to release {pending['release']}", data=data)


def _flush(config: Config) -> None:
    """Flush what runs now, before what ran before is given up: neither Ansible nor systemctl does."""
    running = [each for each in (config.install_directory / "current").rglob("*") if each.is_file()]
    files = [*_files(ETC), *running]
    wants = (ETC / UNITS).glob("*.target.wants")
    for each in [*files, *{file.parent for file in files}, *wants, config.install_directory]:
        guarded.sync(each)


def _promote(config: Config) -> None:
    """Let what is pending be what a rollback returns to; killed in between, it is pending still, and counts first."""
    with interruption.change("what the deploy replaced is what a rollback returns to"):
        _delete(_kept(config))
        _pending(config).rename(_kept(config))
        guarded.sync(config.install_directory)


def _delete(folder: Path) -> None:
    if folder.exists():
        shutil.rmtree(folder)
        guarded.sync(folder.parent)


def forget(config: Config) -> None:
    """Forget what was kept: it is of a standby, and this host is none any more."""
    _delete(_pending(config))
    _delete(_kept(config))


def _same(folder: Path) -> bool:
    kept, now = _files(folder / "etc"), _files(ETC)
    names = [each.relative_to(folder / "etc") for each in kept]
    return names == [each.relative_to(ETC) for each in now] and all(
        filecmp.cmp(folder / "etc" / name, ETC / name, shallow=False) for name in names
    )


def spared(config: Config) -> list[str]:
    """Return the IDs of the backups that a rollback needs: pruning leaves them."""
    records = (record(_pending(config)), record(_kept(config)))
    return [each["backup"] for each in records if each and each["backup"]]


def rollback(config: Config, to: str, lose_rows: bool, failed_deploy: bool, dry_run: bool = False) -> Result:
    """Go back: with no `to`, to the release before the last deploy; else to that backup, `latest`, a moment or `fresh`.

    The release before the last deploy gets the database as it is, or, when that deploy migrated it,
    or when it is missing or corrupt, from a backup; rows written since are lost only with `lose_rows`.
    `failed_deploy`: return from a deploy that did not end well; without one there is nothing to do.
    Runs as root; what touches the database runs as its owner. Can be run again after it was killed.
    """
    folder = _pending(config) if record(_pending(config)) else _kept(config)
    former = record(folder)
    if failed_deploy and folder != _pending(config):
        return Result("rollback", "no former release was kept by this deploy", data={"done": []})
    follows = standby.is_one(config)
    if not failed_deploy and (follows or (config.owner and host.fenced())):
        raise Failure(
            "nothing is rolled back on a standby or a fenced host",
            "roll the primary back; another release comes to a standby by a deploy: ansible-playbook deploy.yml",
        )
    if not to and former is None:
        raise Failure(
            "there is no former release: this host was deployed once, or never changed",
            "go back to a backup: abathur-db rollback --to latest (from the controller: "
            "ansible-playbook rollback.yml --limit HOST -e abathur_db_rollback_to=latest)",
        )
    target = None if to else former
    source = _source(config, target) if target and not follows else to
    if dry_run:
        said = host.as_owner(config.owner, lambda: _dry(config, source)) if source else {"summary": ""}
        parts = [f"would return to release {target['release']}"] if target else []
        parts += ["would pause pulling"] if target and not failed_deploy and (ETC / UNITS / PULL).exists() else []
        parts += [said["summary"]] if source else ["the database stays as it is"]
        return Result("rollback", "; ".join(parts), changed=True, data={"source": source or None, "done": []})
    done: list[str] = []
    leaves = bool(target) and not failed_deploy
    with _pulling_paused(needed=leaves):
        units = _stop(config, needed=bool(source))
        try:
            if source:
                keep_rows = not to and not lose_rows
                done.append(host.as_owner(config.owner, lambda: _restore(config, source, keep_rows))["summary"])
            if target:
                done += _return_to(config, target, folder)
            if to:
                done += host.as_owner(config.owner, lambda: _bring_up(config))["done"]
        except BaseException:
            # The error that began it is the one to tell.
            with contextlib.suppress(Failure):
                start(config, units)
            raise
        start(config, units)
    if leaves and (ETC / UNITS / PULL).exists():
        done.append(
            f"pulling is paused, or it would undo this; once the repository is right: systemctl enable --now {PULL}"
        )
    if folder == _pending(config) and target:
        _close(config, failed_deploy)
    return Result(
        "rollback",
        "; ".join(done) or f"release {current(config)} runs already, the database stays as it is",
        changed=bool(done),
        data={"source": source or None, "release": current(config), "done": done},
    )


@contextlib.contextmanager
def _pulling_paused(*, needed: bool) -> Iterator[None]:
    """Keep this host from deploying to itself, from now on where the work goes well, else for as long as it takes."""
    pauses = needed and (ETC / UNITS / "timers.target.wants" / PULL).is_symlink()
    if pauses:
        host.control("disable", "--now", PULL)
        # One that is at work would deploy again what is taken back.
        host.control("stop", PULL.replace(".timer", ".service"))
    try:
        yield
    except BaseException:
        if pauses:
            with contextlib.suppress(Failure):
                host.control("enable", "--now", PULL)
        raise


def _close(config: Config, failed_deploy: bool) -> None:
    """Forget what a failed deploy kept, so that the older one counts again; keep what a rollback was asked for."""
    if failed_deploy:
        _delete(_pending(config))
    else:
        _promote(config)


def _source(config: Config, former: dict[str, Any]) -> str:
    """Return the backup that the former release needs, empty when the database serves it as it is."""
    version = host.as_owner(config.owner, lambda: {"version": _version(config)})["version"]
    wanted = former["user_version"]
    if version is not None and (wanted is None or version <= wanted):
        return ""
    if version is not None and former["backup"]:
        return str(former["backup"])
    fitting: str | None = host.as_owner(config.owner, lambda: _fitting(config, wanted))["id"]
    if fitting:
        return fitting
    raise Failure(
        f"{config.database} cannot be used and there is no backup for the former release",
        "begin anew (the database of now is kept aside): "
        "ansible-playbook rollback.yml --limit HOST -e abathur_db_rollback_to=fresh",
    )


def _version(config: Config) -> int | None:
    """Return the database's schema version, None when it is missing or not sound."""
    try:
        database.require(config.database)
        with database.opened(config.database, config.busy_timeout_ms, read_only=True) as connection:
            return None if soundness.findings(connection).damage else database.pragma(connection, "user_version")
    except Failure:
        return None


def _dry(config: Config, source: str) -> dict[str, Any]:
    return restore.restore(config, source, dry_run=True).as_dict()


def _restore(config: Config, source: str, keep_rows: bool) -> dict[str, Any]:
    with runs.locked(config.state_directory, "rollback", config.lock_wait_seconds):
        # A database that cannot be used keeps nobody from a backup: what is in it cannot be read, and is kept aside.
        return restore.restore(config, source, keep_rows=keep_rows and _version(config) is not None).as_dict()


def _bring_up(config: Config) -> dict[str, Any]:
    """Bring a restored database to this release's schema and seeds, as a deploy would."""
    with runs.locked(config.state_directory, "rollback", config.lock_wait_seconds):
        results = [schema.init(config), seed.seed(config)]
    return {"done": [each.summary for each in results if each.changed]}


def _return_to(config: Config, former: dict[str, Any], folder: Path) -> list[str]:
    """Make the former release the current one, with its configuration and units. Returns what was done."""
    if former["release"] == current(config) and _same(folder):
        return []
    if not (config.install_directory / former["release"]).is_dir():
        raise Failure(
            f"release {former['release']} is not in {config.install_directory} any more",
            "check that release out and deploy it: ansible-playbook deploy.yml",
        )
    kept = folder / "etc" / CONFIGURATION
    if config.backup_owner and kept.exists() and not tomllib.loads(kept.read_text("utf-8")).get("backup_owner"):
        takeover.give_back(config)
    files = _files(folder / "etc")
    guarded.roots_alone(*files)
    interruption.did(f"the units and the configuration of release {former['release']} may be there in part")
    wanted = {each.relative_to(folder / "etc") for each in files}
    # What they run with changes, and the tool as well.
    for service in replica.SERVICES:
        if (ETC / UNITS / service).exists():
            host.control("stop", service)
    for each in _files(ETC):
        if each.relative_to(ETC) not in wanted:
            if each.suffix == ".timer" or each.name in replica.SERVICES:
                host.control("disable", "--now", each.name)
            each.unlink()
    for program in folder.glob(replica.PROGRAMS):
        if not (config.install_directory / program.name).exists():
            os.link(program, config.install_directory / program.name)
    for name in sorted(wanted):
        partial = ETC / name.with_name(f".{name.name}.partial")
        partial.parent.mkdir(mode=0o700, exist_ok=True)
        _copy(folder / "etc" / name, partial)
        guarded.sync(partial)
        partial.rename(ETC / name)
    link = config.install_directory / ".current.partial"
    link.unlink(missing_ok=True)
    link.symlink_to(former["release"])
    with interruption.change(f"release {former['release']} is the current one"):
        link.rename(config.install_directory / "current")
    host.control("daemon-reload")
    # Of the two a standby has both, and runs one. A record of an earlier release names none.
    services = former.get("services", replica.SERVICES)
    if enabled := [name for name in (*former["timers"], *services) if Path(UNITS) / name in wanted]:
        host.control("enable", "--now", *enabled)
    _flush(config)
    return [f"returned to release {former['release']}"]


def _note(config: Config) -> Path:
    return config.install_directory / STOPPED


def stopped(config: Config) -> list[str]:
    """Return the units that a deploy or a rollback has stopped and not started again: it was cut in between."""
    guarded.roots_alone(_note(config))
    try:
        found = foreign.value(_note(config).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return []
    return [each for each in found if isinstance(each, str)] if isinstance(found, list) else []


def _stop(config: Config, *, needed: bool) -> list[str]:
    """Stop the application when needed; return the units to start again, also those that a killed run had stopped."""
    # Nobody may have the database open, and Litestream has.
    units = [*config.application_units, *([replica.UNIT] if replica.settings(config) else [])]
    active = [each for each in units if host.is_active(each)]
    names = sorted({*stopped(config), *(active if needed else [])})
    if names and needed:
        note(config, names)
        host.control("stop", *names)
    return names


def note(config: Config, names: list[str]) -> None:
    """Note units that have to be started: a run that is cut before is followed by one that does it."""
    runs.write_whole(_note(config), json.dumps(names), durable=True)


def start(config: Config, names: list[str]) -> None:
    """Start units that were noted, and forget them."""
    # The former release may not replicate.
    if there := [each for each in names if each != replica.UNIT or (ETC / UNITS / each).exists()]:
        host.control("start", *there)
    if names:
        _note(config).unlink()
