"""The replica that Litestream keeps of the database: where it is, how Litestream is run, and what it says.

Below the replica's URL are numbered lineages, URL/0001, URL/0002 and so on. A lineage belongs to one database file: a
restored one begins the next, and what the former one had sent stays as it is.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from abathur_db import database, foreign, guarded, host, runs
from abathur_db.config import Config
from abathur_db.result import Exit, Failure

SETTINGS = Path("/etc/abathur-db-replication.yml")
"""Written by the role abathur_replication, absent without replication. It holds no secret."""

SECRETS = Path("/etc/abathur-db.secrets")
UNIT = "abathur-db-replicate.service"
FOLLOW = "abathur-db-follow.service"
"""In the place of the other one on a standby."""

SERVICES = (UNIT, FOLLOW)

PROGRAMS = "litestream-*"
"""Litestream by its versions, in the install directory."""

CREDENTIAL = "replica"
"""The secret of the store, lent by systemd: an AWS shared credentials file, or for SFTP a private key."""

DELETED = 9
"""How many lineages may be gone after the last one that a host knows of: each costs it a look at the store."""

LOOK_SECONDS = 30
"""How long a look at the store may take: Litestream alone would try for two minutes."""

SEND = "500ms"
"""How often Litestream reads the log, and how often it sends. A change waits for both, so at its defaults, 1 s each, up
to two seconds; twice as often costs up to twice the requests, and a listing of the last 5 minutes stays below 1000."""

FETCH_SECONDS = 6 * 3600
"""How long a state may take to be fetched: as long as a job may take."""

GONE = re.compile("timestamp does not exist|no matching backup files")
"""What Litestream says of a moment that it no longer has, or not yet."""

SILENT = "the store does not answer"
ASTRAY = "Litestream has read what was never committed, and has to begin anew"
TAKES_NOTHING = "the store answers, but takes no change in time: it may be full"

READING = re.compile("LTX header|reading ltx file|read page|decode|close reader")
"""What Litestream says of a file of its own that it cannot read, and not of one that it cannot write."""

BROKEN = "changes that were sent are gone from the store, and no restore gets past them"
ANEW = "begin the replica anew, the next lineage has a whole copy: abathur-db promote --new-lineage"

SKEWED = "the store refuses the clock of this host"
INVALID = "the store's certificate is not valid by the clock of this host"
STRANGER = "the server shows another host key than abathur_replication_host_key"

REASONS = (
    (r"NoSuchBucket", "the bucket does not exist"),
    # A store says so with the status of wrong credentials. Litestream's client goes by the store's time from then on,
    # so that it is rarely heard.
    (r"RequestTimeTooSkewed|RequestExpired|Signature not yet current|Signature expired", SKEWED),
    (r"certificate has expired or is not yet valid", INVALID),
    (r"get credentials", "there are no credentials for the store"),
    (r"host key mismatch", STRANGER),
    (r"cannot parse sftp host key", "abathur_replication_host_key is no public key"),
    (r"passphrase protected", "the private key in abathur_replication_credentials has a passphrase"),
    (r"cannot parse sftp key", "abathur_replication_credentials is no private key"),
    (
        r"SignatureDoesNotMatch|InvalidAccessKeyId|AccessDenied|StatusCode: 40[13]|unable to authenticate",
        "the store refuses the credentials",
    ),
    (r"no space left|quota exceeded|InsufficientStorage|StatusCode: 507", "the store is full"),
    (r"connection refused|no such host|no route to host|deadline exceeded|timeout|EOF", SILENT),
    (r"permission denied|read-only file system", "the store cannot be written"),
)
"""What Litestream's long words come down to; the first that fits."""

UNANSWERED = frozenset(meaning for _, meaning in REASONS)
"""The reasons for which a look at the store did not list it: another look at that moment would end the same."""

CLOCK = "compare it with a clock that is right, and let it be kept: timedatectl set-ntp true"
HINTS = {
    SKEWED: CLOCK,
    INVALID: CLOCK,
    BROKEN: f"see who deletes there, as a lifecycle rule of the bucket; then {ANEW}",
    STRANGER: "ask who runs the server whether its key is new; set abathur_replication_host_key, and deploy again",
}
"""The next step for reasons that have one of their own."""


@dataclass(frozen=True)
class Settings:
    """What the role abathur_replication says; names carry their units, the README's table describes each."""

    database: Path
    url: str
    host_key: str
    litestream: Path
    maximum_lag_seconds: int
    keep_days: int
    standby: bool

    def place(self, lineage: int) -> str:
        """Return the URL of a lineage."""
        parts = urlsplit(self.url)
        return parts._replace(path=f"{parts.path.rstrip('/')}/{lineage:04}").geturl()


def settings(config: Config) -> Settings | None:
    """Return the settings, None where this database is not replicated. Raises Failure (USAGE) for others than ours."""
    guarded.roots_alone(SETTINGS)
    try:
        values = foreign.record(SETTINGS.read_text(encoding="utf-8"))
        found = Settings(**{**values, "database": Path(values["database"]), "litestream": Path(values["litestream"])})
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise Failure(f"{SETTINGS} cannot be read: {error}", "deploy again: it is generated", Exit.USAGE) from None
    return found if found.database == config.database else None


def required(config: Config) -> Settings:
    """Return the settings. Raises Failure (USAGE) where this database is not replicated."""
    found = settings(config)
    if found is None:
        raise Failure(
            f"{config.database} is not replicated",
            "set abathur_replication_enabled and abathur_replication_url, and deploy again",
            Exit.USAGE,
        )
    return found


def home(config: Config) -> Path:
    """Return where Litestream keeps what it has not sent yet, and where its socket is."""
    return config.state_directory / "replication"


def socket(config: Config) -> Path:
    """Return the path of the socket on which the running Litestream answers."""
    return home(config) / "socket"


def lineage(config: Config, found: Settings) -> int:
    """Return the number of the database's lineage; for another file than the last time the next one is begun.

    Raises Failure when the store has to be looked at for that and does not answer.
    """
    known = last_lineage(config)
    wanted = {"url": found.url, "file": _identity(config.database)}
    if known and {name: known.get(name) for name in wanted} == wanted:
        return int(known["lineage"])
    number = newest(config, found) + 1
    # What a former file had left to send would be sent as if it were this one's.
    shutil.rmtree(home(config), ignore_errors=True)
    remember(config, {"lineage": number, **wanted})
    return number


def remember(config: Config, known: dict[str, Any]) -> dict[str, Any]:
    """Note the lineage that this host has begun, or without a `file` the one that it has taken: it begins the next.

    Returns what was noted.
    """
    guarded.directory(home(config))
    runs.write_whole(home(config) / "lineage.json", json.dumps(known) + "\n", durable=True)
    return known


def last_lineage(config: Config) -> dict[str, Any] | None:
    """Return what was last replicated: `lineage`, `url`, and `file`; None before the first time."""
    try:
        known = foreign.record(guarded.read_text(home(config) / "lineage.json"))
    except (FileNotFoundError, ValueError):
        return None
    return known if type(known.get("lineage")) is int else None


def _own(config: Config, found: Settings) -> int:
    """Return the number of the lineage that this host has begun or taken last at this URL, 0 for none."""
    last = last_lineage(config)
    return int(last["lineage"]) if last and last.get("url") == found.url else 0


def _identity(path: Path) -> str:
    """Return inode and time of birth of a file: the number alone is given to a new file once the old one is gone."""
    done = subprocess.run(["stat", "--format=%i %.9W", path], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def newest(config: Config, found: Settings, since: int = 0) -> int:
    """Return the number of the newest lineage of the replica, 0 for none; `since`: one that was there, as this host's.

    They and others after them may have been deleted, the oldest first. Raises Failure when it cannot be read.
    """
    number = _oldest(config, found, max(since, _own(config, found)))
    while changes(config, found, number + 1):
        number += 1
    return number


def _oldest(config: Config, found: Settings, since: int) -> int:
    """Return the number of the oldest lineage that is there from one on; that one itself when none is."""
    first = max(since, 1)
    if changes(config, found, first):
        return first
    # Together: over SFTP each is a connection. A server takes ten at a time that have not logged in (MaxStartups).
    with ThreadPoolExecutor(5) as pool:
        numbers = range(first + 1, first + DELETED + 1)
        there = pool.map(lambda number: changes(config, found, number), numbers)
        return next((number for number, each in zip(numbers, there, strict=True) if each), since)


def newer(config: Config, found: Settings) -> int:
    """Return the number of a lineage newer than this host's own, 0 for none. Raises Failure without an answer."""
    own = _own(config, found)
    number = newest(config, found) if own else 0
    return number if number > own else 0


def changes(config: Config, found: Settings, number: int) -> list[dict[str, Any]]:
    """Return the files of a lineage, as Litestream lists them: level, min_txid, max_txid, size, timestamp."""
    listed: list[dict[str, Any]] = foreign.value(ask(config, found, number, "ltx", "-level", "all", "-json"))
    return listed


def unbroken(files: list[dict[str, Any]]) -> bool:
    """Tell whether a chain of files leads from the first change, which a snapshot holds as well, to the newest one."""
    ends = sorted((int(each["min_txid"], 16), int(each["max_txid"], 16)) for each in files)
    reached = 0
    for first, last in ends:
        if first > reached + 1:
            return False
        reached = max(reached, last)
    return True


@dataclass(frozen=True)
class Point:
    """A state that the replica can give back: in which lineage, of when, and how Litestream is asked for it."""

    lineage: int
    moment: datetime
    bytes: int
    arguments: tuple[str, ...]

    def __str__(self) -> str:
        """Return what it is called in a sentence."""
        return f"the replica of {self.moment:%Y-%m-%dT%H:%M:%SZ}, lineage {self.lineage:04}"


def point(config: Config, found: Settings, moment: datetime | None = None) -> Point | None:
    """Return the newest state at or before a moment, the newest of all for None; None when the replica has no such one.

    Moments are those of the changes, to the second. Raises Failure when the replica cannot be read.
    """
    for number in range(newest(config, found), 0, -1):
        times = [foreign.moment(each["timestamp"]) for each in changes(config, found, number)]
        if not times or (moment and min(times) > moment):
            continue
        # Litestream has no state for a moment after the last change.
        within = moment is not None and moment <= max(times)
        arguments = ("-timestamp", f"{moment:%Y-%m-%dT%H:%M:%SZ}") if within else ()
        try:
            told = ask(config, found, number, "restore", *arguments, "-dry-run", "-json", "-o", "/dev/null")
        except Failure as failure:
            if GONE.search(str(failure)):
                continue
            raise
        files = foreign.record(told)["files"]
        last = max(foreign.moment(each["timestamp"]) for each in files)
        return Point(number, last, sum(each["size"] for each in files), arguments)
    return None


def fetch(config: Config, found: Settings, wanted: Point, target: Path) -> None:
    """Write a state of the replica to a new file, which only its owner may read. Raises Failure."""
    guarded.clear(target)
    ask(config, found, wanted.lineage, "restore", *wanted.arguments, "-o", str(target), seconds=FETCH_SECONDS)
    target.chmod(0o600)


def configuration(config: Config, found: Settings, number: int, level: str = "warn") -> dict[str, Any]:
    """Return Litestream's own configuration for one lineage; `level`: of what it says, as it names them."""
    replica: dict[str, Any] = {"url": found.place(number), "sync-interval": SEND}
    if found.url.startswith("sftp:"):
        replica |= {"key-path": credential(), "host-key": found.host_key}
    return {
        "socket": {"enabled": True, "path": str(socket(config)), "permissions": 0o600},
        "logging": {"level": level, "type": "json", "stderr": True},
        "snapshot": {"interval": "24h", "retention": f"{24 * found.keep_days}h"},
        # A stop waits that long for a store that is away; what was not sent is sent after the next start.
        "shutdown-sync-timeout": "10s",
        "dbs": [
            {
                "path": str(config.database),
                "meta-path": str(home(config) / f"{number:04}"),
                "monitor-interval": SEND,
                # While it replicates it alone can shorten the log: at half of the limit, as our own jobs would.
                "truncate-page-n": config.wal_limit_mb * host.MB // 2 // database.page_bytes(config.database),
                "replica": replica,
            }
        ],
    }


_lent: list[int] = []
"""A descriptor of the secret, for what root goes on as."""


def lend() -> None:
    """Take the secret along when root goes on as somebody else: in memory, as systemd does it for a unit."""
    if os.geteuid() != 0 or _lent or not (SECRETS / CREDENTIAL).exists():
        return
    _lent.append(os.memfd_create(CREDENTIAL))
    os.write(_lent[0], (SECRETS / CREDENTIAL).read_bytes())


def credential() -> str:
    """Return the path of the secret that systemd lends to the unit, or root to its child; empty where none is lent."""
    path = Path(os.environ.get("CREDENTIALS_DIRECTORY", "")) / CREDENTIAL
    if path.is_absolute() and path.exists():
        return str(path)
    return f"/proc/self/fd/{_lent[0]}" if _lent else ""


def environment() -> dict[str, str]:
    """Return all that Litestream sees of the environment: AWS_CA_BUNDLE, for one, would break it."""
    lent = {"AWS_SHARED_CREDENTIALS_FILE": credential()} if credential() else {}
    return {"PATH": os.defpath, "HOME": "/nonexistent", **lent}


def ask(config: Config, found: Settings, number: int, command: str, *arguments: str, seconds: float = 0) -> str:
    """Ask Litestream about a lineage, by a configuration that stands in no file. Raises Failure as `run` does."""
    told = json.dumps(configuration(config, found, number))
    how = ("-no-expand-env", "-config", "/proc/self/fd/0")
    return run(found, command, *how, *arguments, str(config.database), seconds=seconds or LOOK_SECONDS, told=told)


def run(found: Settings, *arguments: str, seconds: float, told: str = "") -> str:
    """Run Litestream; return what it printed. Raises Failure, with its words made short, after `seconds` at most."""
    where = f"the replica {found.url}"
    hint = f"see whether the host reaches {urlsplit(found.url).netloc or urlsplit(found.url).path}, and deploy again"
    try:
        done = subprocess.run(
            [found.litestream, *arguments],
            env=environment(),
            input=told,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            pass_fds=_lent,
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"{where} cannot be read: {SILENT}", hint) from None
    except OSError as error:
        raise Failure(f"{found.litestream} cannot be run: {error.strerror}", "deploy again") from None
    if done.returncode != 0:
        why = reason(done.stderr)
        raise Failure(f"{where} cannot be read: {why}", HINTS.get(why, hint))
    return done.stdout


def unreadable(said: str) -> bool:
    """Tell whether Litestream says that it cannot read back what it has sent, though the store answers."""
    # A file that is too short ends early, as an answer does that breaks off.
    known = any(re.search(pattern, said.replace("EOF", "")) for pattern, _ in REASONS)
    return bool(READING.search(said)) and not known


def note_unreadable(config: Config, why: str) -> None:
    """Note why what was sent cannot be read back, for the job replication; empty: it can."""
    path = home(config) / "unreadable"
    if why:
        runs.write_whole(path, f"{why}\n")
    else:
        path.unlink(missing_ok=True)


def noted_unreadable(config: Config) -> str:
    """Return what note_unreadable has noted last."""
    try:
        return guarded.read_text(home(config) / "unreadable").strip()
    except (FileNotFoundError, ValueError):
        return ""


def reason(said: str) -> str:
    """Return in a few words what Litestream says at length."""
    words = " ".join(said.split()).removeprefix("Error: ")[-200:]
    if unreadable(said):
        return f"what was sent cannot be read back: {words}"
    for pattern, meaning in REASONS:
        if re.search(pattern, said):
            return meaning
    return words or "Litestream does not say why"
