"""Packing and unpacking: a database file to a compressed one and back, hashed on the way, in flat memory."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from abathur_db import guarded, host, progress
from abathur_db.result import Failure, shell

CHUNK = 1 << 20
"""Bytes read at a time: memory stays flat whatever the size of the database."""

FLUSH = 2 << 20
"""Bytes written between two flushes to the disk: a writer's commit never waits behind more than that."""

LEVEL = "-1"
"""Of zstd: 9 % larger than its usual -3 on JSON rows, for 20 % less of the processor (README, Measured)."""

ANOTHER = "take another one: abathur-db backups (of a database of your own: abathur-db backups PATH)"
"""The next step wherever a backup is found damaged."""


class Sink:
    """A new file that hashes and counts what is written to it, flushed as it grows and durable at its end."""

    def __init__(self, path: Path) -> None:
        """Create the file; it must not exist."""
        self.digest = hashlib.sha256()
        self.size = 0
        self._unflushed = 0
        self._file = path.open("xb", buffering=0)

    def write(self, data: bytes) -> int:
        """Write all of `data`; return its length in bytes. Raises OSError."""
        view = memoryview(data)
        while view:
            view = view[self._file.write(view) :]
        self.digest.update(data)
        self.size += len(data)
        self._unflushed += len(data)
        if self._unflushed >= FLUSH:
            os.fdatasync(self._file.fileno())
            self._unflushed = 0
        return len(data)

    def __enter__(self) -> Sink:
        """Give the sink itself."""
        return self

    def __exit__(self, *failed: object) -> None:
        """Flush what was written, unless the work failed, and close."""
        try:
            if failed[0] is None:
                os.fsync(self._file.fileno())
        finally:
            self._file.close()


def pack(source: Path, target: Path, compression: str) -> dict[str, Any]:
    """Write `source` compressed to a new file `target`, durable; return sizes in bytes and SHA-256 of both.

    `compression`: zstd, gzip or none. Raises OSError, and Failure when zstd is absent or fails.
    """
    plain, size = hashlib.sha256(), source.stat().st_size
    compressor = {"zstd": _zstd, "gzip": _gzip, "none": _plain_copy}[compression]
    with (
        source.open("rb", buffering=0) as stream,
        Sink(target) as sink,
        compressor(sink, size) as write,
        progress.shown("compress", size) as update,
    ):
        while chunk := stream.read(CHUNK):
            plain.update(chunk)
            write(chunk)
            update(len(chunk))
    return {
        "plain_bytes": size,
        "plain_sha256": plain.hexdigest(),
        "bytes": sink.size,
        "sha256": sink.digest.hexdigest(),
    }


@contextmanager
def _plain_copy(sink: Sink, _: int) -> Iterator[Callable[[bytes], object]]:
    yield sink.write


@contextmanager
def _gzip(sink: Sink, _: int) -> Iterator[Callable[[bytes], object]]:
    # A sink has the one method of a file that GzipFile uses.
    with gzip.GzipFile(fileobj=sink, mode="wb", compresslevel=6) as packed:  # type: ignore[call-overload]
        yield packed.write


@contextmanager
def _zstd(sink: Sink, size: int) -> Iterator[Callable[[bytes], object]]:
    # With one processor, threads of its own only cost: a third of its time.
    threads = f"-T{host.processors()}" if host.processors() > 1 else "--single-thread"
    command = [zstd(), "-q", LEVEL, threads, "-c", f"--stream-size={size}"]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process,
        ThreadPoolExecutor(1) as pool,
    ):
        # Optional only for a Popen without pipes.
        stdin, stdout, stderr = (pipe for pipe in (process.stdin, process.stdout, process.stderr) if pipe)

        def drain() -> None:
            try:
                shutil.copyfileobj(stdout, sink, CHUNK)
            except BaseException:
                # Or the one that feeds it would wait for ever.
                process.kill()
                raise

        drained = pool.submit(drain)
        try:
            yield stdin.write
            stdin.close()
        except BrokenPipeError:
            # It has ended early; why is told below.
            pass
        except BaseException:
            process.kill()
            raise
        drained.result()
        said = stderr.read().decode(errors="replace").strip()
    if process.returncode != 0:
        raise Failure(
            f"zstd failed: {said or f'exit code {process.returncode}'}; nothing was kept of it",
            "see whether it works at all: zstd --version; free space: df -h",
        )


def zstd() -> str:
    """Return the path of the program zstd. Raises Failure when it is not installed."""
    program = shutil.which("zstd")
    if program is None:
        raise Failure(
            "the program zstd is not installed",
            "apt-get install zstd, or set abathur_db_backup_compression to gzip",
        )
    return program


def sha256(path: Path) -> str:
    """Return the SHA-256 of a backup's file, read in chunks, with its progress shown. Raises Failure without one."""
    digest = hashlib.sha256()
    _require_readable(path)
    with path.open("rb") as stream, progress.shown("hash", path.stat().st_size) as update:
        while chunk := stream.read(CHUNK):
            digest.update(chunk)
            update(len(chunk))
    return digest.hexdigest()


@contextmanager
def _unpacked(path: Path) -> Iterator[IO[bytes]]:
    """Open a backup file for reading its plain bytes, by its suffix; raises Failure when it cannot be unpacked."""
    if path.suffix == ".zst":
        program = zstd()
        with subprocess.Popen(
            [program, "-q", "-d", "-c", str(path)], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        ) as process:
            try:
                # Optional only for a Popen without pipes.
                yield process.stdout  # type: ignore[misc]
                said = process.stderr.read().decode(errors="replace").strip()  # type: ignore[union-attr]
            except BaseException:
                process.kill()
                raise
        if process.returncode != 0:
            raise Failure(f"{path.name} cannot be unpacked: {said}", ANOTHER)
    else:
        try:
            with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
                # GzipFile reads as IO[bytes] does, without being one by type.
                yield stream  # type: ignore[misc]
        except (EOFError, gzip.BadGzipFile, gzip.zlib.error) as error:  # type: ignore[attr-defined]
            raise Failure(f"{path.name} cannot be unpacked: {error}", ANOTHER) from None


def _require_readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except FileNotFoundError:
        raise Failure(f"{path} is gone: it was pruned or moved away after it was found", ANOTHER) from None
    except PermissionError:
        user = guarded.user_name(os.geteuid())
        raise Failure(
            f"{path} cannot be read by {user}",
            f"give that user access, to the directories above it as well: {shell('namei', '-l', path)}",
        ) from None


def unpack(source: Path, target: Path, limit: int) -> str:
    """Write the plain bytes of a backup file to a new file `target`; return their SHA-256.

    Stops at more than `limit` bytes: what unpacks to more than it should is damaged, or a trap.
    Raises Failure; `target` is then gone.
    """
    digest, written = hashlib.sha256(), 0
    try:
        _require_readable(source)
        with target.open("xb") as out, progress.shown("unpack", limit) as update, _unpacked(source) as stream:
            while chunk := stream.read(CHUNK):
                written += len(chunk)
                if written > limit:
                    raise Failure(f"{source.name} unpacks to more than {limit} bytes", ANOTHER)
                digest.update(chunk)
                out.write(chunk)
                update(len(chunk))
    except OSError as error:
        target.unlink(missing_ok=True)
        raise Failure(
            f"{source} cannot be unpacked to {target.parent}: {error.strerror or error}",
            f"free space there: {shell('df', '-h', target.parent)}",
        ) from error
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    target.chmod(0o600)
    return digest.hexdigest()
