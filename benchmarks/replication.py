"""Replication and failover beside Litestream used by hand: on a primary, a standby, and a host with an S3 store."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import testhost

from benchmarks import fleet
from benchmarks.figures import Figure
from benchmarks.load import ROOT
from benchmarks.rows import settle

NAMES = STORE, PRIMARY, STANDBY = ("bench-store", "bench-primary", "bench-standby")
BIN = ROOT / ".venv/bin"
SCENARIO = ROOT / "molecule/failover"
"""Its store, and its application that commits 100 times a second, are ours."""

PORT = 20_800
"""Of the store's first service, of four; each has another one 10000 above. Hosts share the machine's network."""

SECRET = {"aws_access_key_id": "replica-id", "aws_secret_access_key": "replica-5ec2e7"}
"""Of the store, which molecule/resources/tasks/store.yml makes."""

WINDOWS, WINDOW_SECONDS = 7, 10
"""In which the writer is looked at in each state: for longer than our job `replication` takes to come round."""

KILLS = 20
REST_SECONDS = 1.2
"""After each killed writer, so that Litestream has looked at what it left before another one puts that right."""

ARRIVE_SECONDS = 10
"""What Litestream by hand gets to send the rest after the last killed writer; ours proves that it has."""

DATABASE, LEDGER = "var/lib/abathur/abathur.db", "var/lib/ledger/acknowledged"
HAND, OURS = "litestream by hand", "ours"
IDENTITIES = "SELECT id FROM sessions WHERE app_name = 'app'"


class Hosts:
    """The three hosts and what is done to them."""

    def __init__(self, home: Path, source: Path) -> None:
        """Take a folder for what is generated, and the database that is replicated."""
        self.home, self.source = home, source
        self.inventory = home / "inventory.json"

    def root(self, name: str) -> Path:
        """Return where the files of a host are; they are there until it is destroyed, also when it is dead."""
        return testhost.HOSTS / name / "root"

    def remote(self, name: str, command: str) -> str:
        """Run a command on a host and return its output."""
        host = testhost.state(name) or {}
        return self._run([*testhost.ssh_command(host), command])

    def play(self, playbook: Path, *arguments: str) -> None:
        """Run a playbook."""
        self._run([BIN / "ansible-playbook", playbook, "-i", self.inventory, *arguments])

    def litestream(self, *arguments: str | Path) -> str:
        """Run Litestream here, with the store's secret."""
        # Of the environment no more than that: AWS_CA_BUNDLE, for one, would break it.
        return self._run([BIN / "litestream", *arguments], {name.upper(): value for name, value in SECRET.items()})

    def copied(self, place: str) -> bool:
        """Tell whether anything is at a place in the store; ends the bench when the store does not answer."""
        return bool(json.loads(self.litestream("ltx", "-level", "all", "-json", url(place)) or "[]"))

    def _run(self, command: list[Any], environment: dict[str, str] | None = None) -> str:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"bench: {shlex.join(map(str, command))} failed:\n{done.stdout[-5000:]}{done.stderr[-2000:]}")
        return done.stdout

    def fresh(self, limit: str) -> None:
        """Make the primary anew, and deploy; the replication, the jobs and the application are stopped then."""
        testhost.destroy(PRIMARY)
        testhost.create(PRIMARY, "trixie")
        found = testhost.inventory([PRIMARY, STANDBY])
        found["abathur"]["vars"] = {
            "abathur_replication_enabled": True,
            "abathur_replication_url": url("memory"),
            "abathur_replication_credentials": "\n".join(["[default]", *(f"{k} = {v}" for k, v in SECRET.items())]),
            "abathur_db_application_units": ["abathur.service"],
            **fleet.VARIABLES,
        }
        found["abathur_standby"] = {"hosts": {STANDBY: {}}}
        found["store"] = {
            "hosts": testhost.inventory([STORE])["abathur"]["hosts"],
            # Of 64 MB: a first copy for each way and round, and what Litestream makes of them meanwhile.
            "vars": {"store_port": PORT, "store_volumes": 100 + 10 * self.source.stat().st_size // 64_000_000},
        }
        # The store and the standby are made once.
        new = PRIMARY if self.inventory.exists() else "all"
        self.inventory.write_text(json.dumps(found))
        self.play(SCENARIO / "prepare.yml", "--limit", new)
        self.play(ROOT / "deploy.yml", "--limit", f"localhost,{limit}")
        self.remote(PRIMARY, "systemctl stop 'abathur-db@*.timer' abathur-db-replicate.service abathur.service")
        self.remote(PRIMARY, "install -d -o abathur /var/lib/ledger")

    def replace(self) -> None:
        """Put the database that is replicated into the place of the one that the deploy made."""
        path = self.root(PRIMARY) / DATABASE
        former = path.stat()
        # Absent where Litestream has not run yet.
        shutil.rmtree(path.with_name(f".{path.name}-litestream"), ignore_errors=True)
        for each in path.parent.glob(f"{path.name}-*"):
            each.unlink()
        new = path.with_suffix(".new")
        shutil.copyfile(self.source, new)
        os.chown(new, former.st_uid, former.st_gid)
        new.chmod(former.st_mode & 0o777)
        new.rename(path)
        settle()

    def ledger(self, since: float = 0) -> dict[str, tuple[float, float]]:
        """Return what the writer was told is committed: when, and after how many ms; since a moment."""
        lines = [each.split() for each in (self.root(PRIMARY) / LEDGER).read_text().splitlines()]
        found = {each[1]: (float(each[0]), float(each[2])) for each in lines if len(each) == 3}
        return {name: each for name, each in found.items() if each[0] >= since}

    def waits(self) -> dict[str, float]:
        """Return what a commit of the writer that runs now takes, in µs: of windows, the middle one's.

        A neighbour's burst on the machine is in some of them.
        """
        time.sleep(2)
        begun = time.time()
        time.sleep(WINDOWS * WINDOW_SECONDS)
        windows: list[list[float]] = [[] for _ in range(WINDOWS + 1)]
        for moment, waited in self.ledger(begun).values():
            windows[int((moment - begun) / WINDOW_SECONDS)].append(waited * 1000)
        ordered = [sorted(each) for each in windows[:WINDOWS]]
        return {f"p{part}": statistics.median(each[len(each) * part // 100] for each in ordered) for part in (50, 99)}

    def kill_writers(self) -> None:
        """Kill writers while they commit, one after the other."""
        command = f"python3 /opt/writers.py /{DATABASE} 1 0 --held --ledger /var/lib/ledger"
        # Without --foreground, which would leave the process alone that the program starts.
        killed = f"timeout -s KILL 0.$(shuf -i 300-999 -n 1) {command}"
        self.remote(
            PRIMARY, f"for each in $(seq {KILLS}); do runuser -u abathur -- {killed}; sleep {REST_SECONDS}; done; true"
        )

    def kill_primary(self) -> float:
        """Kill the primary with all its processes; return when."""
        groups = testhost.control_groups(PRIMARY)
        moment = time.time()
        while running := {pid for group in groups for each in group.rglob("cgroup.procs") for pid in _listed(each)}:
            for pid in running:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        return moment


def _listed(path: Path) -> list[int]:
    """Return the processes that a control group lists, none when it is gone."""
    try:
        return [int(each) for each in path.read_text().split()]
    except OSError:
        return []


def url(place: str) -> str:
    """Return the address of a place in the store."""
    return f"s3://abathur/{place}?endpoint=http://127.0.0.1:{PORT + 3}&region=none"


class Hand:
    """Litestream as one uses it by hand: a command, and a restore."""

    name, hosts_wanted = HAND, PRIMARY

    def __init__(self, hosts: Hosts) -> None:
        """Take the hosts."""
        self.hosts, self.place = hosts, ""

    def start(self, *, replaced: bool) -> None:
        """Begin to replicate to a place of its own, whatever the database is."""
        self.place = f"by-hand/{time.time_ns()}{'-replaced' if replaced else ''}"
        secret = " ".join(f"-E {name.upper()}={value}" for name, value in SECRET.items())
        program = f"$(echo /opt/abathur-db/litestream-*) replicate /{DATABASE} '{url(self.place)}'"
        self.hosts.remote(PRIMARY, f"systemd-run -q --unit=by-hand --uid=abathur {secret} {program}")

    def follow(self) -> None:
        """Have no standby."""

    def stop(self) -> None:
        """Stop once all is sent."""
        time.sleep(ARRIVE_SECONDS)
        self.hosts.remote(PRIMARY, "systemctl stop by-hand.service")

    def recover(self) -> tuple[float, set[str]]:
        """Restore, and check; return the seconds, and the rows of the writer."""
        begun = time.monotonic()
        problem, have = restored(self.hosts, self.place)
        if problem:
            sys.exit(f"bench: the replica of {self.name} is broken: {problem}")
        return time.monotonic() - begun, have


class Ours:
    """Our service, the job that proves it, a standby, and the playbook of the failover."""

    name, hosts_wanted = OURS, "abathur"

    def __init__(self, hosts: Hosts) -> None:
        """Take the hosts."""
        self.hosts, self.place = hosts, ""

    def start(self, *, replaced: bool) -> None:
        """Begin to replicate; to the next lineage, when the database was replaced."""
        state = self.hosts.root(PRIMARY) / "var/lib/abathur-db/replication/lineage.json"
        number = json.loads(state.read_text())["lineage"] + replaced
        self.place = f"memory/{number:04}"
        self.hosts.remote(PRIMARY, "systemctl start abathur-db-replicate.service abathur-db@replication.timer")

    def follow(self) -> None:
        """Wait until the standby has all of the replica."""
        number = int(self.place[-4:])
        record = self.hosts.root(STANDBY) / "var/lib/abathur-db/last/replication.json"
        while True:
            self.hosts.remote(STANDBY, "systemctl start abathur-db@replication.service; true")
            found = json.loads(record.read_text())
            if found["ok"] and found["data"]["lineage"] == number:
                return

    def stop(self) -> None:
        """Stop once all is proven to be sent."""
        self.hosts.remote(PRIMARY, "systemctl start abathur-db@replication.service")
        self.hosts.remote(PRIMARY, "systemctl stop abathur-db@replication.timer abathur-db-replicate.service")

    def recover(self) -> tuple[float, set[str]]:
        """Fail over; return the seconds until the application runs on the standby, and the rows of the writer."""
        begun = time.monotonic()
        self.hosts.play(ROOT / "playbooks/failover.yml", "-e", "abathur_db_failover_primary_is_dead=true")
        # The hosts and this program have one kernel, so one clock.
        asked = "systemctl show --value -p ActiveEnterTimestampMonotonic abathur.service"
        seconds = int(self.hosts.remote(STANDBY, asked)) / 1e6 - begun
        self.hosts.remote(STANDBY, "systemctl stop abathur.service")
        return seconds, set(read(self.hosts.root(STANDBY) / DATABASE, IDENTITIES))


def read(path: Path, query: str) -> list[str]:
    """Return the first column of a query's rows."""
    connection = sqlite3.connect(path)
    try:
        return [row[0] for row in connection.execute(query)]
    finally:
        connection.close()


def restored(hosts: Hosts, place: str) -> tuple[str, set[str]]:
    """Restore a replica with Litestream, and check it; return what is wrong, if anything, and the writer's rows."""
    path = hosts.home / "restored.db"
    path.unlink(missing_ok=True)
    if not hosts.copied(place):
        return "there is none", set()
    try:
        hosts.litestream("restore", "-o", path, url(place))
        if (found := read(path, "PRAGMA integrity_check(3)")) != ["ok"]:
            return "; ".join(found), set()
        return "", set(read(path, IDENTITIES))
    except (SystemExit, sqlite3.DatabaseError) as error:
        return str(error), set()


def one(way: Hand | Ours, say: Callable[[str], None]) -> dict[str, float]:
    """Measure one way once: killed writers, the writer without and with it, the first copy, and the primary's end."""
    hosts, found = way.hosts, {}
    say(f"{way.name}: hosts")
    hosts.fresh(way.hosts_wanted)
    say(f"{way.name}: {KILLS} killed writers")
    way.start(replaced=False)
    hosts.kill_writers()
    way.stop()
    problem, have = restored(hosts, way.place)
    lost = hosts.ledger().keys() - have
    say(f"{way.name}: after killed writers: {len(lost)} of {len(hosts.ledger())} rows lost; {problem or 'sound'}")
    found["broken"], found["rows lost to kills"] = float(bool(problem)), float(len(lost))
    say(f"{way.name}: the writer without")
    hosts.replace()
    (hosts.root(PRIMARY) / LEDGER).unlink()
    hosts.remote(PRIMARY, "systemctl start abathur.service")
    found |= {f"without {name}": value for name, value in hosts.waits().items()}
    hosts.remote(PRIMARY, "systemctl stop abathur.service")
    settle()
    say(f"{way.name}: the first copy")
    begun = time.monotonic()
    way.start(replaced=True)
    while not hosts.copied(way.place):
        time.sleep(0.2)
    found["first copy"] = time.monotonic() - begun
    way.follow()
    settle()
    say(f"{way.name}: the writer with it")
    hosts.remote(PRIMARY, "systemctl start abathur.service")
    found |= hosts.waits()
    say(f"{way.name}: the end of the primary")
    killed = hosts.kill_primary()
    found["recovery time"], have = way.recover()
    ages = [killed - moment for name, (moment, _) in hosts.ledger().items() if name not in have]
    found["recovery point"], found["rows lost"] = max([0.0, *ages]), float(len(ages))
    say(f"{way.name}: {json.dumps(found)}")
    return found


def measure(source: Path, home: Path, rounds: int, say: Callable[[str], None]) -> list[Figure]:
    """Measure both ways in turn, on hosts that are made for it and thrown away."""
    hosts = Hosts(home, source)
    for name in NAMES:
        testhost.destroy(name)
    with fleet.booted(list(NAMES)):
        runs = [{each.name: one(each(hosts), say) for each in (Hand, Ours)} for _ in range(rounds)]

    def middle(way: str, name: str) -> float:
        return statistics.median(each[way][name] for each in runs)

    def figure(group: str, name: str, unit: str, what: str, limit: float | None = None) -> Figure:
        return Figure(group, name, unit, middle(OURS, what), {HAND: middle(HAND, what)}, "", limit)

    def commit(part: str, limit: float | None = None) -> Figure:
        # Beside what it took without on the same host, just before.
        peers: dict[str, float | None] = {"without": middle(OURS, f"without {part}")}
        peers |= {HAND: middle(HAND, part), f"without, before {HAND}": middle(HAND, f"without {part}")}
        return Figure("replication", f"a commit's {part}", "µs", middle(OURS, part), peers, "without", limit)

    return [
        commit("p50"),
        commit("p99", 2),
        figure("replication", "the first copy", "s", "first copy"),
        Figure(
            "replication",
            f"broken replicas after {KILLS} killed writers, of {rounds}",
            "replicas",
            sum(each[OURS]["broken"] for each in runs),
            {HAND: sum(each[HAND]["broken"] for each in runs)},
        ),
        figure("replication", f"rows missing after {KILLS} killed writers", "rows", "rows lost to kills"),
        figure("failover", "recovery point", "s", "recovery point", 1),
        figure("failover", "acknowledged rows lost", "rows", "rows lost"),
        figure("failover", "recovery time, fully checked", "s", "recovery time", 30),
    ]
