#!/usr/bin/python
"""Ansible module: a set of unit files and timers in one call, instead of a call for each."""

from __future__ import annotations

import fnmatch
import os
import re
import shutil
import tempfile
from typing import Any

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: abathur_units
short_description: Places a set of unit files, removes what left it, and runs timers
description:
  - Takes the same description of a host as the drift check of abathur-db preflight.
  - A module call costs about a second on a host, whatever it does; a first deploy has some twenty files and timers.
  - A unit that is removed and can be enabled is stopped and disabled first.
  - systemd reads the units anew when one of them changed.
  - Then what still runs of a removed unit is stopped, and that it failed is forgotten.
options:
  directories:
    description: Directories with path, owner, group and mode.
    type: list
    elements: dict
    default: []
  files:
    description: Files with path, owner, group, mode, and content; what has none is taken from secrets, by its name.
    type: list
    elements: dict
    default: []
  secrets:
    description: Contents that are not to be shown, by file name.
    type: dict
    default: {}
  only:
    description:
      - Directories with the patterns of which no other names may be there.
      - With a mark, a regular expression, files that have it in them alone; others are somebody else's.
      - Where a directory is a user's, who could swap what is in it, they are removed as that user.
    type: list
    elements: dict
    default: []
  timers:
    description: Timers that are to be enabled and running.
    type: list
    elements: str
    default: []
  services:
    description: Services that run with what is placed here; stopped before anything is, enabled and started at the end.
    type: list
    elements: str
    default: []
author:
  - Abathur Ops (@abathur-ops)
"""

EXAMPLES = r"""
- name: Run the timer of the backup
  abathur_units:
    timers: [abathur-db@backup.timer]
"""

RETURN = r"""
actions:
  description: What was done, a sentence each.
  returned: always
  type: list
  elements: str
"""


class Units:
    """One call of the module: what it did, and what it would show with --diff."""

    def __init__(self, module: AnsibleModule) -> None:
        """Begin with nothing done."""
        self.module = module
        self.actions: list[str] = []
        self.diff: list[dict[str, str]] = []
        self.removed: list[str] = []

    def systemctl(self, *arguments: str) -> list[str]:
        """Run systemctl; return its lines. Ends the module with systemctl's own words when it fails."""
        _, output, _ = self.module.run_command(["systemctl", *arguments], check_rc=True)
        return list(output.splitlines())

    def does(self, action: str) -> bool:
        """Note an action; return whether to take it, which check mode does not."""
        self.actions.append(action)
        return not self.module.check_mode

    def attributes(self, wanted: dict[str, str]) -> None:
        """Set owner, group and mode of what is there."""
        arguments = self.module.load_file_common_arguments(wanted, path=wanted["path"])
        if os.path.lexists(wanted["path"]) and self.module.set_fs_attributes_if_different(arguments, False):
            self.actions.append(f"owner, group or mode of {wanted['path']}")

    def directory(self, wanted: dict[str, str]) -> None:
        """Make a directory."""
        if not os.path.isdir(wanted["path"]) and self.does(f"made {wanted['path']}"):
            os.mkdir(wanted["path"], 0o700)
        self.attributes(wanted)

    def file(self, wanted: dict[str, str]) -> None:
        """Write a file when its content differs, whole and renamed into place."""
        path = wanted["path"]
        secret = "content" not in wanted
        content = self.module.params["secrets"][os.path.basename(path)] if secret else wanted["content"]
        before = None
        if os.path.isfile(path) and not os.path.islink(path):
            with open(path, encoding="utf-8", errors="replace") as stream:
                before = stream.read()
        if before != content:
            if not secret:
                header = {"before_header": path, "after_header": path}
                self.diff.append({**header, "before": before or "", "after": content})
            if self.does(f"wrote {path}"):
                with tempfile.NamedTemporaryFile("w", encoding="utf-8", dir=self.module.tmpdir, delete=False) as new:
                    new.write(content)
                self.module.atomic_move(new.name, path)
        self.attributes(wanted)

    def only(self, wanted: dict[str, Any]) -> None:
        """Remove what matches a pattern and is not named."""
        home = str(wanted["directory"])
        names = os.listdir(home) if os.path.isdir(home) else []
        matching = [name for name in names if any(fnmatch.fnmatch(name, each) for each in wanted["patterns"])]
        for name in sorted(set(matching) - set(wanted["names"])):
            path = f"{home}/{name}"
            if self.has(path, wanted.get("mark", "")) and self.does(f"removed {path}"):
                if path.endswith((".timer", ".service")) and self.has(path, r"^\[Install\]$"):
                    self.systemctl("disable", "--now", name)
                if user := wanted.get("user"):
                    self.module.run_command(["runuser", "-u", user, "--", "rm", "-rf", "--", path], check_rc=True)
                elif os.path.isdir(path) and not os.path.islink(path):
                    shutil.rmtree(path)
                else:
                    os.unlink(path)
                self.removed.append(name)

    @staticmethod
    def has(path: str, pattern: str) -> bool:
        """Tell whether a file has a line in it; whatever is there, for no pattern."""
        if not pattern:
            return True
        if not os.path.isfile(path):
            return False
        with open(path, encoding="utf-8", errors="replace") as stream:
            return bool(re.search(pattern, stream.read(), re.MULTILINE))

    def reload(self) -> None:
        """Let systemd read the units anew after a change."""
        if self.actions and not self.module.check_mode:
            self.systemctl("daemon-reload")

    def forget(self) -> None:
        """Stop what still runs of removed units and forget their failures; without their files nobody is alerted."""
        units = [name for name in self.removed if name.endswith((".timer", ".service"))]
        # Patterns, which may match nothing: the name of a unit that is not loaded would be an error.
        patterns = [f"[{name[0]}]{name[1:].replace('@.', '@*.')}" for name in units]
        if patterns:
            self.systemctl("stop", *patterns)
            self.systemctl("reset-failed", *patterns)

    def stop(self, names: list[str]) -> None:
        """Stop services before what they run with changes: a deploy that is cut leaves them stopped, which is seen."""
        there = [name for name in names if os.path.exists(f"/etc/systemd/system/{name}")]
        if there and not self.module.check_mode:
            self.systemctl("stop", *there)

    def run(self, names: list[str]) -> None:
        """Enable and start the timers and services that are not, as their files are now."""
        properties = "Id,ActiveState,UnitFileState,NeedDaemonReload"
        blocks = "\n".join(self.systemctl("show", *names, "--property", properties)).split("\n\n")
        shown = [dict(line.split("=", 1) for line in block.splitlines()) for block in blocks]
        if any(each["NeedDaemonReload"] == "yes" for each in shown) and self.does("let systemd read the units anew"):
            self.systemctl("daemon-reload")
        idle = [each["Id"] for each in shown if (each["ActiveState"], each["UnitFileState"]) != ("active", "enabled")]
        if idle and self.does(f"enabled and started {', '.join(idle)}"):
            self.systemctl("enable", "--now", *idle)


def main() -> None:
    """Bring the units about."""
    lists = {name: {"type": "list", "elements": "dict", "default": []} for name in ("directories", "files", "only")}
    module = AnsibleModule(
        argument_spec={
            **lists,
            "timers": {"type": "list", "elements": "str", "default": []},
            "services": {"type": "list", "elements": "str", "default": []},
            "secrets": {"type": "dict", "default": {}, "no_log": True},
        },
        supports_check_mode=True,
    )
    units = Units(module)
    units.stop(module.params["services"])
    for kind, bring in {"directories": units.directory, "files": units.file, "only": units.only}.items():
        for wanted in module.params[kind]:
            bring(wanted)
    units.reload()
    units.forget()
    if names := module.params["timers"] + module.params["services"]:
        units.run(names)
    module.exit_json(changed=bool(units.actions), actions=units.actions, diff=units.diff)


if __name__ == "__main__":
    main()
