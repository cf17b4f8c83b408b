"""The same state as ours, described for pyinfra; what there is comes from BENCH_STATE, a JSON file."""

import json
import os
from pathlib import Path

from pyinfra.operations import files, server, systemd

STATE = json.loads(Path(os.environ["BENCH_STATE"]).read_text())

server.group(group="abathur", system=True)
server.user(
    user="abathur", group="abathur", system=True, home="/var/lib/abathur", create_home=False, shell="/usr/sbin/nologin"
)
for each in STATE["directories"]:
    files.directory(path=each["path"], user=each["owner"], group=each["owner"], mode=each["mode"])
for each in STATE["placed"]:
    source = f"{STATE['files']}/{each['path']}"
    files.put(src=source, dest=each["path"], user="root", group=each["group"], mode=each["mode"])
for each in STATE["links"]:
    files.link(path=each["path"], target=each["src"])
for each in STATE["timers"] if os.environ.get("BENCH_TIMERS") else []:
    systemd.service(service=each, running=True, enabled=True)
if os.environ.get("BENCH_TIMERS"):
    server.shell(commands=["/usr/local/bin/abathur-db status --json >/dev/null"])
