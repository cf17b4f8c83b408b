"""The same state as ours, described for pyinfra; what there is comes from BENCH_STATE, a JSON file."""

import json
import os
from pathlib import Path

from pyinfra.operations import files, server, systemd

STATE = json.loads(Path(os.environ["BENCH_STATE"]).read_text())

server.group(group="abathur", system=True)
for user, home in {"abathur": "/var/lib/abathur", "abathur-backup": "/nonexistent"}.items():
    server.user(user=user, group="abathur", system=True, home=home, create_home=False, shell="/usr/sbin/nologin")
for each in STATE["directories"]:
    files.directory(path=each["path"], user=each["owner"], group=each["group"], mode=each["mode"])
for each in STATE["placed"]:
    source = f"{STATE['files']}/{each['path']}"
    files.put(src=source, dest=each["path"], user="root", group=each["group"], mode=each["mode"])
for each in STATE["links"]:
    files.link(path=each["path"], target=each["src"])
for each in STATE["timers"] if os.environ.get("BENCH_TIMERS") else []:
    systemd.service(service=each, running=True, enabled=True)
if os.environ.get("BENCH_TIMERS"):
    server.shell(commands=["/usr/local/bin/abathur-db status --json >/dev/null"])
