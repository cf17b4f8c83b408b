"""Replication to an SFTP server, and what is said of a wrong key and of a server that is another one."""

from __future__ import annotations

import json
import time
from typing import Any

from conftest import SECRET_FILE, acknowledged, arrived, hosts, lineage, proof, replication_alerts, wait


def test_an_sftp_server_is_a_place_for_a_replica_too(playbook: Any) -> None:
    host = hosts()[0]
    name = host.backend.get_hostname()
    key, server = (host.check_output(f"cat {path}") for path in ("/root/keeper", "/etc/ssh/sftp_host_key.pub"))
    port = host.check_output("grep -oP '^Port \\K.*' /etc/ssh/sftp_config")
    host.check_output("install -d -o abathur /var/lib/ledger && systemctl start abathur.service")
    variables = {
        "abathur_replication_enabled": True,
        "abathur_replication_url": f"sftp://keeper@127.0.0.1:{port}/replicas/{name}",
        "abathur_replication_credentials": f"{key}\n",
        "abathur_replication_host_key": " ".join(server.split()[:2]),
        # Each request is a connection.
        "abathur_replication_maximum_lag_seconds": 30,
    }
    done = playbook("deploy.yml", "-e", json.dumps(variables))
    assert done.returncode == 0, done.stdout
    assert proof(host)["data"]["url"] == variables["abathur_replication_url"]
    assert proof(host)["data"]["lineage"] == 1
    time.sleep(5)
    assert acknowledged(host) - arrived(host) == set()
    host.check_output("systemctl start abathur.service abathur-db@drill.service")
    assert "the replica of " in host.check_output("cat /var/lib/abathur-db/last/drill.json")
    # It asks for the key anew with each connection.
    host.check_output("ssh-keygen -q -t ed25519 -N '' -f /root/stranger")
    host.check_output(f"sh -c 'cat /root/stranger > {SECRET_FILE}' && systemctl restart abathur-db-replicate")
    assert wait(lambda: "the store refuses the credentials" in proof(host)["summary"]), proof(host)["summary"]
    assert wait(lambda: "the store refuses the credentials" in replication_alerts(host))
    host.check_output(f"sh -c 'cat /root/keeper > {SECRET_FILE}' && systemctl restart abathur-db-replicate")
    assert wait(lambda: proof(host)["ok"], 240), proof(host)["summary"]
    other = "mv /etc/ssh/sftp_host_key /root/former && ssh-keygen -q -t ed25519 -N '' -f /etc/ssh/sftp_host_key <<< y"
    host.check_output(f'bash -c "{other}" && systemctl restart sftp abathur-db-replicate')
    shown = "the server shows another host key than abathur_replication_host_key"
    assert wait(lambda: shown in proof(host)["summary"]), proof(host)["summary"]
    assert wait(lambda: shown in replication_alerts(host))
    host.check_output("mv /root/former /etc/ssh/sftp_host_key && systemctl restart sftp abathur-db-replicate")
    assert wait(lambda: proof(host)["ok"], 240), proof(host)["summary"]
    assert acknowledged(host) - arrived(host) == set()
    # At another place, and back, where its lineage is as it was: the next one is begun.
    elsewhere = {"abathur_replication_url": "file:///srv/replica", "abathur_replication_credentials": ""}
    assert playbook("deploy.yml", "-e", json.dumps(variables | elsewhere)).returncode == 0
    assert lineage(host) == 1
    assert playbook("deploy.yml", "-e", json.dumps(variables)).returncode == 0
    assert lineage(host) == 2
    assert wait(lambda: proof(host)["ok"], 240), proof(host)["summary"]
    host.check_output("systemctl stop abathur.service")
    # The application met no error.
    assert not host.file("/var/lib/ledger/errors").exists, host.file("/var/lib/ledger/errors").content_string
