#!/usr/bin/env python3
"""Makes and throws away real systemd hosts on this machine, for `make deploy` and for molecule.

A host is an overlay over a cached Debian tree, bare or with the bundle deployed, booted by systemd-nspawn; its sshd
listens on a port of 127.0.0.1 of its own. Hosts belong to the checkout that made them. Needs root, and the packages
systemd-container, mmdebstrap, openssh-client.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import yaml
from trees import CACHE, CHECKOUT, ROOT, die, locked, run, say, tree

HOSTS = CACHE / "hosts" / CHECKOUT
SUITES = ("bookworm", "trixie")
BOOT_SECONDS = 120
"""A boot takes 6 s on 2 quiet cores; a busy machine may take its time."""


def started(pid: int) -> str:
    """Return the start time of a process from /proc, empty when it is gone: tells a reused pid apart."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] == "Z" else fields[19]


def state(name: str) -> dict[str, Any] | None:
    """Return what is known of a host, None when there is no such host."""
    try:
        found: dict[str, Any] = json.loads((HOSTS / name / "host.json").read_text())
    except FileNotFoundError:
        return None
    return found


def alive(name: str) -> bool:
    """Tell whether the host's process is the one that was started, and still runs."""
    host = state(name)
    return host is not None and started(host["pid"]) == host["started"]


def ssh_command(host: dict[str, Any]) -> list[str]:
    """Return the ssh command line that logs in to a host."""
    options = ("StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR", "ConnectTimeout=5")
    flags = [part for option in options for part in ("-o", option)]
    return ["ssh", *flags, "-i", host["key"], "-p", str(host["port"]), "root@127.0.0.1"]


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody uses.

    The host may use the nine ports after it as well, and each of the ten plus 10 000 (SeaweedFS takes those by itself).
    All are below the ports that the kernel gives to clients, which begin at 32768.
    """
    while True:
        port = random.randrange(12_000, 22_000, 10)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


def control_groups(name: str) -> list[Path]:
    """Return the control groups of a host, one per hierarchy that systemd may use.

    Without its own, all hosts of a machine with the old hierarchies share one: units of the same
    name then disturb each other (status 219/CGROUP, "Failed to kill control group").
    """
    top = Path("/sys/fs/cgroup")
    roots = [each for each in (top, top / "systemd", top / "unified") if (each / "cgroup.procs").exists()]
    return [each / f"abathur-{CHECKOUT}-{name}" for each in roots]


def remove_control_groups(name: str) -> None:
    """Delete a host's control groups; those that are busy yet are left for the next time."""
    for group in control_groups(name):
        for folder, _, _ in os.walk(group, topdown=False):
            with suppress(OSError):
                Path(folder).rmdir()


def create(name: str, suite: str, *, deployed: bool = False) -> bool:
    """Boot a host unless it runs already, bare or with the bundle deployed; return whether it had to be made."""
    with locked(f"host-{CHECKOUT}-{name}"):
        if alive(name):
            return False
        bare = tree(suite)
        _destroy(name)
        home = HOSTS / name
        for part in ("upper", "work", "root"):
            (home / part).mkdir(parents=True)
        try:
            if deployed:
                with deployed_layer(suite) as layer:
                    _mount(home, [layer, bare])
            else:
                _mount(home, [bare])
            _boot(name, suite)
        except BaseException:
            _show_log(home)
            _destroy(name)
            raise
    return True


def _mount(home: Path, layers: list[Path]) -> None:
    lower = ":".join(map(str, layers))
    options = f"lowerdir={lower},upperdir={home / 'upper'},workdir={home / 'work'}"
    run("mount", "-t", "overlay", "overlay", "-o", options, home / "root")


def _boot(name: str, suite: str) -> None:
    home = HOSTS / name
    root, key = home / "root", home / "key"
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", key)
    ssh = root / "root/.ssh"
    ssh.mkdir(mode=0o700, exist_ok=True)
    (ssh / "authorized_keys").write_text(key.with_suffix(".pub").read_text())
    port = free_port()
    (root / "etc/ssh/sshd_config.d/testhost.conf").write_text(f"Port {port}\nListenAddress 127.0.0.1\n")
    (root / "etc/hostname").write_text(f"{name}\n")
    # A timer catches up on what it missed since its stamp: the time between a deployed layer and its use is none.
    for stamp in root.glob("var/lib/systemd/timers/stamp-*"):
        os.utime(stamp)
    _start({"name": name, "suite": suite, "port": port, "key": str(key)})


RELEASE = (
    "roles",
    "playbooks",
    "scripts",
    "sql",
    "molecule/resources",
    ".config/molecule/config.yml",
    "requirements.txt",
)
"""What a deployed host is made from."""
LAYERS = CACHE / "deployed" / CHECKOUT
LAYER_SECONDS = 6 * 3600
"""How long a deployed layer is used: the backup in it has to be younger than a day at the end of the tests."""


@contextmanager
def deployed_layer(suite: str) -> Iterator[Path]:
    """Give what a deploy with molecule's variables adds to the tree of a suite; made first for a new release.

    Nobody deletes it before the block ends, and nobody while it is mounted.
    """
    digest = hashlib.sha256()
    for part in RELEASE:
        for each in sorted([ROOT / part, *(ROOT / part).rglob("*")]):
            if each.is_file() and "__pycache__" not in each.parts:
                digest.update(f"{each.relative_to(ROOT)} {hashlib.sha256(each.read_bytes()).hexdigest()}".encode())
    begun = int(time.time())
    wanted = f"{suite}-{digest.hexdigest()[:12]}"
    with locked(f"deployed-{CHECKOUT}-{suite}"):
        kept = {each: int(each.name.rpartition("-")[2]) for each in LAYERS.glob(f"{wanted}-*")}
        young = [each for each, made in kept.items() if begun - made < LAYER_SECONDS]
        if not young:
            _delete_layers(suite)
            young = [LAYERS / f"{wanted}-{begun}"]
            _make_layer(suite, young[0])
        yield max(young)


def _delete_layers(suite: str) -> None:
    """Delete the deployed layers of a suite that no host stands on; only under the lock of the suite."""
    mounts = Path("/proc/mounts").read_text()
    for each in LAYERS.glob(f"{suite}-*"):
        if str(each) not in mounts:
            shutil.rmtree(each)


def _make_layer(suite: str, target: Path) -> None:
    name = f"deployed-{suite}"
    say(f"deploying to a host of Debian {suite} (once per release, about 25 s)")
    # One that is there was left by a deploy that was killed.
    destroy(name)
    try:
        create(name, suite)
        _deploy(name)
        if not _stop(name):
            die(f"{name} did not shut down by itself", "run this again on a machine with less to do")
        # Empty, not absent: the next boot makes an identity of the host's own, and is not a first boot.
        (HOSTS / name / "root/etc/machine-id").write_text("")
        _unmount(name)
        target.parent.mkdir(parents=True, exist_ok=True)
        (HOSTS / name / "upper").rename(target)
    finally:
        destroy(name)


def _deploy(name: str) -> None:
    """Deploy the bundle to a host with the variables that molecule's scenarios share."""
    shared = yaml.safe_load((ROOT / ".config/molecule/config.yml").read_text())
    found = inventory([name])
    found["abathur"]["vars"] = shared["provisioner"]["inventory"]["group_vars"]["abathur"]
    hosts = HOSTS / name / "hosts.json"
    hosts.write_text(json.dumps(found))
    settings = {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "ABATHUR_FLEET_FILE": str(HOSTS / name / "fleet.json")}
    done = subprocess.run(
        [Path(sys.executable).with_name("ansible-playbook"), ROOT / "deploy.yml", "-i", hosts],
        cwd=ROOT,
        env={**os.environ, **settings},
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
    )
    if done.returncode != 0:
        die(f"the deploy to {name} failed: {done.stdout[-4000:]}{done.stderr[-2000:]}", "make the deploy work")


def _start(host: dict[str, Any]) -> None:
    """Boot a host that is made and does not run; note its process; return once it is up."""
    name = host["name"]
    home = HOSTS / name
    log = (home / "console.log").open("a")
    groups = control_groups(name)
    for group in groups:
        group.mkdir(exist_ok=True)

    def enter() -> None:
        for group in groups:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    say(f"booting {name} (Debian {host['suite']})")
    # The machine name carries the process id: names are one space for the whole machine.
    machine = f"{name}-{os.getpid()}"
    process = subprocess.Popen(
        ["systemd-nspawn", "-q", "-D", home / "root", "--boot", "--register=no", "--keep-unit", "-M", machine],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        start_new_session=True,
        preexec_fn=enter,  # noqa: PLW1509 - this program has one thread
    )
    host = {**host, "pid": process.pid, "started": started(process.pid)}
    (home / "host.json").write_text(json.dumps(host))
    deadline = time.monotonic() + BOOT_SECONDS
    while True:
        if process.poll() is not None:
            die(f"{name} ended with {process.returncode} while booting", "see the console above")
        command = [*ssh_command(host), "systemctl is-system-running || true"]
        probe = subprocess.run(command, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL)
        if probe.stdout.strip() in ("running", "degraded"):
            break
        if time.monotonic() > deadline:
            answer = probe.stdout.strip() or probe.stderr.strip() or "no answer"
            die(f"{name} did not come up in {BOOT_SECONDS} s: {answer}", "see the console above")
        time.sleep(0.3)


def reboot(name: str) -> None:
    """Reboot a host that runs; return once it is up again."""
    with locked(f"host-{CHECKOUT}-{name}"):
        host = state(name)
        if host is None or not alive(name):
            die(f"{name} does not run", f"make it: testhost.py create {name}")
        subprocess.run([*ssh_command(host), "systemctl reboot"], check=False, stdin=subprocess.DEVNULL)
        # systemd-nspawn ends at a reboot, for whoever runs it to start it again.
        deadline = time.monotonic() + BOOT_SECONDS
        while alive(name):
            if time.monotonic() > deadline:
                die(f"{name} did not go down in {BOOT_SECONDS} s", f"see {HOSTS / name / 'console.log'}")
            time.sleep(0.1)
        _start(host)


def _show_log(home: Path) -> None:
    log = home / "console.log"
    if log.exists():
        sys.stderr.write("".join(log.read_text(errors="replace").splitlines(keepends=True)[-30:]))


def destroy(name: str) -> bool:
    """Stop a host and delete all of it; return whether there was one."""
    with locked(f"host-{CHECKOUT}-{name}"):
        return _destroy(name)


def _destroy(name: str) -> bool:
    home = HOSTS / name
    if not home.exists():
        return False
    _stop(name)
    _unmount(name)
    remove_control_groups(name)
    shutil.rmtree(home)
    return True


def _stop(name: str) -> bool:
    """End a host that runs, as a shutdown does, and after half a minute at once; return whether it shut down."""
    host = state(name)
    if host is None:
        return True
    # systemd-nspawn(1): SIGTERM asks the system inside to power off.
    for sent, seconds in ((signal.SIGTERM, 30), (signal.SIGKILL, 10)):
        if not alive(name):
            return True
        os.kill(host["pid"], sent)
        deadline = time.monotonic() + seconds
        while alive(name) and time.monotonic() < deadline:
            time.sleep(0.05)
    return False


def _unmount(name: str) -> None:
    root = HOSTS / name / "root"
    for _ in range(50):
        if str(root) not in [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]:
            return
        subprocess.run(["umount", root], capture_output=True, check=False)
        time.sleep(0.1)
    die(f"{root} is still mounted", f"see who uses it: fuser -vm {root}; then run this again")


def destroy_all() -> bool:
    """Throw away all that this checkout keeps, its locks as well; return whether there was a host.

    A host that is made meanwhile stays, and what it stands on.
    """
    found = [name for name in names() if destroy(name)]
    for suite in SUITES:
        with locked(f"deployed-{CHECKOUT}-{suite}"):
            _delete_layers(suite)
    for folder in (HOSTS, LAYERS):
        # Not there, or not empty.
        with suppress(OSError):
            folder.rmdir()
    for lock in CACHE.glob(f"*-{CHECKOUT}-*.lock"):
        with locked(lock.stem):
            lock.unlink()
    return bool(found)


def names() -> list[str]:
    """Return the names of all hosts, running or not."""
    return sorted(path.name for path in HOSTS.iterdir()) if HOSTS.is_dir() else []


def inventory(wanted: list[str]) -> dict[str, Any]:
    """Return an Ansible inventory with the hosts in the group abathur."""
    hosts = {}
    for name in wanted:
        host = state(name)
        if host is None:
            die(f"there is no host {name}", f"make it: testhost.py create {name}")
        arguments = "-o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null -o LogLevel=ERROR"
        hosts[name] = {
            "ansible_host": "127.0.0.1",
            "ansible_port": host["port"],
            "ansible_user": "root",
            "ansible_ssh_private_key_file": host["key"],
            "ansible_ssh_common_args": arguments,
        }
    return {"abathur": {"hosts": hosts}}


def main() -> None:
    """Read the command line and do what it says."""
    parser = argparse.ArgumentParser(description="Makes and throws away real systemd hosts on this machine.")
    commands = parser.add_subparsers(dest="command", required=True)
    sub = commands.add_parser("create", help="boot hosts, unless they run already")
    sub.add_argument("names", nargs="+")
    sub.add_argument("--suite", choices=SUITES, default="trixie")
    sub.add_argument("--deployed", action="store_true", help="with the bundle deployed")
    sub = commands.add_parser("reboot", help="reboot hosts")
    sub.add_argument("names", nargs="+")
    sub = commands.add_parser("destroy", help="stop hosts and delete them")
    sub.add_argument("names", nargs="*")
    sub.add_argument("--all", action="store_true", help="all of this checkout, and the deployed layers it keeps")
    commands.add_parser("list", help="show the hosts")
    sub = commands.add_parser("inventory", help="print an Ansible inventory of the hosts as JSON")
    sub.add_argument("names", nargs="+")
    sub = commands.add_parser("ssh", help="log in to a host, or run a command on it")
    sub.add_argument("name")
    sub.add_argument("remote", nargs=argparse.REMAINDER)
    options = parser.parse_args()
    if os.geteuid() != 0:
        die("this needs root", f"sudo -E python3 {' '.join(sys.argv)}")
    if options.command == "create":
        changed = [name for name in options.names if create(name, options.suite, deployed=options.deployed)]
        print(json.dumps({"changed": bool(changed), "inventory": inventory(options.names)}))
    elif options.command == "reboot":
        for name in options.names:
            reboot(name)
    elif options.command == "destroy":
        gone = destroy_all() if options.all else sum(destroy(name) for name in options.names) > 0
        print(json.dumps({"changed": gone}))
    elif options.command == "list":
        print(json.dumps([{**(state(name) or {"name": name}), "running": alive(name)} for name in names()]))
    elif options.command == "inventory":
        print(json.dumps(inventory(options.names), indent=2))
    else:
        host = state(options.name)
        if host is None:
            die(f"there is no host {options.name}", f"make it: make deploy, or testhost.py create {options.name}")
        command = ssh_command(host)
        os.execvp("ssh", [*command, *options.remote])


if __name__ == "__main__":
    main()
