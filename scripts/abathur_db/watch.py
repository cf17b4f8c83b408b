"""Litestream as a child that is watched: it can leave the database's way without a word, and is set back on it.

Litestream reads the log's file, and does not ask SQLite how far it is committed. A process that is killed while it
commits leaves a transaction in that file which was never committed. Litestream 0.5.17 sends it; and once the next
process has put another one in its place, all that Litestream sends goes on from a state that the database never had.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import textwrap
import threading
from contextlib import ExitStack, suppress
from typing import Any

from abathur_db import database, foreign, interruption, replica, wal
from abathur_db.config import Config
from abathur_db.result import Failure

LOG = f"see why: journalctl -u {replica.UNIT.removesuffix('.service')} -n 50"

WAIT_MS = 250
"""How long emptying the log may make writers wait, at each try."""

REST_SECONDS = 1.0
"""How long writers are left alone between two tries."""

REST_OF_STOP_SECONDS = 10
"""How long a stop waits for what is sent again: systemd leaves it 30 s, and Litestream may need 10 before and after."""

TOLD = ("WARN", "ERROR")
"""The levels of what Litestream says that reach the journal."""

FAILURES = 2
"""How often in a row the files of a level cannot be read, until that is said."""

SENTENCE = 400
"""Characters of a sentence of Litestream's: it lists every file that a store did not delete."""


def run(config: Config, number: int, arguments: list[str]) -> None:
    """Run Litestream with these arguments, on the lineage `number`, until SIGTERM; begin anew whenever it went astray.

    Begun anew it sends the whole database, as the next change of the same lineage. Raises Failure when it cannot be run
    or ends with an error.
    """
    stop = threading.Event()
    untold: list[subprocess.Popen[str]] = []

    def end(*_: object) -> None:
        stop.set()
        # Each once: told twice Litestream does not send what is left.
        with suppress(IndexError):
            untold.pop().terminate()

    signal.signal(signal.SIGTERM, end)
    with interruption.stopped_by(end), ExitStack() as hold:
        way = _begun(config, number, hold)
        while not stop.is_set() and (way or _emptied(config, stop)):
            way = way or Way(config, number, emptied=True)
            child = _started(arguments)
            untold.append(child)
            # It may have been told while Litestream was being started.
            if stop.is_set():
                end()
            with child:
                astray = _goes_astray(child, way, hold)
                if astray:
                    child.kill()
            untold.clear()
            hold.close()
            if astray and stop.is_set():
                _send_rest(config, arguments)
            if child.returncode and not astray and not stop.is_set():
                raise Failure(f"Litestream ended with exit code {child.returncode}: {replica.reason(way.said)}", LOG)
            # It is ended without an error by the job replication as well, when that finds it astray.
            way = None


def _begun(config: Config, number: int, hold: ExitStack) -> Way | None:
    """Return the way that goes on where Litestream has read the log to; None where the log does not go on from there.

    A log that goes on is held as it is, by a reader, until Litestream itself reads.
    """
    way = Way(config, number)
    with ExitStack() as reader:
        connection = reader.enter_context(database.opened(config.database, config.busy_timeout_ms, read_only=True))
        connection.execute("BEGIN")
        # Whoever reads first after a crash has the -shm made anew.
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        place, log = wal.position(config, number), wal.committed(config)
        if place and (place.salts != log.salts or place.end > log.end):
            return None
        hold.enter_context(reader.pop_all())
        # What is read whole may be followed by a new log.
        way.sealed = place is not None and place.end == log.end
        return way


def _send_rest(config: Config, arguments: list[str]) -> None:
    """Send again what was not sent because Litestream went astray at its end.

    An application that was stopped just before replication may have been killed while it committed.
    """
    if _empty(config):
        with _started(arguments, subprocess.DEVNULL) as child, suppress(Failure):
            try:
                wal.arrive(config, replica.required(config), REST_OF_STOP_SECONDS)
            finally:
                child.terminate()


def _emptied(config: Config, stop: threading.Event) -> bool:
    """Empty the log, so that Litestream finds nothing to go on from; returns False when it is to stop meanwhile."""
    sys.stderr.write("the whole database is sent again: Litestream cannot go on from what it sent last\n")
    while not stop.is_set():
        if _empty(config):
            return True
        stop.wait(REST_SECONDS)
    return False


def _empty(config: Config) -> bool:
    """Move the whole log into the database and begin it anew; returns False while others are at work on it."""
    with database.opened(config.database, WAIT_MS) as connection:
        busy, _, _ = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not busy


def _started(arguments: list[str], stderr: int = subprocess.PIPE) -> subprocess.Popen[str]:
    try:
        return subprocess.Popen(arguments, env=replica.environment(), stderr=stderr, text=True, errors="replace")
    except OSError as error:
        raise Failure(f"{arguments[0]} cannot be run: {error.strerror}", "deploy again") from None


def _goes_astray(child: subprocess.Popen[str], way: Way, hold: ExitStack) -> bool:
    """Pass on what Litestream warns of until it ends; return early, with True, when it goes astray.

    `hold`: what is to be let go as soon as it reads.
    """
    files = Files(way.config)
    for line in child.stderr or ():
        try:
            told = foreign.record(line, _two_levels)
        except ValueError:
            told = {"level": "ERROR", "msg": line.strip()}
        if told.get("level") in TOLD:
            way.said = ": ".join(str(told[name]) for name in ("msg", "error") if told.get(name))
            sys.stderr.write(textwrap.shorten(way.said, SENTENCE, placeholder=" …") + "\n")
        files.hear(told)
        if told.get("msg") == "sync":
            hold.close()
        if why := way.leaves(told):
            sys.stderr.write(f"{why}\n")
            return True
    return False


def _two_levels(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object in which `level` stands twice: first how bad it is, and then, as `files`, of which level."""
    return {"files": dict(pairs).get("level"), **dict(reversed(pairs))}


class Files:
    """The files that Litestream has sent, by its own words.

    Again and again it reads those of one level back and puts them together to one of the next: those of a minute every
    five minutes, those of an hour every hour. Where a file is missing or damaged that fails, and so would a restore.
    """

    def __init__(self, config: Config) -> None:
        """Begin with files that can be read, as far as is known."""
        self.config = config
        self.failures: dict[int, list[str]] = {}
        replica.note_unreadable(config, "")

    def hear(self, told: dict[str, Any]) -> None:
        """Note what a message says of a level; once may be chance, twice is a finding."""
        level = told.get("files", 0)
        if told.get("msg") == "compaction complete":
            self.failures.pop(level, None)
        elif told.get("msg") == "compaction failed" and replica.unreadable(told["error"]):
            self.failures[level] = [*self.failures.get(level, []), told["error"]][-FAILURES:]
        else:
            return
        standing = [each[-1] for each in self.failures.values() if len(each) == FAILURES]
        replica.note_unreadable(self.config, replica.reason(standing[0]) if standing else "")


class Way:
    """Litestream's way through the log, by its own words.

    On it each change goes on where the one before ended, and a new log begins only behind a checkpoint of exactly what
    had been sent of the former one. Both follow from how 0.5.17 works, and held wherever nothing was killed.
    """

    def __init__(self, config: Config, number: int, *, emptied: bool = False) -> None:
        """Begin on the lineage `number`; `emptied`: with a log in which nothing stands of what it sent last."""
        self.config, self.number, self.emptied = config, number, emptied
        self.frame = wal.FRAME_HEADER_BYTES + database.page_bytes(config.database)
        place = wal.position(config, number)
        self.change, self.end, self.frames = "", place.end if place else 0, b""
        self.sealed = False
        """Whether all of the log is sent, and nothing can be added to it: then a new one may begin."""
        self.said = ""
        """What Litestream last warned of."""

    def leaves(self, told: dict[str, Any]) -> str:
        """Return how Litestream leaves the database's way with this step; empty when it stays on it."""
        step = told.get("msg")
        if step == "sync":
            return self._reads(told)
        if step == "db sync":
            self.end, self.sealed = wal.change(self.config, self.number, self.change).end, False
            self.frames = wal.checksum(self.config, self.end)
        elif step == "checkpoint" and told["mode"] == "PASSIVE":
            frames = int(told["result"].split(",")[1])
            end = wal.HEADER_BYTES + self.frame * frames
            # -1 where SQLite says nothing of the log: somebody else was at the same work.
            if frames >= 0 and self.end and self.end != end:
                return f"Litestream had sent {self.end} bytes of a log of {end}"
            self.sealed = frames >= 0
        return ""

    def _reads(self, told: dict[str, Any]) -> str:
        offset, whole, expected = told["offset"], bool(told.get("snap")), self.emptied
        self.change, self.emptied = told["txid"], False
        salts, now = self.frames[:8], wal.checksum(self.config, self.end)
        # Litestream compares the last page alone, which may be the same in both.
        if self.frames and not whole and now[:8] == salts and now != self.frames:
            return f"another transaction stands where Litestream had sent one, before byte {self.end} of the log"
        if whole == (offset == wal.HEADER_BYTES) or expected:
            # A whole copy of the database needs the log from its beginning; a part of it goes on from the last.
            return ""
        if whole:
            return f"Litestream found another transaction than it had sent, before byte {offset} of the log"
        # The last change may have ended where the log begins: nothing was in it.
        if self.sealed or self.end == wal.HEADER_BYTES:
            return ""
        return "the log was begun anew before Litestream had read all of the former one"
