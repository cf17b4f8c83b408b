"""A store with another clock than the host's: SeaweedFS itself, behind a proxy that shifts all dates."""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import socket
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from email.utils import format_datetime, parsedate_to_datetime
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from abathur_db import replication
from abathur_db.config import Config
from databases import rows, until, value
from replicas import Configure, conf, configure, ended_by_itself, lend, restored, service, weed

pytestmark = pytest.mark.engine

__all__ = ["conf", "configure"]

KEY, SECRET = "a", "b"
"""As replicas.lend has them."""
MAKE = "s3.bucket.create -name bucket\n"


def free_ports() -> int:
    """Return the first of four ports that are free, as those 10000 above them are: SeaweedFS takes these as well."""
    for first in range(24000, 30000, 4):
        try:
            for port in [*range(first, first + 4), *range(first + 10000, first + 10004)]:
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise AssertionError("no ports are free")


@contextmanager
def store(folder: Path) -> Iterator[int]:
    """Run SeaweedFS with a bucket; yields the port of its S3 interface."""
    port = free_ports()
    folder.mkdir()
    keys = {"name": "abathur", "credentials": [{"accessKey": KEY, "secretKey": SECRET}], "actions": ["Admin"]}
    (folder / "keys.json").write_text(json.dumps({"identities": [keys]}))
    ports = [f"-master.port={port}", f"-volume.port={port + 1}", f"-filer.port={port + 2}", f"-s3.port={port + 3}"]
    places = [f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-s3.config={folder}/keys.json"]
    # Volumes of a size that a test's disk has.
    others = ["-filer", "-s3", "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=64"]
    others += ["-volume.minFreeSpace=1MiB", "-volume.max=8", "-master.telemetry=false"]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen([weed(), "-logtostderr=true", "server", *ports, *places, *others], stderr=log) as process,
    ):
        try:
            until(lambda: _has_bucket(port) and _listens(port + 3), "SeaweedFS starts")
            yield port + 3
        except TimeoutError as late:
            late.add_note((folder / "log").read_text()[-2000:])
            raise
        finally:
            process.kill()


def _has_bucket(port: int) -> bool:
    """Make the bucket, unless it is there already."""
    asked = [weed(), "shell", f"-master=127.0.0.1:{port}"]
    done = subprocess.run(asked, input=MAKE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return bool(re.search("created|already", done.stdout))


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Clock:
    """How far the store's clock is ahead of the host's, and how many requests it refused for that."""

    hours = refused = 0


def signed(method: str, target: str, headers: dict[str, str], at: datetime) -> dict[str, str]:
    """Return the headers of a request as if it had been signed at another time: AWS Signature Version 4.

    Its steps are those of the IAM user guide, Create a signed AWS API request.
    """
    found = {name.lower(): text for name, text in headers.items()}
    scope, names = re.findall(r"Credential=\w+/(\S+), SignedHeaders=(\S+),", found["authorization"])[0]
    found["x-amz-date"] = f"{at:%Y%m%dT%H%M%SZ}"
    scope = "/".join([f"{at:%Y%m%d}", *scope.split("/")[1:]])
    path, _, query = target.partition("?")
    query = "&".join(sorted(each if "=" in each else f"{each}=" for each in query.split("&") if each))
    lines = "".join(f"{name}:{found[name].strip()}\n" for name in names.split(";"))
    canonical = "\n".join([method, path, query, lines, names, found["x-amz-content-sha256"]])
    digest = hashlib.sha256(canonical.encode()).hexdigest()
    key = b"AWS4" + SECRET.encode()
    for part in scope.split("/"):
        key = hmac.digest(key, part.encode(), "sha256")
    text = "\n".join(["AWS4-HMAC-SHA256", found["x-amz-date"], scope, digest])
    signature = hmac.digest(key, text.encode(), "sha256").hex()
    found["authorization"] = f"AWS4-HMAC-SHA256 Credential={KEY}/{scope}, SignedHeaders={names}, Signature={signature}"
    return found


@contextmanager
def seen_by(clock: Clock, port: int) -> Iterator[str]:
    """Pass requests on to a store as if its clock were that one: dates are shifted, and signed anew; yields its URL."""

    class Pass(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            headers = dict(self.headers.items())
            if clock.hours and "Authorization" in headers:
                at = datetime.strptime(headers["X-Amz-Date"], "%Y%m%dT%H%M%S%z") - timedelta(hours=clock.hours)
                headers = signed(self.command, self.path, headers, at)
            onward = HTTPConnection("127.0.0.1", port)
            onward.request(self.command, self.path, body, headers)
            answer = onward.getresponse()
            content = answer.read()
            clock.refused += b"RequestTimeTooSkewed" in content
            self.send_response_only(answer.status)
            for name, text in answer.getheaders():
                if name.lower() == "date":
                    at = parsedate_to_datetime(text) + timedelta(hours=clock.hours)
                    self.send_header(name, format_datetime(at, usegmt=True))
                elif name.lower() not in ("content-length", "transfer-encoding", "connection"):
                    self.send_header(name, text)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)
            onward.close()

        do_HEAD = do_PUT = do_POST = do_DELETE = do_GET  # noqa: N815 - names that the server looks for

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Pass) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"s3://bucket/host?endpoint=http://127.0.0.1:{server.server_port}&region=none"
        finally:
            server.shutdown()
            ended_by_itself(thread)


def test_a_clock_that_the_store_does_not_take_keeps_nothing_back(
    conf: Config, configure: Configure, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The store refuses it, says its own time with that, and Litestream's client goes by that from then on."""
    lend(tmp_path, monkeypatch)
    clock = Clock()
    with store(tmp_path / "store") as port, seen_by(clock, port) as url:
        configure(url=url)
        for hours in (1, -1):
            clock.hours, before = hours, clock.refused
            with service(conf, monkeypatch):
                rows(conf.database, 5, f"user:{hours}")
                assert replication.replication(conf).ok
                # Set back while it replicates, as a clock is that was wrong.
                clock.hours = 0
                rows(conf.database, 5, f"user:{before}")
                assert replication.replication(conf).ok
            assert clock.refused > before
        assert value(restored(conf, 1, tmp_path / "r.db"), "SELECT count(*) FROM memory_entries") == 20
