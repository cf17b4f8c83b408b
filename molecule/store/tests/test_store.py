"""A store that is killed, full, refuses the credentials or damages files: it is said, told, and nothing is lost."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.request import Request, urlopen

import pytest
from conftest import SECRET_FILE, acknowledged, arrived, lineage, proof, replication_alerts, wait

pytestmark = pytest.mark.usefixtures("at_work")

SECRET = "replica-5ec2e7"


def store_port(host: Any) -> int:
    """Return the port of the store's S3 interface."""
    endpoint = re.search(r"127\.0\.0\.1:(\d+)", host.check_output("cat /etc/abathur-db-replication.yml"))
    assert endpoint
    return int(endpoint[1])


def begin_store(host: Any) -> None:
    """Start the store, and wait until it answers: a proof that meets a store on its way up waits for half a minute."""
    host.check_output("systemctl start store.service")
    assert wait(lambda: host.run(f"bash -c 'exec 3<>/dev/tcp/127.0.0.1/{store_port(host)}'").rc == 0)


def drilled(host: Any) -> bool:
    """Drill the replica; tell whether it is whole; one that is not comes with the next step."""
    done = host.run("systemctl start abathur-db@drill.service").rc == 0
    told = json.loads(host.check_output("cat /var/lib/abathur-db/last/drill.json"))
    assert done == told["ok"]
    assert done or told["hint"].endswith("abathur-db promote --new-lineage"), told
    return done


def begin_anew(host: Any) -> None:
    former = lineage(host)
    told = host.run("abathur-db promote --new-lineage")
    assert told.rc == 0, told.stderr
    assert told.stdout.endswith(f"; its replication begins lineage {former + 1:04}\n"), told.stdout
    assert host.service("abathur.service").is_running
    assert wait(lambda: lineage(host) == former + 1)


def test_a_store_that_was_killed_and_is_back_gets_all_by_itself(host: Any) -> None:
    host.check_output("systemctl stop store.service")
    assert wait(lambda: not proof(host)["ok"])
    assert re.search(
        r"found the last change that arrived is \d+ s old: the store does not answer", proof(host)["summary"]
    )
    assert wait(lambda: "the store does not answer" in replication_alerts(host))
    told = host.run("abathur-db status").stdout
    assert "FAIL  job_replication" in told
    assert "the store does not answer" in told
    begin_store(host)
    assert wait(lambda: proof(host)["ok"], 240), proof(host)["summary"]
    assert acknowledged(host) - arrived(host) == set()


def test_wrong_credentials_are_said_and_right_ones_catch_up(host: Any) -> None:
    host.check_output(f"sed -i s/{SECRET}/wrong/ {SECRET_FILE} && systemctl restart abathur-db-replicate")
    assert wait(lambda: "the store refuses the credentials" in proof(host)["summary"]), proof(host)["summary"]
    assert wait(lambda: not proof(host)["ok"])
    assert wait(lambda: "the store refuses the credentials" in replication_alerts(host))
    host.check_output(f"sed -i s/wrong/{SECRET}/ {SECRET_FILE} && systemctl restart abathur-db-replicate")
    assert wait(lambda: proof(host)["ok"], 240), proof(host)["summary"]
    assert acknowledged(host) - arrived(host) == set()


def test_a_full_store_is_said_and_one_with_space_again_gets_all(host: Any) -> None:
    host.run("dd if=/dev/zero of=/srv/store/fill bs=1M")
    # What fits into the volumes that are there already still arrives.
    assert wait(lambda: not proof(host)["ok"], 240)
    assert "the store answers, but takes no change in time: it may be full" in proof(host)["summary"]
    assert wait(lambda: "it may be full" in replication_alerts(host))
    # Its own index takes nothing any more, once it met the full disk, until it is started anew.
    host.check_output("rm /srv/store/fill && systemctl stop store.service")
    begin_store(host)
    assert wait(lambda: proof(host)["ok"], 240), proof(host)["summary"]
    # A file that it had taken, or half refused, on the full disk it may not give back.
    if not drilled(host):
        begin_anew(host)
        assert drilled(host)
    assert acknowledged(host) - arrived(host) == set()


def test_files_that_the_store_has_damaged_are_told_by_the_drill_and_the_next_lineage_has_all(host: Any) -> None:
    assert drilled(host)
    filer = f"http://127.0.0.1:{store_port(host) - 1}"
    place = f"{filer}/buckets/abathur/{host.backend.get_hostname()}/{lineage(host):04}"

    def listed(folder: str) -> list[dict[str, Any]]:
        asked = Request(f"{folder}/?limit=10000", headers={"Accept": "application/json"})
        return list(json.load(urlopen(asked))["Entries"] or [])

    # Half a minute after its begin a lineage has files that were put together; those of minutes may not be there yet.
    assert wait(lambda: {"0001"} & {entry["FullPath"].rpartition("/")[2] for entry in listed(place)})
    for level in {"0001", "0002"} & {entry["FullPath"].rpartition("/")[2] for entry in listed(place)}:
        for entry in listed(f"{place}/{level}"):
            urlopen(Request(f"{filer}{entry['FullPath']}", data=b"short", method="PUT")).close()
    assert not drilled(host)
    begin_anew(host)
    assert drilled(host)
    assert acknowledged(host) - arrived(host) == set()
