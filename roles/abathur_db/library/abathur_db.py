#!/usr/bin/python
"""Ansible module: runs one command of abathur-db and passes its JSON answer on."""

from __future__ import annotations

import json
import os

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

TOOL = "/usr/local/bin/abathur-db"
READ_ONLY = ("status", "validate")


def main() -> None:
    """Run the command and end as it ended."""
    module = AnsibleModule(
        argument_spec={
            "command": {"type": "str", "required": True},
            "arguments": {"type": "list", "elements": "str", "default": []},
        },
        supports_check_mode=True,
    )
    command = module.params["command"]
    if module.check_mode and not os.path.exists(TOOL):
        module.exit_json(changed=command not in READ_ONLY, msg=f"would run abathur-db {command}, once it is installed")
    arguments = [TOOL, command, "--json", *module.params["arguments"]]
    if module.check_mode and command not in READ_ONLY:
        arguments.append("--dry-run")
    code, output, errors = module.run_command(arguments)
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
