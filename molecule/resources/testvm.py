#!/usr/bin/env python3
"""Makes whole machines with QEMU, for what a host on this machine's kernel cannot show: power cuts, clocks, limits.

The sibling of testhost.py, for use from tests: a machine is known by the same host.json, so that testhost's
inventory, ssh_command and destroy serve it too. Its disk is an overlay over a cached image; its sshd answers
on a port of 127.0.0.1. KVM is not needed. Needs root, and the packages qemu-system-x86, qemu-utils, e2fsprogs
beside those of testhost.py.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import testhost
import trees

PACKAGES = (*trees.PACKAGES, "linux-image-cloud-amd64", "initramfs-tools", "udev", "tzdata")
DISK = "3G"
MEMORY = "1024"
"""MB; a deploy needs a quarter of it."""
BOOT_SECONDS = 300
"""A boot takes 25 s on 2 quiet cores; a busy machine may take its time."""
NETWORK = "[Match]\nName=e*\n[Network]\nDHCP=yes\n"


def image(suite: str) -> Path:
    """Return the folder with the cached disk image of a suite, its kernel and initrd, made first when it is new."""
    base = trees.tree(suite, PACKAGES)
    target = trees.CACHE / "images" / base.name
    with trees.locked(f"image-{suite}"):
        if not target.exists():
            trees.say(f"making the disk image of Debian {suite} (once, about 20 s)")
            partial = target.with_name(target.name + ".partial")
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            (base / "etc/systemd/network/testvm.network").write_text(NETWORK)
            trees.run("systemctl", f"--root={base}", "enable", "systemd-networkd.service")
            trees.run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "testvm", "-f", partial / "key")
            (base / "root/.ssh").mkdir(mode=0o700, exist_ok=True)
            shutil.copy(partial / "key.pub", base / "root/.ssh/authorized_keys")
            for name in ("vmlinuz", "initrd.img"):
                shutil.copy(base / name, partial / name)
            trees.run("truncate", f"--size={DISK}", partial / "disk.img")
            trees.run("mkfs.ext4", "-q", "-F", "-d", base, partial / "disk.img")
            partial.rename(target)
    return target


def create(name: str, suite: str) -> None:
    """Make a new machine, in the place of one of the same name, and boot it."""
    base = image(suite)
    testhost.destroy(name)
    home = testhost.HOSTS / name
    home.mkdir(parents=True)
    # What the machine has not flushed is lost with QEMU: of blocks written for the first time, the entry in
    # the tables, which QEMU keeps in memory until the machine flushes; the small clusters make them many.
    options = f"cluster_size=4096,backing_file={base / 'disk.img'},backing_fmt=raw"
    trees.run("qemu-img", "create", "-q", "-f", "qcow2", "-o", options, home / "disk.qcow2")
    host = {
        "name": name,
        "suite": suite,
        "port": testhost.free_port(),
        "key": str(base / "key"),
        "pid": 0,
        "started": "",
    }
    (home / "host.json").write_text(json.dumps(host))
    try:
        boot(name)
    except BaseException:
        testhost.destroy(name)
        raise


def boot(name: str, clock: str = "utc") -> dict[str, Any]:
    """Start a machine that is off and wait until it answers; `clock`: its hardware clock's time, as qemu -rtc base."""
    home = testhost.HOSTS / name
    host = _known(name)
    base = image(host["suite"])
    # The plainest processor is the cheapest to emulate: a boot costs 23 s of a processor instead of 26, a sum of
    # 100 MB 3 instead of 5.
    network = f"user,id=net,restrict=on,hostfwd=tcp:127.0.0.1:{host['port']}-:22"
    with (home / "console.log").open("w") as log:
        process = subprocess.Popen(
            [
                *("qemu-system-x86_64", "-accel", "tcg", "-cpu", "qemu64", "-smp", "2", "-m", MEMORY, "-nographic"),
                *("-no-reboot", "-monitor", "none", "-serial", "stdio", "-rtc", f"base={clock},clock=vm"),
                *("-kernel", base / "vmlinuz", "-initrd", base / "initrd.img"),
                *("-append", "root=/dev/vda rw console=ttyS0 quiet net.ifnames=0"),
                *("-drive", f"file={home / 'disk.qcow2'},format=qcow2,if=virtio,cache=writeback"),
                *("-netdev", network, "-device", "virtio-net-pci,netdev=net"),
            ],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    host |= {"pid": process.pid, "started": testhost.started(process.pid)}
    (home / "host.json").write_text(json.dumps(host))
    deadline = time.monotonic() + BOOT_SECONDS
    while True:
        answer = ssh(name, "systemctl is-system-running --wait || true")
        if answer.stdout.strip() in ("running", "degraded"):
            return host
        if process.poll() is not None:
            said = (home / "console.log").read_text()[-500:]
            trees.die(f"{name} ended with {process.returncode} while booting: {said}", "make it again")
        if time.monotonic() > deadline:
            trees.die(f"{name} did not come up in {BOOT_SECONDS} s: {answer}", f"see {home / 'console.log'}")
        time.sleep(0.5)


def _known(name: str) -> dict[str, Any]:
    host = testhost.state(name)
    if host is None:
        trees.die(f"there is no machine {name}", "make it first")
    return host


def ssh(name: str, command: str) -> subprocess.CompletedProcess[str]:
    """Run a command on a machine as root."""
    line = [*testhost.ssh_command(_known(name)), command]
    return subprocess.run(line, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)


def cut(name: str) -> None:
    """Cut a machine's power: what it has not flushed to its disk is gone."""
    if testhost.alive(name):
        os.kill(_known(name)["pid"], signal.SIGKILL)
    _ended(name)


def stop(name: str) -> None:
    """Shut a machine down."""
    ssh(name, "systemctl poweroff")
    _ended(name)


def _ended(name: str) -> None:
    deadline = time.monotonic() + BOOT_SECONDS
    while testhost.alive(name):
        if time.monotonic() > deadline:
            trees.die(f"{name} does not end", f"end it: kill {_known(name)['pid']}")
        time.sleep(0.1)
    # Its main thread is gone; others may hold the lock of its disk for a moment. Its parent, mostly this process,
    # can wait for all.
    with suppress(ChildProcessError):
        os.waitpid(_known(name)["pid"], 0)
