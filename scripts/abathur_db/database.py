"""The only opener of SQLite: file checks, owner check, pragmas, errors in plain words."""

from __future__ import annotations

import os
import sqlite3
import stat
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from urllib.parse import quote

from abathur_db import foreign, guarded, host, interruption, objects
from abathur_db.result import Exit, Failure, Lost, away, look, shell

MAGIC = b"SQLite format 3\0"
"""First 16 bytes of every SQLite file (sqlite.org/fileformat.html, section 1.3)."""

SIDECARS = ("-wal", "-shm", "-journal")
"""Behind the name of a database: its write-ahead log, that one's index, and a rollback journal. One set with the file:
a -wal or a -journal beside another file is replayed over it (sqlite.org/howtocorrupt.html, section 1.4)."""

STEP_BYTES = 16 << 20
"""Bytes that a snapshot copies between two reports of its progress."""

RESTORE = "restore the newest backup, which keeps what is there aside"
"""The next step wherever a database is found corrupt, without its command."""


class Refused(Failure):
    """What an application's schema keeps from everybody else: its collation, its function, its trigger or rule."""


def sidecars(path: Path) -> list[Path]:
    """Return the paths of the write-ahead log, its index and the rollback journal beside a database."""
    return [path.with_name(path.name + suffix) for suffix in SIDECARS]


def beginning(path: Path, count: int) -> bytes:
    """Return the first bytes of a database or of its -shm that this process may have open; none when it is absent.

    Another process reads it: closing a file takes away all locks of this one on it, those of SQLite's connections among
    them (sqlite.org/howtocorrupt.html, section 2.2). It follows no link and waits for no FIFO.
    """
    how = (f"bs={count}", "count=1", "iflag=fullblock,nofollow,nonblock", "status=none")
    return subprocess.run(["dd", f"if={path}", *how], capture_output=True, check=False).stdout


def page_bytes(path: Path) -> int:
    """Return the size of a page of a database; 4096, SQLite's default, where there is none."""
    # Bytes 16 and 17 of the file: sqlite.org/fileformat.html, section 1.3.2.
    return page_size(int.from_bytes(beginning(path, 18)[16:], "big")) or 4096


def page_size(stored: int) -> int:
    """Return the size of a page by how SQLite stores it in two bytes."""
    return 65536 if stored == 1 else stored


def files(path: Path) -> list[Path]:
    """Return the paths of a database and of all that SQLite may put beside it."""
    return [path, *sidecars(path)]


@contextmanager
def throwaway(path: Path) -> Iterator[Path]:
    """Lend a path for a database that is gone at the end; what a killed run left there goes first."""
    for leftover in files(path):
        guarded.clear(leftover)
    try:
        yield path
    finally:
        for leftover in files(path):
            leftover.unlink(missing_ok=True)


def open_to_others(path: Path) -> list[Path]:
    """Return the database's files that others than the owner may read or write; SQLite passes the mode on."""
    found = {each: guarded.facts(each) for each in (path, *sidecars(path))}
    return [each for each, facts in found.items() if facts and stat.S_IMODE(facts.st_mode) & 0o077]


def exists(path: Path) -> bool:
    """Tell whether there is a database to use at `path`.

    Raises Failure when something is there that cannot be one: a symlink, a directory or another
    special file, an empty file, another format, a file of another user or one that cannot be read.
    """
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        _refuse_orphaned_log(path)
        return False
    except OSError as error:
        raise Failure(f"{path} cannot be reached: {error.strerror}", look(path.parent)) from None
    if stat.S_ISLNK(found.st_mode):
        raise Failure(f"{path} {guarded.link(path)}", "configure the real path")
    if not stat.S_ISREG(found.st_mode):
        kind = "a directory" if stat.S_ISDIR(found.st_mode) else "not a regular file"
        raise Failure(f"{path} is {kind}, not a database", f"configure another path, or {look(path)}")
    _check_owner(path)
    try:
        with path.open("rb") as stream:
            start = stream.read(len(MAGIC))
    except OSError as error:
        raise Failure(
            f"{path} cannot be read: {error.strerror}", f"give its owner access: {shell('chmod', '0600', path)}"
        ) from None
    if not start:
        raise Lost(f"{path} is empty (0 bytes), not a database", f"move it away: {away(path, 'empty')}")
    if start != MAGIC:
        raise Failure(
            f"{path} is not a SQLite database: it starts with {start!r}",
            f"move it away ({away(path, 'other')}) or configure another path",
        )
    return True


def unsettled(path: Path) -> bool:
    """Tell whether opening a database that nobody has open would write beside it, or into it.

    A journal would be rolled back; a database in WAL mode gets a -shm.
    """
    _, index, journal = sidecars(path)
    try:
        if journal.exists() and journal.stat().st_size:
            return True
        # Byte 18 of the file: sqlite.org/fileformat.html, section 1.3.3.
        return not index.exists() and path.is_file() and beginning(path, 19)[18:] == b"\x02"
    except OSError:
        # Whoever opens it says why it cannot be reached.
        return False


def require(path: Path) -> None:
    """Raise Failure unless there is a database to use at `path`."""
    if not exists(path):
        raise Lost(
            f"there is no database at {path}",
            f"make a new one: {shell('abathur-db', 'init', path)}",
        )


def _refuse_orphaned_log(path: Path) -> None:
    """Raise Failure when a log or a journal is there without its database: SQLite would replay it over a new one."""
    wal, _, journal = sidecars(path)
    for log, kind in ((wal, "write-ahead log"), (journal, "rollback journal")):
        if log.exists() and log.stat().st_size:
            raise Lost(
                f"{path} is missing, but its {kind} {log.name} ({log.stat().st_size} bytes) is there",
                f"put the database file back beside it, or move the {kind.split()[1]} away: {away(log, 'orphan')}",
            )


def _check_owner(path: Path) -> None:
    for each in files(path):
        try:
            found = os.lstat(each)
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(found.st_mode):
            raise Failure(
                f"{each} is not a regular file, as a file of SQLite is",
                f"find out who put it there ({shell('ls', '-la', each.parent)}), stop the application, "
                f"then move it away: {away(each, 'planted')}",
            )
        owner = found.st_uid
        if owner != os.geteuid():
            me = guarded.user_name(os.geteuid())
            raise Failure(
                f"{each} belongs to {guarded.user_name(owner)}, but this runs as {me}",
                f"give it to its owner: {shell('chown', '--no-dereference', f'{me.split()[0]}:', each)}",
            )


@contextmanager
def opened(
    path: Path, busy_timeout_ms: int, *, read_only: bool = False, immutable: bool = False
) -> Iterator[sqlite3.Connection]:
    """Open an existing database, in autocommit mode; SQLite's errors inside come out as Failure.

    `busy_timeout_ms`: how long a statement waits for another process's lock. `immutable` is for a
    closed copy that nobody else knows: no lock, no -wal and no -shm beside it.
    Raises Failure (BUSY) when the wait was not enough, Failure otherwise.
    """
    require(path)
    # A writer that died has left its journal: SQLite has to roll it back first, which mode=ro forbids.
    recovers = read_only and files(path)[-1].exists()
    options = "?mode=ro&immutable=1" if immutable else "?mode=ro" if read_only and not recovers else "?mode=rw"
    with _translated(path, busy_timeout_ms):
        connection = sqlite3.connect(f"file:{quote(str(path))}{options}", uri=True, isolation_level=None)
        try:
            _configure(connection, busy_timeout_ms)
            if recovers:
                connection.execute("PRAGMA query_only = ON")
            yield connection
        finally:
            connection.close()


@contextmanager
def created(path: Path) -> Iterator[sqlite3.Connection]:
    """Open a new, empty database file that must not exist yet, in autocommit mode and in WAL mode.

    Sets what only a database without tables can take: auto_vacuum=INCREMENTAL (schema facts, trap 9). At the end the
    file alone is the database. Raises Failure when the disk has no room for that.
    """
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    with _translated(path, 0):
        connection = sqlite3.connect(path, isolation_level=None)
        try:
            connection.execute("PRAGMA auto_vacuum = INCREMENTAL")
            enable_wal(connection, path)
            _configure(connection, 0)
            yield connection
            # Closing does it as well, but says nothing when the disk is full: most of the database would be in a log
            # that nobody looks at.
            checkpoint(connection)
        finally:
            connection.close()


STEPS_BETWEEN_LOOKS = 100_000
"""Steps of SQLite's machine, some milliseconds, after which it asks whether to go on."""


@contextmanager
def in_memory() -> Iterator[sqlite3.Connection]:
    """Open a private database in memory, to apply migrations to and compare with."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def _configure(connection: sqlite3.Connection, busy_timeout_ms: int) -> None:
    """Set what does not persist in the file (design document, section 2.2).

    Departs from it in wal_autocheckpoint: 0 keeps our jobs from being a second checkpointer beside
    the application (SQLite's WAL-reset defect).
    """
    # An application may have written what is no UTF-8; else sqlite3 refuses the row, and its error repeats the text.
    connection.text_factory = foreign.words
    connection.execute(f"PRAGMA busy_timeout = {int(busy_timeout_ms)}")
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    # Else Ctrl-C waits for the end of a statement, and a check of 10 GB is one.
    connection.set_progress_handler(lambda: int(interruption.asked()), STEPS_BETWEEN_LOOKS)
    # Touches the file, so that one that is no database is refused here and not in the middle.
    connection.execute("PRAGMA schema_version")


def enable_wal(connection: sqlite3.Connection, path: Path) -> None:
    """Switch the database to WAL and verify it. Raises Failure when SQLite stays in another mode."""
    mode = connection.execute("PRAGMA journal_mode = WAL").fetchone()[0]
    if mode != "wal":
        raise Failure(
            f"{path} stays in journal mode {mode}, WAL is needed",
            "put it on a local file system with shared memory",
        )


@contextmanager
def transaction(connection: sqlite3.Connection, sentence: str = "") -> Iterator[None]:
    """Run the body in one write transaction: committed whole, or rolled back whole.

    `sentence`: what is changed by it, for whoever interrupts the command later.
    """
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        with interruption.change(sentence) if sentence else nullcontext():
            connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def snapshot(source: Path, target: Path, busy_timeout_ms: int, done: Callable[[int], object] = lambda _: None) -> None:
    """Copy a live database into a new file `target`: one read transaction, whole and consistent.

    The copy is closed, in rollback-journal mode and alone: no -wal beside it. It is not flushed to the
    disk: whoever makes one reads it and throws it away. `done` is called with the number of bytes just copied.
    """
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    with opened(source, busy_timeout_ms, read_only=True) as live, _translated(target, 0):
        copy = sqlite3.connect(target, isolation_level=None)
        page = pragma(live, "page_size")
        before = 0

        def step(_: int, remaining: int, total: int) -> None:
            nonlocal before
            done((total - remaining - before) * page)
            before = total - remaining

        try:
            copy.execute("PRAGMA synchronous = OFF")
            # Held over all steps: without it, copying in steps starts over at every write of
            # another process (schema facts, trap 7).
            live.execute("BEGIN")
            live.execute("SELECT 1 FROM sqlite_master").fetchone()
            live.backup(copy, pages=STEP_BYTES // page, progress=step, sleep=0)
            live.execute("COMMIT")
            copy.execute("PRAGMA journal_mode = DELETE")
        finally:
            copy.close()


def size(path: Path) -> int:
    """Return the bytes of a database with its log, as much as a copy can have. Raises Failure where there is none."""
    require(path)
    return sum(facts.st_size for facts in map(guarded.facts, (path, *sidecars(path))) if facts)


def wal_bytes(path: Path) -> int:
    """Return the size of a database's write-ahead log in bytes, 0 without one."""
    try:
        return sidecars(path)[0].stat().st_size
    except FileNotFoundError:
        return 0


def checkpoint(connection: sqlite3.Connection) -> bool:
    """Move the write-ahead log into the database as far as readers allow, then cut it if nobody is in the way.

    PASSIVE first: it waits for nobody and makes nobody wait. Only when that got everything is there
    next to nothing left for TRUNCATE, which gives up at once when a reader or writer is there.
    Returns whether the whole log was moved.
    """
    busy, pages, moved = connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchone()
    if busy or moved < pages:
        return False
    wait = pragma(connection, "busy_timeout")
    connection.execute("PRAGMA busy_timeout = 0")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.execute(f"PRAGMA busy_timeout = {wait}")
    return True


def pragma(connection: sqlite3.Connection, name: str) -> int:
    """Return the value of a numeric pragma."""
    return int(connection.execute(f"PRAGMA {name}").fetchone()[0])


SEQUENCES = "import sqlite3; print(*sqlite3.connect({!r}).execute('SELECT seq, name FROM sqlite_sequence'), sep='\\n')"
"""Program that prints the last id of each table with AUTOINCREMENT."""


@contextmanager
def _translated(path: Path, busy_timeout_ms: int) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code == sqlite3.SQLITE_INTERRUPT and interruption.asked():
            raise KeyboardInterrupt from error
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            if why := host.unlockable(path):
                raise Failure(
                    f"{path} cannot be locked: {why}; nothing was changed",
                    "use a file system that can lock files, or start its lock service: "
                    + shell("findmnt", "--target", path.parent),
                ) from error
            raise Failure(
                f"{path} was locked by another process for longer than {busy_timeout_ms / 1000:g} s; "
                "nothing was changed",
                f"find it ({shell('fuser', '-v', path)}), let it finish, run this again",
                Exit.BUSY,
            ) from error
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            raise Failure(
                f"{path} is corrupt: {error}",
                f"{RESTORE}: abathur-db restore latest (a database of your own: --database PATH)",
            ) from error
        if objects.absent(error):
            raise Refused(
                f"SQLite alone cannot do it: {error}",
                "leave it to the application: only its own connections have that collation or function",
            ) from error
        if code == sqlite3.SQLITE_CONSTRAINT:
            raise Refused(
                f"the database of its application refuses it: {error}",
                "see which rule or trigger says so, and let the application change it",
            ) from error
        if code == sqlite3.SQLITE_FULL and (free := host.free_bytes(path)) > STEP_BYTES:
            # SQLite has one error for all of these.
            raise Failure(
                f"SQLite finds no room in {path}, though its disk has {host.readable(free)} free: {error}",
                "see what is used up: the disk of temporary files (df -h /var/tmp), its owner's quota (quota), or the "
                "ids of a table with AUTOINCREMENT, of which 9223372036854775807 is the last: "
                + shell("python3", "-c", SEQUENCES.format(str(path))),
            ) from error
        if code == sqlite3.SQLITE_FULL:
            raise Failure(f"the disk of {path} is full: {error}", f"free space: df -h {path.parent}") from error
        if code == sqlite3.SQLITE_ERROR:
            raise Failure(
                f"SQLite failed on {path}: {error}",
                "see what its tables lack: abathur-db doctor (a database of your own: abathur-db doctor PATH)",
            ) from error
        # SQLite itself says "unable to open database file" or "disk I/O error" of all of these.
        why = host.condition(path.parent)
        raise Failure(
            f"SQLite failed on {path}: {error}" + (f"; {why}" if why else ""),
            f"look at it: ls -la {path.parent}; df -h {path.parent}; df -i {path.parent}",
        ) from error
