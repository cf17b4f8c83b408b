"""Litestream as a child that is watched: it can leave the database's way without a word, and is set back on it.

Litestream reads the log's file, and does not ask SQLite how far it is committed. A process that is killed while it
commits leaves a transaction in that file which was never committed. Litestream 0.5.17 sends it; and once the next
process has put another one in its place, all that Litestream sends goes on from a state that the database never had.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import textwrap
import threading
from typing import Any

from abathur_db import database, replica
from abathur_db.config import Config
from abathur_db.result import Failure

LOG = f"see why: journalctl -u {replica.UNIT.removesuffix('.service')} -n 50"

WAIT_MS = 250
"""How long emptying the log may make writers wait, at each try."""

REST_SECONDS = 1.0
"""How long writers are left alone between two tries."""

TOLD = ("WARN", "ERROR")
"""The levels of what Litestream says that reach the journal."""

SENTENCE = 400
"""Characters of a sentence of Litestream's: it lists every file that a store did not delete."""


def run(config: Config, number: int, arguments: list[str]) -> None:
    """Run Litestream with these arguments, on the lineage `number`, until SIGTERM; begin anew whenever it went astray.

    Begun anew it sends the whole database, as the next change of the same lineage. Raises Failure when it cannot be run
    or ends with an error.
    """
    stop = threading.Event()
    child: subprocess.Popen[str] | None = None

    def end(*_: object) -> None:
        # Once: told twice Litestream does not send what is left.
        if child and not stop.is_set():
            child.terminate()
        stop.set()

    signal.signal(signal.SIGTERM, end)
    sound = _begins_well(config, number)
    while not stop.is_set() and (sound or _emptied(config, stop)):
        child = _started(arguments)
        with child:
            way = Way(config, number, emptied=not sound)
            astray = _goes_astray(child, way)
            if astray:
                child.kill()
        if child.returncode and not astray and not stop.is_set():
            raise Failure(f"Litestream ended with exit code {child.returncode}: {replica.reason(way.said)}", LOG)
        # It is ended without an error by the job replication as well, when that finds it astray.
        sound = False


def _begins_well(config: Config, number: int) -> bool:
    """Tell whether the log goes on where Litestream has read it to."""
    place = replica.position(config, number)
    if place is None:
        return True
    with database.opened(config.database, config.busy_timeout_ms, read_only=True) as connection:
        # Whoever reads first after a crash has the -shm made anew.
        database.pragma(connection, "schema_version")
        log = replica.committed(config)
    return place.salts == log.salts and place.end <= log.end


def _emptied(config: Config, stop: threading.Event) -> bool:
    """Move the whole log into the database and begin it anew, so that Litestream finds nothing to go on from.

    Returns False when it is to stop meanwhile.
    """
    sys.stderr.write("the whole database is sent again: Litestream cannot go on from what it sent last\n")
    while not stop.is_set():
        with database.opened(config.database, WAIT_MS) as connection:
            busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
        if not busy:
            return True
        stop.wait(REST_SECONDS)
    return False


def _started(arguments: list[str]) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(
            arguments, env=replica.environment(), stderr=subprocess.PIPE, text=True, errors="replace"
        )
    except OSError as error:
        raise Failure(f"{arguments[0]} cannot be run: {error.strerror}", "deploy again") from None


def _goes_astray(child: subprocess.Popen[str], way: Way) -> bool:
    """Pass on what Litestream warns of until it ends; return early, with True, when it goes astray."""
    for line in child.stderr or ():
        try:
            told = json.loads(line)
        except ValueError:
            told = {"level": "ERROR", "msg": line.strip()}
        if told.get("level") in TOLD:
            way.said = ": ".join(str(told[name]) for name in ("msg", "error") if told.get(name))
            sys.stderr.write(textwrap.shorten(way.said, SENTENCE, placeholder=" …") + "\n")
        if why := way.leaves(told):
            sys.stderr.write(f"{why}: a process was killed while it committed, or the log was begun anew\n")
            return True
    return False


class Way:
    """Litestream's way through the log, by its own words."""

    def __init__(self, config: Config, number: int, *, emptied: bool) -> None:
        """Begin on the lineage `number`; `emptied`: with a log in which nothing stands of what it sent last."""
        self.config, self.number, self.emptied = config, number, emptied
        self.frame = replica.FRAME_HEADER + replica.page_bytes(config)
        self.change, self.end = "", 0
        self.said = ""
        """What Litestream last warned of."""

    def leaves(self, told: dict[str, Any]) -> str:
        """Return how Litestream leaves the database's way with this step; empty when it stays on it."""
        step = told.get("msg")
        if step == "sync":
            self.change, offset = told["txid"], told["offset"]
            # A whole copy of the database needs the log from its beginning.
            if told.get("snap") and offset > replica.LOG_HEADER and not self.emptied:
                return f"Litestream found another transaction than it had sent, before byte {offset} of the log"
            self.emptied = False
        elif step == "db sync":
            self.end = replica.change(self.config, self.number, self.change).end
        elif step == "checkpoint" and told["mode"] == "PASSIVE":
            frames = int(told["result"].split(",")[1])
            end = replica.LOG_HEADER + self.frame * frames
            # -1 where SQLite says nothing of the log: somebody else was at the same work.
            if frames >= 0 and self.end > end:
                return f"Litestream had sent {self.end} bytes of a log of {end}"
        return ""
