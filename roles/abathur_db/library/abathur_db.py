#!/usr/bin/python
"""Ansible module: runs one command of abathur-db and passes its JSON answer on."""

from __future__ import annotations

import json
import zipfile

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: abathur_db
short_description: Runs a command of abathur-db
description:
  - Changed, failed and the message are those of the tool's JSON answer.
  - In check mode the command runs with --dry-run, or not at all where the tool is not installed yet.
options:
  command:
    description: The command, as on the command line.
    type: str
    required: true
  arguments:
    description: Further arguments, as on the command line.
    type: list
    elements: str
    default: []
  executable:
    description: The tool to run.
    type: path
    default: /usr/local/bin/abathur-db
  optional:
    description: Where the tool is not installed, say so (absent) instead of failing.
    type: bool
    default: false
  configuration:
    description: Text of the configuration, for a host whose file is not this deploy's yet.
    type: str
author:
  - Abathur Ops (@abathur-ops)
"""

EXAMPLES = r"""
- name: Back the database up
  abathur_db:
    command: backup
"""

RETURN = r"""
result:
  description: The JSON answer of the tool.
  returned: when the tool answered
  type: dict
"""

READ_ONLY = ("status", "validate", "backups", "preflight")


def main() -> None:
    """Run the command and end as it ended."""
    module = AnsibleModule(
        argument_spec={
            "command": {"type": "str", "required": True},
            "arguments": {"type": "list", "elements": "str", "default": []},
            "executable": {"type": "path", "default": "/usr/local/bin/abathur-db"},
            "optional": {"type": "bool", "default": False},
            "configuration": {"type": "str"},
        },
        supports_check_mode=True,
    )
    command = module.params["command"]
    tool = module.params["executable"]
    # A power cut during a deploy may have left the name alone, without what was not flushed.
    if not zipfile.is_zipfile(tool):
        if module.params["optional"]:
            module.exit_json(absent=True, msg=f"{tool} is not on this host, or not whole")
        if module.check_mode:
            changed = command not in READ_ONLY
            module.exit_json(changed=changed, msg=f"would run abathur-db {command}, once it is installed")
        module.fail_json(msg=f"{tool} is not on this host, or not whole. Next: ansible-playbook deploy.yml")
    arguments = [tool, command, "--json", *module.params["arguments"]]
    if module.check_mode and command not in READ_ONLY:
        arguments.append("--dry-run")
    environment = {"ABATHUR_DB_CONFIG": module.params["configuration"]} if module.params["configuration"] else {}
    code, output, errors = module.run_command(arguments, environ_update=environment)
    try:
        result = json.loads(output)
    except ValueError:
        module.fail_json(
            msg=f"abathur-db {command} gave no answer (exit code {code}). Run it on the host: abathur-db {command}",
            stdout=output,
            stderr=errors,
        )
    message = f"{result['summary']}. Next: {result['hint']}" if result["hint"] else result["summary"]
    finish = module.exit_json if result["ok"] else module.fail_json
    finish(changed=result["changed"], msg=message, result=result)


if __name__ == "__main__":
    main()
