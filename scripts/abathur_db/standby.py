"""A standby: follows the replica of its primary into a copy of its own, which no application opens, until promoted.

Litestream cannot go on following where it was stopped, unless a snapshot is newer; so each start makes a new copy,
in a folder of its own beside the database's place, and the former one stays until the new one has caught up.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from abathur_db import database, foreign, guarded, host, replica, runs
from abathur_db.config import Config
from abathur_db.result import Check, Exit, Failure, Result

LOG = f"see why: journalctl -u {replica.FOLLOW.removesuffix('.service')} -n 50"

LOOK_AGAIN_SECONDS = 10.0
"""How often a standby looks for a newer lineage: a look costs a request per level of Litestream's."""

NAME = re.compile(r"\d{4,18}-\d{1,18}", re.ASCII)
"""Lineage, and milliseconds since 1970: how the folder of a copy is named."""

LEVEL_SECONDS = 60.0
"""How long a copy that follows, a second behind as a rule, may take for the last changes."""


def is_one(config: Config) -> bool:
    """Tell whether this host is a standby."""
    found = replica.settings(config)
    return found is not None and found.standby


def place(config: Config) -> Path:
    """Return the folder of the copies: on the database's file system, so that a promotion is a rename."""
    return config.database.with_name(f"{config.database.name}.standby")


@dataclass(frozen=True)
class Copy:
    """A copy of the primary's database, in a folder named LINEAGE-SECONDS after its lineage and its beginning."""

    folder: Path
    name: str

    @property
    def path(self) -> Path:
        """Return the file that follows."""
        return self.folder / self.name

    @property
    def lineage(self) -> int:
        """Return the number of the lineage that it follows."""
        return int(self.folder.name.partition("-")[0])

    @property
    def ready(self) -> Path:
        """Return the mark that it has caught up with the replica once: a file with the URL of that."""
        return self.folder / "ready"

    @property
    def url(self) -> str:
        """Return the URL of the replica that it has caught up with; empty before that, and once it is gone."""
        try:
            return guarded.read_text(self.ready).strip()
        except (FileNotFoundError, ValueError):
            return ""

    def applied(self) -> int:
        """Return the number of the last transaction in it, as Litestream notes it; 0 while it is restored."""
        try:
            return foreign.whole(guarded.read_text(self.path.with_name(f"{self.name}-txid")), 16)
        except (FileNotFoundError, ValueError):
            return 0


def copies(config: Config) -> list[Copy]:
    """Return the copies that there are, the newest first."""
    there = (each for each in place(config).glob("*-*") if NAME.fullmatch(each.name))
    found = sorted(there, key=lambda each: each.name, reverse=True)
    return [Copy(each, config.database.name) for each in found]


def current(config: Config) -> Copy | None:
    """Return the newest copy that has caught up once, None before the first has."""
    return next((each for each in copies(config) if each.ready.exists()), None)


def version(config: Config) -> int:
    """Return the schema version of the newest copy that has caught up once, 0 without one, or without an answer."""
    copy = current(config)
    # Bytes 60 to 63: sqlite.org/fileformat.html, section 1.3.
    return int.from_bytes(database.beginning(copy.path, 64)[60:], "big") if copy else 0


def follow(config: Config) -> Result:
    """Follow the newest lineage of the primary's replica into a new copy, until a newer one begins or systemd ends it.

    Raises Failure on a host that is no standby, without a lineage to follow, and when Litestream ends by itself.
    """
    found = replica.required(config)
    if not found.standby or database.exists(config.database):
        raise Failure(
            f"this host is no standby: {config.database} is its own" if found.standby else "this host is no standby",
            "put it into the inventory group abathur_standby and run playbooks/rejoin.yml",
            Exit.USAGE,
        )
    number = replica.newest(config, found, _since(config, found))
    if not number:
        raise Failure(f"{found.url} has no lineage to follow yet", "deploy its primary: ansible-playbook deploy.yml")
    place(config).mkdir(mode=0o700, exist_ok=True)
    copy = Copy(place(config) / f"{number:04}-{time.time_ns() // 1_000_000}", config.database.name)
    for each in copies(config):
        if each != current(config):
            shutil.rmtree(each.folder)
    copy.folder.mkdir(mode=0o700)
    with _following(config, found, copy) as child:
        try:
            newer = _watch(config, found, copy, child)
        finally:
            child.terminate()
    if newer:
        return Result("follow", f"lineage {newer:04} has begun after {number:04}; it is followed from now on")
    raise Failure(f"Litestream has stopped following lineage {number:04}, with exit code {child.returncode}", LOG)


def _following(config: Config, found: replica.Settings, copy: Copy) -> subprocess.Popen[str]:
    told = json.dumps(replica.configuration(config, found, copy.lineage))
    how = ("restore", "-no-expand-env", "-config", "/proc/self/fd/0", "-f", "-follow-interval", "1s")
    try:
        child = subprocess.Popen(
            [found.litestream, *how, "-o", copy.path, config.database],
            env=replica.environment(),
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
    except OSError as error:
        raise Failure(f"{found.litestream} cannot be run: {error.strerror}", "deploy again") from None
    with child.stdin as stream:  # type: ignore[union-attr]
        stream.write(told)
    return child


def _watch(config: Config, found: replica.Settings, copy: Copy, child: subprocess.Popen[str]) -> int:
    """Wait beside the following Litestream; return the number of a newer lineage, 0 when Litestream has ended."""
    goal = 0
    while child.poll() is None:
        time.sleep(LOOK_AGAIN_SECONDS if copy.ready.exists() else min(1.0, LOOK_AGAIN_SECONDS))
        try:
            if replica.changes(config, found, copy.lineage + 1):
                return copy.lineage + 1
            if not copy.ready.exists():
                # What comes later is not waited for: of a primary at work there is always one change more.
                goal = goal or _last(config, found, copy.lineage)[0]
                if copy.applied() >= goal:
                    _ready(config, found, copy)
        except Failure:
            # A store that is away comes back, and Litestream waits for it as well.
            continue
    return 0


def _ready(config: Config, found: replica.Settings, copy: Copy) -> None:
    runs.write_whole(copy.ready, f"{found.url}\n")
    for each in copies(config):
        if each != copy:
            shutil.rmtree(each.folder)


def _last(config: Config, found: replica.Settings, lineage: int) -> tuple[int, str]:
    """Return number and time of the last transaction in the store. Raises Failure when it cannot be read."""
    listed = replica.changes(config, found, lineage)
    return max(((int(each["max_txid"], 16), str(each["timestamp"])) for each in listed), default=(0, ""))


def level(config: Config, found: replica.Settings, seconds: float) -> tuple[str, str]:
    """Wait until the copy has all that was in the store when this began; return what went wrong, and the time of that.

    Nothing went wrong when the first is empty. `seconds`: how long to wait.
    """
    deadline = time.monotonic() + seconds
    try:
        lineage = replica.newest(config, found, _since(config, found))
        wanted, moment = _last(config, found, lineage)
    except Failure as failure:
        return str(failure).partition("cannot be read: ")[2] or str(failure), ""
    if not wanted:
        return f"the replica has no lineage {lineage:04} any more" if lineage else "the replica has no lineage yet", ""
    while True:
        copy = current(config)
        # A copy that an earlier tool has marked does not say where it is from.
        if copy and (copy.url or found.url, copy.lineage) == (found.url, lineage) and copy.applied() >= wanted:
            return "", moment
        if time.monotonic() > deadline:
            break
        time.sleep(0.2)
    has = f"transaction {copy.applied()} of lineage {copy.lineage:04}" if copy else "nothing yet"
    if copy and copy.url not in ("", found.url):
        has += f" of {copy.url}"
    return f"the copy has {has}, the replica transaction {wanted} of lineage {lineage:04}", moment


def known(config: Config, found: replica.Settings) -> dict[str, Any]:
    """Return what is followed, named as replica.last_lineage names it."""
    copy = current(config)
    return {"lineage": copy.lineage, "url": copy.url} if copy else {"lineage": 0, "url": found.url}


def _since(config: Config, found: replica.Settings) -> int:
    """Return the number of a lineage that was there: the one that was followed, at the same place."""
    copy = known(config, found)
    return int(copy["lineage"]) if copy["url"] == found.url else 0


def first_copy_age(config: Config) -> float:
    """Return the age in seconds of the folder of the copies: of the standby. A clock that was set back adds to it."""
    try:
        begun = place(config).stat().st_ctime if not copies(config) else copies(config)[-1].folder.stat().st_mtime
    except FileNotFoundError:
        return 0
    return abs(time.time() - begun)


def checks(config: Config) -> list[Check]:
    """Check that the copy answers a query; Litestream writes to it meanwhile, so one answer of three is enough."""
    copy = current(config)
    said = "there is no copy yet"
    for _ in range(3 if copy else 0):
        try:
            with database.opened(copy.path, 0, immutable=True) as connection:  # type: ignore[union-attr]
                version = database.pragma(connection, "user_version")
                tables = connection.execute("SELECT count(*) FROM sqlite_master WHERE type = 'table'").fetchone()[0]
            size = host.readable(copy.path.stat().st_size)  # type: ignore[union-attr]
            measured = f"schema version {version}, {tables} tables, {size}, lineage {copy.lineage:04}"  # type: ignore[union-attr]
            return [Check("standby", True, "a copy that answers", measured, LOG)]
        except Failure as failure:
            said = str(failure)
            time.sleep(0.1)
    return [Check("standby", False, "a copy that answers", said, LOG)]
