"""The write-ahead log of a replicated database: how far it is committed, read by Litestream, and at the replica."""

from __future__ import annotations

import struct
import time
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from abathur_db import database, replica
from abathur_db.config import Config
from abathur_db.replica import Settings
from abathur_db.result import Failure

LTX_HEADER = struct.Struct(">24xQ16xqq8s")
"""Of a file of Litestream's changes: the number of the last one; offset, size and salts of what it holds of the log."""

SHM_HEADER = struct.Struct("=14xHI12x8s")
"""Of the -shm: size of a page, frames that are committed, salts (sqlite.org/walformat.html, section 2.1)."""

HEADER_BYTES, FRAME_HEADER_BYTES = 32, 24
"""Bytes before the frames of a log, and before the page of each: sqlite.org/fileformat2.html, section 4.1."""

POLL_SECONDS = 0.5
"""Rest between two looks at the store for a change that is on its way."""


@dataclass(frozen=True)
class Place:
    """A place in the log: the salts that it was begun with, and the byte up to which it goes."""

    salts: bytes
    end: int
    change: int = 0
    """For what Litestream has read: the number of the last change in it."""


def committed(config: Config) -> Place:
    """Return up to where the log is committed, as every process that has the database open is told by the -shm."""
    try:
        shm = database.beginning(database.sidecars(config.database)[1], SHM_HEADER.size)
        page, frames, salts = SHM_HEADER.unpack(shm)
    except struct.error:
        return Place(b"", HEADER_BYTES)
    return Place(salts, HEADER_BYTES + frames * (FRAME_HEADER_BYTES + database.page_size(page)))


def position(config: Config, lineage: int) -> Place | None:
    """Return up to where Litestream has read the log, None before it has read any."""
    names = sorted(each.name for each in _changes(config, lineage).glob("*.ltx"))
    return change(config, lineage, names[-1].partition("-")[0]) if names else None


def change(config: Config, lineage: int, identity: str) -> Place:
    """Return up to where Litestream had read the log with a change, which it names by 16 hexadecimal digits."""
    with (_changes(config, lineage) / f"{identity}-{identity}.ltx").open("rb") as stream:
        last, offset, size, salts = LTX_HEADER.unpack(stream.read(LTX_HEADER.size))
    return Place(salts, offset + size, last)


def _changes(config: Config, lineage: int) -> Path:
    return replica.home(config) / f"{lineage:04}" / "ltx" / "0"


def on_track(config: Config, read: Place, now: Place) -> bool:
    """Tell whether all that Litestream has read of this log is committed, or stands right behind what is.

    A process that is killed while it commits leaves a whole transaction behind the end of the log, which was never
    committed, and which Litestream takes for one that was. That does no harm until another one stands in its place.
    """
    if read.salts != now.salts or read.end <= now.end:
        return True
    with database.sidecars(config.database)[0].open("rb") as stream:
        header, page = _header(stream)
        # Each frame's checksum goes on from that of the one before: sqlite.org/fileformat2.html, section 4.2.
        before = header[24:]
        if now.end > HEADER_BYTES:
            stream.seek(now.end - page - 8)
            before = stream.read(8)
            stream.seek(now.end)
        frame = stream.read(FRAME_HEADER_BYTES + page)
    if len(frame) < FRAME_HEADER_BYTES + page:
        return False
    order = ">" if header[3] & 1 else "<"
    first, second = struct.unpack(">2I", before)
    for left, right in struct.iter_unpack(f"{order}2I", frame[:8] + frame[FRAME_HEADER_BYTES:]):
        first = (first + left + second) & 0xFFFFFFFF
        second = (second + right + first) & 0xFFFFFFFF
    return struct.pack(">2I", first, second) == frame[16:FRAME_HEADER_BYTES]


def checksum(config: Config, end: int) -> bytes:
    """Return the log's salts and the checksum of all its frames up to a byte; empty where no frame ends there."""
    try:
        with database.sidecars(config.database)[0].open("rb") as stream:
            start = end - FRAME_HEADER_BYTES - _header(stream)[1]
            if start < HEADER_BYTES:
                return b""
            stream.seek(start + 8)
            return stream.read(16)
    except FileNotFoundError:
        return b""


def _header(stream: BinaryIO) -> tuple[bytes, int]:
    """Return the header of the log, and the size of a page by it."""
    header = stream.read(HEADER_BYTES)
    return header, int.from_bytes(header[8:12], "big")


LOOKS = 3
"""How often in a row a chain has to be broken until that is said."""


def arrive(config: Config, found: Settings, seconds: float) -> None:
    """Wait until what is committed now is at the replica, for `seconds` at most.

    Compares how far the database's log goes, how far the running Litestream has read it, and what of that is at the
    store, with all that a restore needs before it. Never by `litestream sync`: it has Litestream read the log out of
    its turn.
    Raises Failure with the store's reason, with ASTRAY, BROKEN, or TAKES_NOTHING.
    """
    deadline = time.monotonic() + seconds
    wanted, number = committed(config), (replica.last_lineage(config) or {"lineage": 1})["lineage"]
    astray = aim = None
    broken = 0
    while True:
        files = replica.changes(config, found, number)
        there = max((int(each["max_txid"], 16) for each in files), default=0)
        now, place = committed(config), position(config, number)
        if place and not on_track(config, place, now):
            # Once may be a look at two moments.
            if astray == (place, now):
                raise Failure(f"the replica {found.url} cannot be read: {replica.ASTRAY}", "see abathur-db status")
            astray, aim = (place, now), None
        elif aim is None and place and place.salts == now.salts:
            # A log that was begun anew waited for Litestream to have read the former one. Later changes are not waited
            # for: where one more is always on its way that would never end.
            aim = place.change if place.salts != wanted.salts or place.end >= wanted.end else None
        broken = 0 if replica.unbroken(files) else broken + 1
        if aim is not None and there >= aim and not broken:
            return
        # Levels are listed one after another, while files go from one to the next: once may be a look at two moments.
        if broken >= LOOKS:
            raise Failure(f"the replica {found.url} cannot be read: {replica.BROKEN}", replica.HINTS[replica.BROKEN])
        if time.monotonic() >= deadline:
            raise Failure(f"the replica {found.url} cannot be read: {replica.TAKES_NOTHING}", "see abathur-db status")
        time.sleep(POLL_SECONDS)
