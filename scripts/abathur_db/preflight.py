"""What has to be true of a host before a deploy changes anything, and what the deploy would then do."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
from pathlib import Path
from typing import Any

# All of these are imported here, not on demand: once the privileges are dropped, the archive that
# Ansible carried to the host can no longer be read.
from abathur_db import (
    drift,
    failover,
    foreign,
    guarded,
    host,
    requirements,
    rescue,
    resources,
    runs,
    schema,
    seed,
    status,
)
from abathur_db import release as releases
from abathur_db import schedule as times
from abathur_db.config import Config
from abathur_db.result import Check, Exit, Failure, Result, shell, summarize


def preflight(
    config: Config,
    release: str,
    state: str,
    schedule: str = "",
    *,
    machine: str = "",
    replica: str = "",
    places: str = "",
    standby: bool = False,
) -> Result:
    """Check the host and plan the schema and the seeds, changing nothing; all failures in one report.

    `release`: the name of the release that the deploy will install, empty when there is none.
    `state`: what the host should be as JSON, empty when that is not asked; what differs is in the data (drift),
    with `current`: whether a deploy has nothing to do at all, none was cut, the last validation was good, and
    the status is good now.
    `schedule`: calendars and time spans of the jobs as JSON, by kind and name, empty when there are none to check.
    `machine`: the processor that Litestream is built for, as `uname -m` names it, empty without replication.
    `replica`: the directory in which the replica is to be kept, empty where that is at a store.
    `places`: the directories in which root makes something, as JSON, empty when there are none to check.
    `standby`: the host is to follow a primary, and has no database of its own.
    """
    resources.preload()
    drifted = drift.compare(_parsed("--state", state)) if state else {}
    checks = [Check(**each) for each in requirements.all_checks()]
    checks += [*_users(config), *_file_systems(config), *_paths(config), *(_places(places) if places else [])]
    # Units that are on the host already were understood by its systemd.
    checks += (
        times.checks(_parsed("--schedule", schedule)) if schedule and drifted.get("units", ["not looked at"]) else []
    )
    checks += [_machine(machine)] if machine else []
    checks += [_above(Path(replica))] if replica else []
    checks += [] if standby else [failover.may_write(config)]
    data: dict[str, Any] = {
        "release": releases.current(config),
        "unfinished": releases.unfinished(config),
        "missing_packages": _missing_packages(config),
        "missing_users": [name for name in (config.owner, config.backup_owner) if name and _uid(name) is None],
        "application_units": [_unit(config, name) for name in config.application_units],
    }
    if data["missing_packages"]:
        checks.append(_packages(data["missing_packages"]))
    paths_are_sound = all(check.ok for check in checks)
    if paths_are_sound:
        checks.append(_followed(config, data) if standby else _planned(config, data))
        changes = any(data.get(step, {}).get("changed") for step in ("init", "seed"))
        exists = not standby and data.get("init", {}).get("data", {}).get("kind") != "create"
        data["drift"] = drifted
        stopped = [unit for unit in data["application_units"] if unit["stopped"]]
        unfenced = standby and not failover.complete(config)
        todo = [unfenced, *drifted.values(), data["missing_packages"], changes, data["unfinished"], stopped]
        data["current"] = bool(state) and not any(todo) and _healthy(config, data, standby)
        data["backup_needed"] = exists and (changes or (bool(release) and release != data["release"]))
    data["notes"] = [f"{check.id}: {check.measured}; {check.hint}" for check in checks if check.warning]
    if data.get("current"):
        data["notes"].append(f"nothing has to be changed; {data['status']}; prove it all again: playbooks/validate.yml")
    data["notes"] += [each for part in drifted.values() for each in part]
    data["notes"] += [data[step]["summary"] for step in ("init", "seed") if data.get(step, {}).get("changed")]
    summary, hint = summarize("preflight", checks)
    return Result("preflight", summary, checks=checks, data=data, hint=hint)


def _machine(wanted: str) -> Check:
    """Check that the host has the processor that the Litestream of this deploy is built for."""
    found = os.uname().machine
    return Check(
        "replication_machine",
        found == wanted,
        f"{wanted}, which Litestream is built for",
        found,
        f"name it in the host's variables: abathur_replication_machine: {found}"
        if found in ("x86_64", "aarch64")
        else "do without, which Litestream is not built for: abathur_replication_enabled: false",
    )


def _above(place: Path) -> Check:
    """Check that there is a directory to make that of the replica in: a disk that is not mounted is not made up for."""
    there = place.parent.is_dir()
    return Check(
        "replica_place",
        there,
        "a directory that is there already, for the replica's own",
        f"{place.parent}{'' if there else ' does not exist'}",
        f"mount the other disk, or make it: mkdir -p {place.parent}",
    )


def _parsed(option: str, text: str) -> dict[str, Any]:
    try:
        return foreign.record(text)
    except ValueError:
        raise Failure(f"{option} is not a JSON object: {text[:60]}", "let the deploy call this", Exit.USAGE) from None


def _healthy(config: Config, data: dict[str, Any], standby: bool) -> bool:
    """Tell whether the last validation and the status of now are good; what is not is validated again by the deploy.

    On a standby there is nothing to validate.
    """
    last = runs.known(config, "last", "validate")
    now = status.status(config)
    data["status"] = now.summary
    return (standby or (last is not None and bool(last["ok"]))) and now.ok


def _planned(config: Config, data: dict[str, Any]) -> Check:
    try:
        if _owner_exists(config):
            host.become(config.owner)
        with rescue.advised(config):
            todo = schema.init(config, dry_run=True)
        seeds = seed.seed(config, dry_run=True)
    except Failure as failure:
        return Check("database", False, "one that can be created, adopted or migrated", str(failure), failure.hint)
    data.update(init=todo.as_dict(), seed=seeds.as_dict())
    measured = "; ".join(each.summary for each in (todo, seeds))
    return Check("database", True, "one that can be created, adopted or migrated", measured)


def _followed(config: Config, data: dict[str, Any]) -> Check:
    """Check that a host that is to be a standby has no database of its own, which a copy would then replace."""
    if _owner_exists(config):
        host.become(config.owner)
    data.update({step: {"changed": False, "data": {"kind": "current"}} for step in ("init", "seed")})
    own = os.path.lexists(config.database)
    return Check(
        "database",
        not own,
        "none on a standby, which follows its primary's",
        f"{config.database} is this host's own" if own else "none",
        "after a failover, which this host lost: ansible-playbook playbooks/rejoin.yml; "
        "else take it out of the inventory group abathur_standby",
    )


def _owner_exists(config: Config) -> bool:
    return _uid(config.owner) is not None


def _uid(name: str) -> int | None:
    try:
        return pwd.getpwnam(name).pw_uid
    except KeyError:
        return None


def _unit(config: Config, name: str) -> dict[str, str | bool]:
    """Tell of an application's unit whether it runs, is meant to run, or was stopped by a run that was cut."""
    found = host.unit_properties(name, "ActiveState", "UnitFileState")
    return {
        "name": name,
        "active": found.get("ActiveState") in ("active", "activating", "reloading"),
        "enabled": found.get("UnitFileState") == "enabled",
        "stopped": name in releases.stopped(config),
    }


def _missing_packages(config: Config) -> list[str]:
    needs_zstd = config.backup_compression == "zstd" and not shutil.which("zstd")
    return ["zstd"] if needs_zstd else []


def _packages(missing: list[str]) -> Check:
    """Check that the packages that are missing can be installed, as far as the host itself can tell."""
    named = ", ".join(missing)
    return Check(
        "packages",
        shutil.which("apt-get") is not None,
        f"{named}, or apt-get to install it",
        f"{named} is missing",
        f"install {named} on the host, or do without: abathur_db_backup_compression: gzip",
    )


def _directories(config: Config) -> dict[str, Path]:
    return {
        "data": config.database.parent,
        "backup": config.backup_directory,
        "state": config.state_directory,
    }


def _users(config: Config) -> list[Check]:
    """Check that users who are there already, the application's for one, can serve as they are: none is changed.

    Both users are in the owner's group first: what the one writes for the other is the group's.
    """
    try:
        group: int | None = grp.getgrnam(config.owner).gr_gid
    except KeyError:
        group = None
    checks = []
    for name in filter(None, (config.owner, config.backup_owner)):
        try:
            first = pwd.getpwnam(name).pw_gid
        except KeyError:
            continue
        try:
            measured = grp.getgrgid(first).gr_name
        except KeyError:
            measured = str(first)
        checks.append(
            Check(
                f"user_{name}",
                first == group,
                f"a user whose first group is {config.owner}, or none yet",
                f"{name} is there, with the first group {measured}",
                f"with nothing of its running: {'' if group else f'groupadd --system {config.owner} && '}"
                f"usermod --gid {config.owner} {name}; or name another: abathur_db_owner, abathur_db_backup_owner",
            )
        )
    return checks


def _file_systems(config: Config) -> list[Check]:
    """Check kind and free space, each file system once."""
    checks = []
    size = config.database.stat().st_size if config.database.is_file() else 0
    # 500 MB to start with (design document, section 1.1), and room for the database twice over:
    # one copy to check, one backup.
    needed = max(config.minimum_free_mb * host.MB, 2 * size)
    seen = set()
    for name, path in _directories(config).items():
        kind = host.file_system(path)
        checks.append(
            Check(
                f"{name}_file_system",
                host.is_local(kind),
                "a local file system",
                kind,
                f"configure a path on a local disk: {path} is on {kind}, where SQLite's WAL is not safe",
            )
        )
        device = os.stat(host.existing(path)).st_dev
        if device not in seen:
            seen.add(device)
            free = host.free_bytes(path)
            checks.append(
                Check(
                    f"{name}_free_space",
                    free >= needed,
                    f"{host.readable(needed)} free",
                    f"{host.readable(free)} at {host.existing(path)}",
                    f"free space there, or configure another disk: {shell('df', '-h', host.existing(path))}",
                )
            )
    return checks


def _paths(config: Config) -> list[Check]:
    """Check that nobody else could swap a directory or the database under us.

    Root makes and gives away the three directories, so all above them has to be root's own: the owner
    of a directory can put a symlink in the place of whatever is in it.
    """
    uid = _uid(config.owner)
    groups = _groups(config)
    above = {0} if config.owner else {0, os.geteuid()}
    checks = []
    for name, path in _directories(config).items():
        fault, hint = guarded.writable([*reversed(path.parents)], above, groups)
        if not fault:
            # Backups that are the database owner's still are taken over by the deploy.
            keeper = {_uid(config.backup_owner)} if name == "backup" else set()
            fault, hint = guarded.writable([path], {*above, uid, *keeper}, set())
        if not fault and config.owner:
            fault, hint = _taken(config, path)
        checks.append(Check(f"{name}_path", not fault, "no symlink, no stranger's", fault or str(path), hint))
    fault, hint = guarded.writable([config.database], {*above, uid}, set())
    if not fault and config.owner and os.path.lexists(config.database):
        owner = os.lstat(config.database).st_uid
        if owner != uid:
            fault = f"{config.database} belongs to {guarded.user_name(owner)}"
            hint = f"give it to {config.owner} with what is beside it: "
            hint += f"{shell('chown', '--no-dereference', f'{config.owner}:', config.database)}*"
    checks.append(Check("database_path", not fault, "no symlink, no stranger's", fault or str(config.database), hint))
    return checks


def _places(text: str) -> list[Check]:
    """Check that whatever else root makes is made where nobody else can change a name, for the same reason."""
    places = [Path(each) for each in _parsed("--places", text).get("places", [])]
    fault, hint = guarded.writable(guarded.way(*places), {0}, None, links=True)
    hint = f"{hint}; or name another place for what the deploy makes below it (its variables: README, Variables)"
    return [Check("places", not fault, "all that root makes in directories of root's alone", fault or "root's", hint)]


def _groups(config: Config) -> set[int]:
    """Return the groups of the database's owner, none for one who will be made."""
    if not _owner_exists(config):
        return set()
    return set(os.getgrouplist(config.owner, pwd.getpwnam(config.owner).pw_gid))


def _taken(config: Config, path: Path) -> tuple[str, str]:
    """Tell whether a directory of root's is in use: it would become the owner's, with nothing for others."""
    if not path.is_dir() or path.stat().st_uid != 0 or not any(path.iterdir()):
        return "", ""
    return (
        f"{path} belongs to root and is not empty",
        f"configure a directory of its own; if it is the application's: {shell('chown', f'{config.owner}:', path)}",
    )
