"""Bad input, one table: what is wrong, what the user reads, the exit code, the next command; and nothing was changed.

Each case is a directory with real files, and the tool run on it as a program. `{home}` is that
directory, `{id}` the backup in it, `…` a part that differs between versions of SQLite and zstd.
"""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from abathur_db import backup, database, packing, schema, seed
from abathur_db.config import Config
from backups import edit, file, flip, manifest, repack
from conftest import Cli
from databases import ROOT, application, corrupt, dump, rows, run, toml, value

Prepare = Callable[[Config], object]


@dataclass(frozen=True)
class Case:
    """One bad input: how it comes about, the command that meets it, and its answer."""

    prepare: Prepare
    command: str
    says: str
    next: str
    code: int = 1


def first(*steps: Callable[[], object]) -> None:
    """Do one thing after the other."""
    for each in steps:
        each()


def nothing(_: Config) -> None:
    """Leave the directory as it is."""


def config_file(conf: Config) -> Path:
    return conf.database.parent / "abathur-db.toml"


# --- the configuration ------------------------------------------------------------------------------------------

GENERATED = "set it through the role's variables (README, Variables) and deploy again; the file is generated"
PATHS = "an absolute path without .., quotes, backslashes and control characters"


def faulty(says: str, **changes: Any) -> Case:
    """Return the case of a configuration that is good but for these keys; a change to None leaves the key out."""
    return written(says, lambda conf: toml(conf, **changes).encode())


def written(says: str, content: Callable[[Config], bytes]) -> Case:
    return Case(
        lambda conf: config_file(conf).write_bytes(content(conf)),
        "backup",
        "backup: {home}/abathur-db.toml " + says,
        GENERATED,
        2,
    )


def hosts(says: str, **changes: Any) -> Case:
    """Return the case of a host's configuration, with an owner and the directories of the defaults but for these."""
    defaults = {
        "owner": "abathur",
        "database": "/var/lib/abathur/abathur.db",
        "backup_directory": "/var/backups/abathur",
        "state_directory": "/var/lib/abathur-db",
        "install_directory": "/opt/abathur-db",
    }
    return faulty(says, **{**defaults, **changes})


def of_the_system(name: str, path: str, whose: str) -> Case:
    return hosts(f"has {name} = '{path}', but {whose} is the system's; it needs a directory of its own", **{name: path})


CONFIGURATION = {
    "no configuration": Case(
        lambda conf: config_file(conf).unlink(),
        "backup",
        "backup: there is no configuration at {home}/abathur-db.toml",
        "name a database (abathur-db COMMAND PATH) or deploy this host (ansible-playbook deploy.yml)",
        2,
    ),
    "a directory as configuration": Case(
        lambda conf: first(config_file(conf).unlink, config_file(conf).mkdir),
        "backup",
        "backup: {home}/abathur-db.toml cannot be read: [Errno 21] Is a directory: '{home}/abathur-db.toml'",
        "run it as root: sudo abathur-db …",
        2,
    ),
    "a configuration in another encoding": Case(
        lambda conf: config_file(conf).write_bytes('owner = "Jürgen"'.encode("latin-1")),
        "backup",
        "backup: {home}/abathur-db.toml cannot be read: 'utf-8' codec can't decode byte 0xfc in position 10: "
        "invalid start byte",
        "run it as root: sudo abathur-db …",
        2,
    ),
    "a configuration that is not TOML": written(
        "is not TOML: Invalid statement (at line 1, column 1)", lambda _: b"= 5"
    ),
    "nesting without end": written(
        "is not TOML that can be read: a number or a nesting in it is too long", lambda _: b"x = " + b"[" * 100_000
    ),
    "a number of 5000 digits": written(
        "is not TOML that can be read: a number or a nesting in it is too long", lambda _: b"x = " + b"9" * 5000
    ),
    "an empty configuration": written(
        "lacks a key: analysis_limit, application_units, backup_check, backup_compression, …", lambda _: b""
    ),
    "an unknown key": faulty("has an unknown key: colour", colour="red"),
    "a missing key": faulty("lacks a key: busy_timeout_ms", busy_timeout_ms=None),
    "a number as text": faulty(
        "has busy_timeout_ms = '5000', which is not a whole number from 0 to 2147483647", busy_timeout_ms="5000"
    ),
    "a truth value as number": faulty(
        "has busy_timeout_ms = True, which is not a whole number from 0 to 2147483647", busy_timeout_ms=True
    ),
    "a fraction as number": faulty(
        "has lock_wait_seconds = 0.5, which is not a whole number from 0 to 2147483647", lock_wait_seconds=0.5
    ),
    "a negative retention": faulty(
        "has backup_keep_daily = -1, which is not a whole number from 0 to 2147483647", backup_keep_daily=-1
    ),
    "a number beyond SQLite's": faulty(
        "has busy_timeout_ms = 2147483648, which is not a whole number from 0 to 2147483647", busy_timeout_ms=2**31
    ),
    "a relative path": faulty(f"has database = 'abathur.db', which is not {PATHS}", database="abathur.db"),
    "a path to outside": faulty(
        f"has backup_directory = '/var/backups/../../etc', which is not {PATHS}",
        backup_directory="/var/backups/../../etc",
    ),
    "a path with NUL": faulty(
        f"has state_directory = '/srv/a\\x00b', which is not {PATHS}", state_directory="/srv/a\0b"
    ),
    "a path with a line of its own for the units": faulty(
        f"has backup_directory = '/srv/a\\nUser=root', which is not {PATHS}", backup_directory="/srv/a\nUser=root"
    ),
    "a number as path": faulty(f"has database = 5, which is not {PATHS}", database=5),
    "a path with two slashes at its beginning": faulty(
        f"has database = '//etc/abathur.db', which is not {PATHS}", database="//etc/abathur.db"
    ),
    "the root directory as database": faulty(f"has database = '/', which is not {PATHS}", database="/"),
    "a database right in /": of_the_system("database", "/abathur.db", "/"),
    "a database right in /etc": of_the_system("database", "/etc/abathur.db", "/etc"),
    "a database right in /var/lib": of_the_system("database", "/var/lib/abathur.db", "/var/lib"),
    "a database below /run, gone at a boot": of_the_system("database", "/run/abathur/abathur.db", "/run"),
    "backups right in /var/backups": of_the_system("backup_directory", "/var/backups", "/var/backups"),
    "records below /etc": of_the_system("state_directory", "/etc/abathur/state", "/etc"),
    "releases right in /opt": of_the_system("install_directory", "/opt", "/opt"),
    "releases right in /usr/local/bin": of_the_system("install_directory", "/usr/local/bin", "/usr/local/bin"),
    "backups beside the database": hosts(
        "has database = '/srv/abathur/abathur.db', which is inside /srv/abathur, the directory of backup_directory",
        database="/srv/abathur/abathur.db",
        backup_directory="/srv/abathur",
    ),
    "backups inside the database's directory": hosts(
        "has backup_directory = '/var/lib/abathur/b', which is inside /var/lib/abathur, the directory of database",
        backup_directory="/var/lib/abathur/b",
    ),
    "a text as list": faulty(
        "has application_units = 'abathur.service', which is not a list of names of units",
        application_units="abathur.service",
    ),
    "an option as unit": faulty(
        "has application_units = ['--force'], which is not a list of names of units", application_units=["--force"]
    ),
    "an empty list": faulty(
        "has validation_sessions = [], which is not a list of whole numbers above 0", validation_sessions=[]
    ),
    "no sessions at all": faulty(
        "has validation_sessions = [10, 0], which is not a list of whole numbers above 0", validation_sessions=[10, 0]
    ),
    "a number as owner": faulty("has owner = 5, which is not the name of a system user other than root", owner=5),
    "root as owner": faulty("has owner = 'root', which is not the name of a system user other than root", owner="root"),
    "backups of somebody's in a database without owner": faulty(
        "has backup_owner = 'keeper' and owner = ''; name two users, or no second", backup_owner="keeper"
    ),
    "root as owner of the backups": faulty(
        "has backup_owner = 'root', which is not the name of a system user other than root", backup_owner="root"
    ),
    "an owner with a line of its own for the units": faulty(
        "has owner = 'a\\nUser=root', which is not the name of a system user other than root", owner="a\nUser=root"
    ),
    "an owner who does not exist": Case(
        lambda conf: config_file(conf).write_text(
            toml(conf, owner="no-such-user", install_directory="/opt/abathur-db", **apart(conf))
        ),
        "backup",
        "backup: the user no-such-user does not exist on this host",
        "deploy the host: ansible-playbook deploy.yml",
        2,
    ),
    "another compression": faulty(
        "has backup_compression = 'rar', which is none of: zstd, gzip, none", backup_compression="rar"
    ),
    "another check": faulty("has backup_check = 'none', which is none of: quick, full", backup_check="none"),
    "two faults": faulty("has an unknown key: a, b", b=1, a=1, wal_limit_mb=-1),
}


def apart(conf: Config) -> dict[str, str]:
    """Return directories of which none is inside another, as a host needs them."""
    home = conf.database.parent
    return {
        "database": str(home / "data/abathur.db"),
        "backup_directory": str(home / "backups"),
        "state_directory": str(home / "state"),
    }


# --- the command line -------------------------------------------------------------------------------------------


def usage(command: str, says: str) -> Case:
    return Case(nothing, command, says, "", 2)


COMMAND_LINE = {
    "no command": usage("", "abathur-db: error: the following arguments are required: COMMAND"),
    "an unknown command": usage(
        "conquer", "abathur-db: error: argument COMMAND: invalid choice: 'conquer' (choose from 'init', 'seed', …)"
    ),
    "an unknown option": usage("backup --fast", "abathur-db: error: unrecognized arguments: --fast"),
    "two databases": usage("seed a b", "abathur-db: error: unrecognized arguments: b"),
    "a fence for a database of one's own": usage("fence --dry-run a", "abathur-db: error: unrecognized arguments: a"),
    "a promotion of a database of one's own": usage(
        "promote --dry-run a", "abathur-db: error: unrecognized arguments: a"
    ),
    "a rejoining of a database of one's own": usage(
        "rejoin --dry-run a", "abathur-db: error: unrecognized arguments: a"
    ),
    "a configuration and a database of one's own": usage(
        "backup a --config b", "abathur-db backup: error: argument --config: not allowed with argument database"
    ),
    "a configuration and a database of one's own for a restore": usage(
        "restore fresh --config b", "abathur-db restore: error: argument --database: not allowed with argument --config"
    ),
    "a restore of nothing": usage(
        "restore", "abathur-db restore: error: the following arguments are required: ID|latest|TIME|PATH|fresh"
    ),
    "a restore of a file elsewhere that is not there": Case(
        nothing,
        "restore {home}/../none.db",
        "restore: there is no backup file {home}/../none.db",
        "see what there is: abathur-db backups",
    ),
    "a proof of a file elsewhere": Case(
        nothing,
        "verify ../../etc/passwd",
        "verify: there is no backup ../../etc/passwd in {home}/abathur.db.backups; the newest are: {id}",
        "see them all: abathur-db backups {home}/abathur.db",
    ),
    "a moment that is none": Case(
        nothing,
        "restore 2026-13-45",
        "restore: there is no backup 2026-13-45 in {home}/abathur.db.backups; the newest are: {id}",
        "see them all: abathur-db backups {home}/abathur.db",
    ),
    "a moment before every backup": Case(
        nothing,
        "restore 1999-12-31T23:59",
        "restore: there is no backup at or before 1999-12-31T23:59 in {home}/abathur.db.backups; the newest are: {id}",
        "see them all: abathur-db backups {home}/abathur.db",
    ),
    "a name with the terminal's own commands in it": Case(
        nothing,
        "verify \033[2Jall",
        "verify: there is no backup \\x1b[2Jall in {home}/abathur.db.backups; the newest are: {id}",
        "see them all: abathur-db backups {home}/abathur.db",
    ),
}

# --- database files ---------------------------------------------------------------------------------------------

RESTORE = f"{database.RESTORE}: abathur-db restore latest (a database of your own: --database PATH)"
RESTORE_OWN = f"{database.RESTORE}: abathur-db restore latest --database {{home}}/abathur.db"
ELSEWHERE = "configure another path for Abathur's database"
ADAPT = "adapt it with its application's own migration, then run this again"
MOVE = "move it away (mv --backup=numbered {home}/abathur.db {home}/abathur.db.other) or configure another path"


def replaced(make: Callable[[Path], object]) -> Prepare:
    """Return what puts another file in the place of the database, and lets there be no backup of it."""

    def prepare(conf: Config) -> None:
        for each in database.files(conf.database):
            each.unlink(missing_ok=True)
        for each in conf.backup_directory.iterdir():
            each.unlink()
        make(conf.database)

    return prepare


def refused(make: Callable[[Path], object], says: str, following: str, command: str = "init") -> Case:
    return Case(replaced(make), command, f"{command}: {{home}}/abathur.db {says}", following)


def changed(change: Callable[[Path], object]) -> Callable[[Path], None]:
    """Return what makes an application's database with rows and changes its file."""

    def make(path: Path) -> None:
        application(path, "CREATE TABLE gone (x)")
        rows(path, 500)
        run(
            path,
            "INSERT INTO gone WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 30000)"
            " SELECT hex(i) FROM n; DROP TABLE gone",
        )
        change(path)

    return make


def overwrite(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset if offset >= 0 else path.stat().st_size + offset)
        stream.write(data)


def freelist(path: Path) -> int:
    """Return where the first page of the list of free pages begins (sqlite.org/fileformat.html, section 1.3.5)."""
    page = int.from_bytes(path.read_bytes()[32:36], "big")
    if page == 0:
        raise ValueError("no page is free")
    return (page - 1) * 4096


def fifo(path: Path) -> None:
    os.mkfifo(path)


def a_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as bound:
        # The address has room for 108 bytes only.
        here = os.open(path.parent, os.O_RDONLY)
        bound.bind(f"/proc/self/fd/{here}/{path.name}")
        os.close(here)


def planted_log(make: Callable[[Path], object]) -> Case:
    """Return the case of something else in the place of the write-ahead log."""

    def prepare(conf: Config) -> None:
        log = database.sidecars(conf.database)[0]
        log.unlink(missing_ok=True)
        make(log)

    return Case(
        prepare,
        "backup",
        "backup: {home}/abathur.db-wal is not a regular file, as a file of SQLite is",
        "find out who put it there (ls -la {home}), stop the application, then move it away: "
        "mv --backup=numbered {home}/abathur.db-wal {home}/abathur.db-wal.planted",
    )


DATABASES = {
    "text": refused(
        lambda path: path.write_text("id,name\n1,a table of something\n"),
        "is not a SQLite database: it starts with b'id,name\\n1,a tabl'",
        MOVE,
    ),
    "an encrypted database": refused(
        lambda path: path.write_bytes(bytes(range(1, 200)) * 100),
        "is not a SQLite database: it starts with b'\\x01\\x02\\x03\\x04\\x05\\x06\\x07\\x08\\t\\n…'",
        MOVE,
    ),
    "an empty file": refused(
        Path.touch,
        "is empty (0 bytes), not a database",
        "move it away: mv --backup=numbered {home}/abathur.db {home}/abathur.db.empty",
    ),
    "a directory": refused(
        Path.mkdir, "is a directory, not a database", "configure another path, or look at it: ls -ld {home}/abathur.db"
    ),
    "a FIFO": refused(
        fifo, "is not a regular file, not a database", "configure another path, or look at it: ls -ld {home}/abathur.db"
    ),
    "a socket": refused(
        a_socket,
        "is not a regular file, not a database",
        "configure another path, or look at it: ls -ld {home}/abathur.db",
    ),
    "a symlink": refused(
        lambda path: path.symlink_to("/dev/null"), "is a symbolic link to /dev/null", "configure the real path"
    ),
    "a file cut after its first bytes": refused(
        lambda path: path.write_bytes(b"SQLite format 3\0"), "is corrupt: file is not a database", RESTORE
    ),
    "a file cut in the middle": refused(
        changed(lambda path: os.truncate(path, path.stat().st_size // 2)),
        "is corrupt: database disk image is malformed",
        RESTORE,
    ),
    "a page overwritten": refused(
        changed(lambda path: overwrite(path, freelist(path) - 40 * 4096, b"\xff" * 4096 * 10)),
        "is corrupt: …; nothing was changed",
        RESTORE_OWN,
    ),
    "the first pages overwritten": refused(changed(corrupt), "is corrupt: …", RESTORE),
    "the list of free pages overwritten": refused(
        changed(lambda path: overwrite(path, freelist(path), b"\xff" * 4096)),
        "is corrupt: …; nothing was changed",
        RESTORE_OWN,
    ),
    "a header that names an impossible page size": refused(
        changed(lambda path: overwrite(path, 16, b"\x00\x03")), "is corrupt: file is not a database", RESTORE
    ),
    "a newer schema": refused(
        lambda path: application(path, "PRAGMA application_id = 0x41627468; PRAGMA user_version = 99"),
        "has schema version 99, newer than this tool, which knows 1",
        "deploy a release of at least that version",
    ),
    "a number of its application's own": refused(
        lambda path: application(path, "PRAGMA user_version = 99"),
        "has user_version 99, its application's number, where the schema version has to stand",
        "leave it to its application, or let that keep its number elsewhere, in a table, and set user_version to 0",
    ),
    "another application's id": refused(
        lambda path: application(path, "PRAGMA application_id = 7"),
        "belongs to another application (application_id 0x00000007)",
        ELSEWHERE,
    ),
    "no table": refused(
        lambda path: run(path, "PRAGMA journal_mode = WAL"),
        "has no table",
        "stop the application, move it away (mv --backup=numbered {home}/abathur.db {home}/abathur.db.empty), "
        "then deploy again, or restore a backup",
    ),
    "another application's tables": refused(
        lambda path: run(path, "CREATE TABLE x (y)"),
        "does not hold Abathur's tables, so it belongs to another application",
        ELSEWHERE,
    ),
    "a table without a column": refused(
        lambda path: application(path, "DROP TABLE sessions; CREATE TABLE sessions (id TEXT PRIMARY KEY)"),
        "is not of this schema: table sessions lacks column app_name (and 10 more)",
        ADAPT,
    ),
    "a column of another type": refused(
        lambda path: application(
            path,
            "DROP TABLE metrics",
            "CREATE TABLE metrics (id BLOB, timestamp TIMESTAMP, metric_name TEXT, metric_value REAL, labels TEXT)",
        ),
        "is not of this schema: column metrics.id is BLOB, not INTEGER",
        ADAPT,
    ),
    "a table without its UNIQUE constraint": refused(
        lambda path: application(
            path,
            "DROP TABLE state;"
            "CREATE TABLE state (id INTEGER PRIMARY KEY, task_id TEXT, key TEXT, value TEXT,"
            " created_at TIMESTAMP, updated_at TIMESTAMP)",
        ),
        "is not of this schema: table state lacks UNIQUE (task_id, key)",
        ADAPT,
    ),
    "a definition that cannot be read": refused(
        changed(
            lambda path: run(
                path,
                "PRAGMA writable_schema = ON; UPDATE sqlite_master SET sql = 'CREATE TABLE' WHERE name = 'metrics'",
            )
        ),
        "is corrupt: malformed database schema (metrics) - …",
        RESTORE,
    ),
    "no database, but a backup": Case(
        lambda conf: first(*(each.unlink for each in database.files(conf.database) if each.exists())),
        "init",
        "init: {home}/abathur.db is missing, but its backups (1) and kept copies (0) are here; "
        "no empty one was made in its place",
        "bring the backup of … UTC back: abathur-db restore latest --database {home}/abathur.db",
    ),
    "no database, no backup": Case(
        replaced(lambda _: None),
        "backup",
        "backup: there is no database at {home}/abathur.db",
        "make a new one: abathur-db init {home}/abathur.db",
    ),
    "a log without its database": refused(
        lambda path: path.with_name("abathur.db-wal").write_bytes(b"committed rows"),
        "is missing, but its write-ahead log abathur.db-wal (14 bytes) is there",
        "put the database file back beside it, or move the log away: "
        "mv --backup=numbered {home}/abathur.db-wal {home}/abathur.db-wal.orphan",
    ),
    "a log that is a FIFO": planted_log(fifo),
    "a log that is a symlink": planted_log(lambda path: path.symlink_to("abathur-db.toml")),
    "a corrupt page, met by a backup": Case(
        replaced(changed(lambda path: overwrite(path, freelist(path) - 40 * 4096, b"\xff" * 4096 * 10))),
        "backup",
        "backup: the copy of the database is corrupt: …; no backup was kept",
        "check the database: abathur-db integrity-check {home}/abathur.db",
    ),
    "a damaged list of free pages, met by the integrity check": Case(
        replaced(changed(lambda path: overwrite(path, freelist(path), b"\xff" * 4096))),
        "integrity-check",
        "integrity-check: integrity-check failed at integrity_check: expected ok, found …",
        RESTORE_OWN,
    ),
}

# --- backups ----------------------------------------------------------------------------------------------------

ANOTHER = packing.ANOTHER
PLANTED = ", which this tool never makes; it was not followed and nothing was changed"
OTHERS = "see the others: abathur-db backups {home}/abathur.db"


def does_not_count(damage: Callable[[Config, str], object], fault: str) -> Case:
    """Return the case of a backup that looks wrong at first sight."""
    return backed_up(damage, "backup {id} does not count: " + fault, OTHERS)


def says(fault: str, **changes: Any) -> Case:
    """Return the case of a manifest that says something else than the backup is, or than anything can be."""
    return does_not_count(lambda conf, identity: edit(conf, identity, **changes), fault)


def unreadable(content: bytes, fault: str) -> Case:
    return does_not_count(
        lambda conf, identity: manifest(conf, identity).write_bytes(content),
        "its manifest abathur_{id}.json cannot be read: " + fault,
    )


def backed_up(damage: Callable[[Config, str], object], fault: str, following: str = ANOTHER) -> Case:
    """Return the case of a damaged backup, as a restore meets it."""
    return Case(lambda conf: damage(conf, only(conf)), "restore {id}", "restore: " + fault, following)


def only(conf: Config) -> str:
    """Return the ID of the one backup that there is."""
    (found,) = conf.backup_directory.glob("abathur_*.json")
    return found.stem.removeprefix("abathur_")


def instead(path: Path, make: Callable[[Path], object]) -> None:
    """Put something else in the place of a file."""
    path.rename(path.with_name("aside"))
    make(path)


def corrupt_inside(plain: Path) -> None:
    data = bytearray(plain.read_bytes())
    data[-4096 * 20 : -4096 * 10] = b"\xff" * 4096 * 10
    plain.write_bytes(data)


def bomb(conf: Config, identity: str) -> None:
    """Let a backup of some kB unpack to far more than its manifest says."""
    size = json.loads(manifest(conf, identity).read_text())["plain_bytes"]
    repack(conf, identity, lambda plain: os.truncate(plain, 20_000_000))
    edit(conf, identity, plain_bytes=size)


BACKUPS = {
    "a truncated backup": does_not_count(
        lambda conf, identity: os.truncate(file(conf, identity), 100),
        "abathur_{id}.db.zst has 100 bytes, its manifest says …",
    ),
    "an empty backup": does_not_count(
        lambda conf, identity: os.truncate(file(conf, identity), 0),
        "abathur_{id}.db.zst has 0 bytes, its manifest says …",
    ),
    "a flipped bit": backed_up(
        flip, "backup {id} is damaged: the SHA-256 of abathur_{id}.db.zst is not that of its manifest"
    ),
    "a backup that is gone": does_not_count(
        lambda conf, identity: file(conf, identity).unlink(), "its file abathur_{id}.db.zst is gone"
    ),
    "a symlink as backup": does_not_count(
        lambda conf, identity: instead(file(conf, identity), lambda path: path.symlink_to("aside")),
        "its file abathur_{id}.db.zst is gone",
    ),
    "a FIFO as backup": does_not_count(
        lambda conf, identity: instead(file(conf, identity), fifo), "its file abathur_{id}.db.zst is gone"
    ),
    "no manifest": does_not_count(
        lambda conf, identity: manifest(conf, identity).unlink(), "its manifest abathur_{id}.json is gone"
    ),
    "half a manifest": unreadable(b'{"id"', "Expecting ':' delimiter: line 1 column 6 (char 5)"),
    "a manifest that is a list": unreadable(b"[]", "it is not an object"),
    "an empty manifest": unreadable(b"", "Expecting value: line 1 column 1 (char 0)"),
    "a manifest in another encoding": unreadable(
        b"\xff\xfe", "'utf-8' codec can't decode byte 0xff in position 0: invalid start byte"
    ),
    "a manifest with nesting without end": unreadable(b"[" * 100_000, "it has more than 64 levels"),
    "a manifest without a field": unreadable(b"{}", "…missing 16 required positional arguments: …"),
    "a manifest of many MB": does_not_count(
        lambda conf, identity: manifest(conf, identity).write_bytes(b" " * (2 << 20)),
        "its manifest abathur_{id}.json cannot be read: "
        "{home}/abathur.db.backups/abathur_{id}.json has more than 1048576 bytes" + PLANTED,
    ),
    "a symlink as manifest": does_not_count(
        lambda conf, identity: instead(manifest(conf, identity), lambda path: path.symlink_to("aside")),
        "its manifest abathur_{id}.json cannot be read: "
        "{home}/abathur.db.backups/abathur_{id}.json is a symbolic link to aside" + PLANTED,
    ),
    "a FIFO as manifest": does_not_count(
        lambda conf, identity: instead(manifest(conf, identity), fifo),
        "its manifest abathur_{id}.json cannot be read: "
        "{home}/abathur.db.backups/abathur_{id}.json is not a regular file" + PLANTED,
    ),
    "a directory as manifest": does_not_count(
        lambda conf, identity: instead(manifest(conf, identity), Path.mkdir),
        "its manifest abathur_{id}.json cannot be read: "
        "{home}/abathur.db.backups/abathur_{id}.json is not a regular file" + PLANTED,
    ),
    "a manifest with a field of the future": says(
        "its manifest abathur_{id}.json cannot be read: …got an unexpected keyword argument 'colour'", colour=1
    ),
    "the manifest of another backup": says(
        "its manifest abathur_{id}.json names another backup: abathur_{id}.db.zst", id="20200101_000000"
    ),
    "a manifest that names a file elsewhere": says(
        "its manifest abathur_{id}.json names another backup: ../../etc/passwd", file="../../etc/passwd"
    ),
    "a manifest that names a number": says("its manifest abathur_{id}.json cannot be read: it says file = 5", file=5),
    "a size as text": says("its manifest abathur_{id}.json cannot be read: it says bytes = 'many'", bytes="many"),
    "a negative sequence": says("its manifest abathur_{id}.json cannot be read: it says sequence = -1", sequence=-1),
    "a size beyond all numbers": says(
        "its manifest abathur_{id}.json cannot be read: 10000000000000000000 is a number of more than 64 bits",
        plain_bytes=10**400,
    ),
    "rows that are no counts": says(
        "its manifest abathur_{id}.json cannot be read: it says rows = {'tasks': 'all'}", rows={"tasks": "all"}
    ),
    "a time that is none": says(
        "its manifest abathur_{id}.json cannot be read: Invalid isoformat string: 'today'", created="today"
    ),
    "a time without zone": says(
        "its manifest abathur_{id}.json cannot be read: 2026-11-24T02:00:00 has no time zone",
        created="2026-11-24T02:00:00",
    ),
    "a time before all years": says(
        "its manifest abathur_{id}.json cannot be read: date value out of range", created="0001-01-01T00:00:00+14:00"
    ),
    "another hash": backed_up(
        lambda conf, identity: edit(conf, identity, sha256="0" * 64),
        "backup {id} is damaged: the SHA-256 of abathur_{id}.db.zst is not that of its manifest",
    ),
    "another hash of the plain bytes": backed_up(
        lambda conf, identity: edit(conf, identity, plain_sha256="0" * 64),
        "backup {id} is damaged: the SHA-256 of abathur_{id}.db.zst unpacked is not that of its manifest",
    ),
    "other row counts": backed_up(
        lambda conf, identity: edit(conf, identity, rows={"memory_entries": 7}),
        "backup {id} is damaged: rows is {…'memory_entries': 203…}, its manifest says {'memory_entries': 7}",
    ),
    "another number of pages": backed_up(
        lambda conf, identity: edit(conf, identity, page_count=7),
        "backup {id} is damaged: page_count is …, its manifest says 7",
    ),
    "a backup that unpacks to more than it should": backed_up(bomb, "abathur_{id}.db.zst unpacks to more than … bytes"),
    "a backup that wants more space than there is": backed_up(
        lambda conf, identity: edit(conf, identity, plain_bytes=10**18),
        "unpacking {id} needs 1000000.0 TB free at {home}/.abathur.db.restore, … are; nothing was changed",
        "free space there: df -h {home}",
    ),
    "a backup that is corrupt inside, with a manifest that fits": backed_up(
        lambda conf, identity: repack(conf, identity, corrupt_inside), "backup {id} is corrupt: …"
    ),
    "a backup of another application": backed_up(
        lambda conf, identity: repack(
            conf,
            identity,
            lambda plain: run(
                plain,
                "PRAGMA application_id = 0; DROP TABLE sessions; DROP TABLE memory_entries; DROP TABLE agents;"
                "DROP TABLE audit; DROP TABLE state",
            ),
        ),
        "backup {id} does not hold Abathur's tables, so it belongs to another application",
    ),
    "a backup of no database": backed_up(
        lambda conf, identity: repack(conf, identity, lambda plain: plain.write_text("not a database")),
        "backup {id} is not a SQLite database: it starts with b'not a database'",
    ),
    "a file of other origin that is empty": Case(
        lambda conf: (conf.database.parent / "other.db").touch(),
        "restore {home}/other.db",
        "restore: {home}/other.db is empty",
        ANOTHER,
    ),
    "a file of other origin that is no database": Case(
        lambda conf: (conf.database.parent / "other.db").write_bytes(b"not a database at all"),
        "restore {home}/other.db",
        "restore: {home}/other.db is not a SQLite database: it starts with b'not a database a'",
        ANOTHER,
    ),
    "a file of other origin that is cut": Case(
        lambda conf: (conf.database.parent / "other.db.gz").write_bytes(gzip.compress(os.urandom(9000))[:5000]),
        "restore {home}/other.db.gz",
        "restore: other.db.gz cannot be unpacked: Compressed file ended before the end-of-stream marker was reached",
        ANOTHER,
    ),
    "a file of other origin that is not compressed at all": Case(
        lambda conf: (conf.database.parent / "other.db.zst").write_bytes(b"not compressed"),
        "restore {home}/other.db.zst",
        "restore: other.db.zst cannot be unpacked: …unsupported format…",
        ANOTHER,
    ),
}

CASES = {**CONFIGURATION, **COMMAND_LINE, **DATABASES, **BACKUPS}


@pytest.fixture
def conf(conf: Config) -> Config:
    """Return a database with rows, one backup of it, and a configuration file."""
    schema.init(conf)
    seed.seed(conf)
    rows(conf.database, 200)
    run(conf.database, "PRAGMA wal_checkpoint(TRUNCATE)")
    backup.backup(conf)
    config_file(conf).write_text(toml(conf))
    return conf


def everything(conf: Config) -> dict[str, tuple[int, int, bytes | str]]:
    """Return kind, mode, owner and content of all below the directory, but for what a run notes of itself.

    A reader of a WAL database makes its -shm and an empty -wal.
    """
    found = {}
    for each in sorted(conf.database.parent.rglob("*")):
        noted = conf.state_directory in (each, *each.parents) or each.name.endswith("-shm")
        facts = each.lstat()
        content: bytes | str = b""
        if stat.S_ISREG(facts.st_mode):
            content = each.read_bytes()
        elif stat.S_ISLNK(facts.st_mode):
            content = os.readlink(each)
        if not noted and not (each.name.endswith("-wal") and content == b""):
            found[str(each)] = (facts.st_mode, facts.st_uid, content)
    return found


def pattern(text: str, conf: Config, identity: str) -> str:
    filled = text.replace("{home}", str(conf.database.parent)).replace("{id}", identity)
    return ".*".join(re.escape(part) for part in filled.split("…"))


@pytest.mark.parametrize("case", CASES)
def test_bad_input_is_told_in_a_sentence_with_the_next_command_and_changes_nothing(
    conf: Config, cli: Cli, case: str
) -> None:
    wrong = CASES[case]
    identity = only(conf)
    wrong.prepare(conf)
    before = everything(conf)
    command = [part.format(home=conf.database.parent, id=identity) for part in wrong.command.split()]
    named = ["--config", config_file(conf)] if command and command[0] in ("backup", "init", "integrity-check") else []
    named = ["--database", conf.database] if command and command[0] in ("restore", "verify") and command[1:] else named
    code, output, errors = cli(*command, *named)
    assert everything(conf) == before
    assert code == wrong.code, errors
    assert output == "" or not wrong.says.startswith("abathur-db")
    *_, said, following = ["", *errors.splitlines()] if not wrong.next else errors.splitlines()
    if wrong.next:
        assert re.fullmatch(pattern(wrong.says, conf, identity), said), said
        assert re.fullmatch("hint: " + pattern(wrong.next, conf, identity), following), following
    else:
        assert re.fullmatch(pattern(wrong.says, conf, identity), following), following


DAMAGED = [name for name, case in BACKUPS.items() if case.command == "restore {id}"]


@pytest.mark.parametrize("case", DAMAGED)
def test_what_a_restore_refuses_verify_names_and_a_drill_does_not_take_either(
    conf: Config, cli: Cli, case: str
) -> None:
    identity = only(conf)
    BACKUPS[case].prepare(conf)
    code, output, _ = cli("verify", "all", "--database", conf.database)
    assert (code, "FAIL" in output, identity in output) == (1, True, True)
    code, _, errors = cli("drill", conf.database)
    assert (code, errors.splitlines()[0][:20]) == (1, "drill: drill failed ")
    assert not list(conf.scratch_directory.glob("*"))


def with_migration(home: Path, sql: str) -> Path:
    """Return the scripts of a checkout that has one more migration."""
    shutil.copytree(ROOT / "scripts", home / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "sql", home / "sql")
    (home / "sql/migrations/0002_next.sql").write_text(sql)
    return home / "scripts"


@pytest.mark.parametrize(
    ("sql", "said"),
    [
        (
            "CREATE TABLE half (x); UPDATE memory_entries SET version = version + 1;"
            "CREATE UNIQUE INDEX one ON memory_entries (memory_type);",
            "migration 0002_next failed: UNIQUE constraint failed: memory_entries.memory_type; "
            "it was rolled back, the database is as before it",
        ),
        (
            "CREATE TABLE half (x); INSERT INTO nowhere VALUES (1);",
            "migration 0002_next cannot be applied, not even to a new database: no such table: nowhere",
        ),
        (
            "CREATE TABLE half (x); CREATE TABEL other (y);",
            'migration 0002_next cannot be applied, not even to a new database: near "TABEL": …',
        ),
    ],
)
def test_a_migration_that_fails_in_the_middle_is_rolled_back_whole(
    conf: Config, tmp_path_factory: pytest.TempPathFactory, sql: str, said: str
) -> None:
    scripts = with_migration(tmp_path_factory.mktemp("checkout"), sql)
    before = dump(conf.database)
    done = subprocess.run(
        [sys.executable, "-m", "abathur_db", "init", conf.database],
        cwd=scripts,
        capture_output=True,
        text=True,
        check=False,
    )
    told, following = done.stderr.splitlines()
    assert re.fullmatch("init: " + pattern(said, conf, ""), told), told
    assert following == ("hint: report it with this message; the former release goes on working with the database")
    assert (done.returncode, dump(conf.database)) == (1, before)
    assert value(conf.database, "PRAGMA user_version") == 1


# --- what looks odd and is good ---------------------------------------------------------------------------------


def moved(name: str) -> Callable[[Config], Path]:
    """Return what moves the database to a directory of another name."""

    def prepare(conf: Config) -> Path:
        directory = conf.database.parent / name
        directory.mkdir()
        return Path(shutil.copy(conf.database, directory / "Gedächtnis 1.db"))

    return prepare


def empty_log(conf: Config) -> Path:
    conf.database.with_name("abathur.db-wal").write_bytes(b"")
    return conf.database


WRITER = """
import os, sqlite3, sys
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("PRAGMA journal_mode = " + sys.argv[2])
connection.execute("PRAGMA cache_size = 1")
connection.execute("BEGIN")
connection.execute("UPDATE memory_entries SET value = '0'")
connection.execute("UPDATE memory_entries SET value = '1'")
os.kill(os.getpid(), 9)
"""


def dead_writer(mode: str) -> Callable[[Config], Path]:
    """Return what lets a writer die in the middle of a transaction, so that its journal has to be rolled back."""

    def prepare(conf: Config) -> Path:
        subprocess.run([sys.executable, "-c", WRITER, conf.database, mode], check=False)
        left = conf.database.with_name("abathur.db-journal" if mode == "DELETE" else "abathur.db-wal")
        if left.stat().st_size == 0:
            raise ValueError(f"{left} holds nothing")
        return conf.database

    return prepare


ODD: dict[str, Callable[[Config], Path]] = {
    "a path with spaces and umlauts": moved("Büro für Gedächtnis 2"),
    "a path with the signs of a URI": moved("100%? #1&mode=ro;x"),
    "a path with a quote": moved("it's"),
    "a log of 0 bytes": empty_log,
    "a hot journal": dead_writer("DELETE"),
    "a log with a transaction that never ended": dead_writer("WAL"),
}


@pytest.mark.parametrize("case", ODD)
def test_what_looks_odd_and_is_good_works_with_every_command_and_every_row(conf: Config, cli: Cli, case: str) -> None:
    path = ODD[case](conf)
    for command in ("init", "seed", "backup", "verify", "drill", "analyze", "vacuum", "integrity-check", "status"):
        named = ["--database", path] if command == "verify" else [path]
        code, _, errors = cli(command, *named)
        assert (code, errors) == (0, ""), command
    assert cli("restore", "latest", "--database", path)[0] == 0
    assert value(path, "SELECT count(*) FROM memory_entries WHERE length(value) > 1000") == 200
