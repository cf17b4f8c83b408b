"""How a host differs from what a deploy would make of it: users, directories, files, links, timers; read only."""

from __future__ import annotations

import grp
import hashlib
import os
import pwd
import re
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from abathur_db import host
from abathur_db.result import Exit, Failure

PARTS = ("host", "tool", "units", "timers", "replication")
"""The parts of a deploy, named as its tags are."""


def compare(wanted: dict[str, Any]) -> dict[str, list[str]]:
    """Return for each part of a deploy what differs, a sentence each; a part without any is as it should be.

    `wanted` is what the roles say (`__abathur_db_state`): per part `users` with their groups, `directories`, `files`
    and `links` with owner, group, mode, and content or its SHA-256; `only`, patterns of files of which no others may
    be there, or no others with a mark in them; `timers` and `services` that have to run. Raises Failure (USAGE) when it
    is something else.
    """
    try:
        return {part: [each for kind in LOOKS for each in _look(wanted.get(part, {}), kind)] for part in PARTS}
    except (AttributeError, KeyError, TypeError) as error:
        raise Failure(
            f"what the host should be is not described as this release expects it: {error!r}",
            "deploy with the playbooks of the same checkout: ansible-playbook deploy.yml",
            Exit.USAGE,
        ) from None


def _look(part: dict[str, Any], kind: str) -> list[str]:
    return LOOKS[kind](part[kind]) if kind in part else []


def _users(wanted: list[dict[str, str]]) -> list[str]:
    found = []
    for each in wanted:
        # One that is there is as somebody made it, and stays so; the preflight refuses one that cannot serve.
        name, group = each["name"], each["group"]
        try:
            pwd.getpwnam(name), grp.getgrnam(group)
        except KeyError:
            found.append(f"the user {name} or the group {group} does not exist")
    return found


def _differs(path: Path, wanted: dict[str, Any], is_kind: Callable[[int], bool], kind: str) -> str:
    """Return how what is at `path` differs in kind, owner, group and mode; empty when it does not."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return f"{path} is absent"
    if not is_kind(found.st_mode):
        return f"{path} is not {kind}"
    owner, group = _id(wanted["owner"], pwd.getpwnam, "pw_uid"), _id(wanted["group"], grp.getgrnam, "gr_gid")
    if (found.st_uid, found.st_gid) != (owner, group):
        return f"{path} does not belong to {wanted['owner']}:{wanted['group']}"
    mode = f"{stat.S_IMODE(found.st_mode):04o}"
    if "mode" in wanted and mode != wanted["mode"]:
        return f"{path} has mode {mode}, not {wanted['mode']}"
    return ""


def _id(name: str, find: Callable[[str], Any], field: str) -> int | None:
    try:
        return int(getattr(find(name), field))
    except KeyError:
        return None


def _directories(wanted: list[dict[str, Any]]) -> list[str]:
    found = (_differs(Path(each["path"]), each, stat.S_ISDIR, "a directory") for each in wanted)
    return [each for each in found if each]


def _files(wanted: list[dict[str, Any]]) -> list[str]:
    found = []
    for each in wanted:
        path = Path(each["path"])
        fault = _differs(path, each, stat.S_ISREG, "a regular file")
        digest = each.get("sha256") or hashlib.sha256(each["content"].encode()).hexdigest()
        if not fault and hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            fault = f"{path} has another content"
        found.append(fault)
    return [each for each in found if each]


def _links(wanted: list[dict[str, Any]]) -> list[str]:
    found = []
    for each in wanted:
        path = Path(each["path"])
        fault = _differs(path, each, stat.S_ISLNK, "a link")
        if not fault and os.readlink(path) != each["src"]:
            fault = f"{path} points to {os.readlink(path)}, not {each['src']}"
        found.append(fault)
    return [each for each in found if each]


def _only(wanted: list[dict[str, Any]]) -> list[str]:
    found = []
    for each in wanted:
        home = Path(each["directory"])
        there = sorted({path for pattern in each["patterns"] for path in home.glob(pattern)})
        left = [path for path in there if path.name not in each["names"] and _marked(path, each.get("mark", ""))]
        found += [f"{path} is left from an earlier deploy" for path in left]
    return found


def _marked(path: Path, mark: str) -> bool:
    """Tell whether a file has in it what says that a deploy made it; for an empty `mark` its name says that."""
    return not mark or (path.is_file() and bool(re.search(mark, path.read_text("utf-8", "replace"), re.MULTILINE)))


def _running(units: list[str]) -> list[str]:
    found = []
    known = host.properties_of(units, "ActiveState", "UnitFileState", "NeedDaemonReload")
    for unit in units:
        state = known.get(unit, {})
        if state.get("UnitFileState") != "enabled" or state.get("ActiveState") != "active":
            found.append(f"{unit} is not enabled and active")
        elif state.get("NeedDaemonReload") == "yes":
            found.append(f"systemd has not read {unit} anew")
    return found


LOOKS: dict[str, Callable[[Any], list[str]]] = {
    "users": _users,
    "directories": _directories,
    "files": _files,
    "links": _links,
    "only": _only,
    "timers": _running,
    "services": _running,
}
"""What can be said of a part, and who looks at it."""
