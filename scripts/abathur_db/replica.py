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
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from abathur_db import guarded, host, runs
from abathur_db.config import Config
from abathur_db.result import Exit, Failure

SETTINGS = Path("/etc/abathur-db-replication.yml")
"""Written by the role abathur_replication, absent without replication. It holds no secret."""

UNIT = "abathur-db-replicate.service"
PROGRAMS = "litestream-*"
"""Litestream by its versions, in the install directory."""

CREDENTIAL = "replica"
"""The secret of the store, lent by systemd: an AWS shared credentials file, or for SFTP a private key."""

LOOK_SECONDS = 30
"""How long a look at the store may take: Litestream alone would try for two minutes."""

REASONS = (
    (r"NoSuchBucket", "the bucket does not exist"),
    (r"get credentials", "there are no credentials for the store"),
    (
        r"SignatureDoesNotMatch|InvalidAccessKeyId|AccessDenied|StatusCode: 40[13]|unable to authenticate",
        "the store refuses the credentials",
    ),
    (r"no space left|quota exceeded|InsufficientStorage|StatusCode: 507", "the store is full"),
    (r"connection refused|no such host|no route to host|deadline exceeded|timeout|EOF", "the store does not answer"),
    (r"permission denied|read-only file system", "the store cannot be written"),
)
"""What Litestream's long words come down to; the first that fits."""


@dataclass(frozen=True)
class Settings:
    """What the role abathur_replication says; names carry their units, the README's table describes each."""

    database: Path
    url: str
    host_key: str
    litestream: Path
    maximum_lag_seconds: int
    keep_days: int

    def place(self, lineage: int) -> str:
        """Return the URL of a lineage."""
        parts = urlsplit(self.url)
        return parts._replace(path=f"{parts.path.rstrip('/')}/{lineage:04}").geturl()


def settings(config: Config) -> Settings | None:
    """Return the settings, None where this database is not replicated. Raises Failure (USAGE) for others than ours."""
    try:
        values = json.loads(SETTINGS.read_text(encoding="utf-8"))
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
    number = newest(found) + 1
    # What a former file had left to send would be sent as if it were this one's.
    shutil.rmtree(home(config), ignore_errors=True)
    guarded.directory(home(config))
    runs.write_whole(home(config) / "lineage.json", json.dumps({"lineage": number, **wanted}) + "\n", durable=True)
    return number


def last_lineage(config: Config) -> dict[str, Any] | None:
    """Return what was last replicated: `lineage`, `url`, and `file`; None before the first time."""
    try:
        known = json.loads(guarded.read_text(home(config) / "lineage.json"))
    except (FileNotFoundError, ValueError, RecursionError):
        return None
    return known if isinstance(known, dict) and type(known.get("lineage")) is int else None


def _identity(path: Path) -> str:
    """Return inode and time of birth of a file: the number alone is given to a new file once the old one is gone."""
    done = subprocess.run(["stat", "--format=%i %.9W", path], capture_output=True, text=True, check=False)
    return done.stdout.strip()


def newest(found: Settings) -> int:
    """Return the number of the newest lineage of the replica, 0 for none. Raises Failure when it cannot be read."""
    number = 0
    while changes(found, number + 1):
        number += 1
    return number


def changes(found: Settings, number: int) -> list[dict[str, Any]]:
    """Return the files of a lineage, as Litestream lists them: level, min_txid, max_txid, size, timestamp."""
    listed: list[dict[str, Any]] = json.loads(
        run(found, "ltx", "-level", "all", "-json", found.place(number), seconds=LOOK_SECONDS)
    )
    return listed


def configuration(config: Config, found: Settings, number: int) -> dict[str, Any]:
    """Return Litestream's own configuration for one lineage."""
    with config.database.open("rb") as stream:
        # Bytes 16 and 17 of the header; 1 stands for 65536 (sqlite.org/fileformat.html, section 1.3.2).
        page = int.from_bytes(stream.read(18)[16:], "big")
    replica: dict[str, Any] = {"url": found.place(number), "sync-interval": "1s"}
    if found.url.startswith("sftp:"):
        replica |= {"key-path": credential(), "host-key": found.host_key}
    return {
        "socket": {"enabled": True, "path": str(socket(config)), "permissions": 0o600},
        "logging": {"level": "warn", "type": "text", "stderr": True},
        "snapshot": {"interval": "24h", "retention": f"{24 * found.keep_days}h"},
        # A stop waits that long for a store that is away; what was not sent is sent after the next start.
        "shutdown-sync-timeout": "10s",
        "dbs": [
            {
                "path": str(config.database),
                "meta-path": str(home(config) / f"{number:04}"),
                # While it replicates it alone can shorten the log: at half of the limit, as our own jobs would.
                "truncate-page-n": config.wal_limit_mb * host.MB // 2 // (65536 if page == 1 else page),
                "replica": replica,
            }
        ],
    }


def credential() -> str:
    """Return the path of the secret that systemd lends to the unit, empty where none is lent."""
    path = Path(os.environ.get("CREDENTIALS_DIRECTORY", "")) / CREDENTIAL
    return str(path) if path.is_absolute() and path.exists() else ""


def environment() -> dict[str, str]:
    """Return all that Litestream sees of the environment: AWS_CA_BUNDLE, for one, would break it."""
    lent = {"AWS_SHARED_CREDENTIALS_FILE": credential()} if credential() else {}
    return {"PATH": os.defpath, "HOME": "/nonexistent", **lent}


def run(found: Settings, *arguments: str, seconds: float) -> str:
    """Run Litestream; return what it printed. Raises Failure, with its words made short, after `seconds` at most."""
    where = f"the replica {found.url}"
    hint = f"see whether the host reaches {urlsplit(found.url).netloc or urlsplit(found.url).path}, and deploy again"
    try:
        done = subprocess.run(
            [found.litestream, *arguments],
            env=environment(),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise Failure(f"{where} cannot be read: the store does not answer", hint) from None
    except OSError as error:
        raise Failure(f"{found.litestream} cannot be run: {error.strerror}", "deploy again") from None
    if done.returncode != 0:
        raise Failure(f"{where} cannot be read: {reason(done.stderr)}", hint)
    return done.stdout


def reason(said: str) -> str:
    """Return in a few words what Litestream says at length."""
    for pattern, meaning in REASONS:
        if re.search(pattern, said):
            return meaning
    return " ".join(said.split()).removeprefix("Error: ")[-200:] or "Litestream does not say why"
