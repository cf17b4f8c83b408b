"""Ansible callback: one summary of all hosts at the end of a deploy or a rollback that went in batches."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from ansible import context
from ansible.plugins.callback import CallbackBase

DOCUMENTATION = r"""
name: abathur_fleet
type: aggregate
short_description: Sums up what came of each host
description:
  - Says of each host what was done and at which release it is, or why it failed, or that it was not begun.
  - A callback, because a task cannot tell of hosts that no task reached, and no play follows one that was stopped.
  - What there is to sum up is told by set_stats, under abathur_fleet - which hosts by the run, what was done by each.
options:
  file:
    description: Where the summary goes as JSON, but for one of check mode.
    type: path
    env:
      - {name: ABATHUR_FLEET_FILE}
    ini:
      - {section: callback_abathur_fleet, key: file}
"""

NOT_BEGUN, FAILED = "not begun", "failed"


def sentence(result: dict[str, Any]) -> str:
    """Return why a task failed: its message, of a loop those of the items that failed, of a list the first and last."""
    failed = [each for each in result.get("results") or [] if each.get("failed")]
    found = [each.get("msg") for each in failed] or result.get("msg") or "it gave no reason"
    if isinstance(found, list):
        lines = [sentence({"msg": each}) for each in found]
        found = "; ".join(dict.fromkeys([lines[0], lines[-1]]))
    return " ".join(str(found).split())


class CallbackModule(CallbackBase):
    """Remembers why hosts failed, and writes the summary."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "aggregate"
    CALLBACK_NAME = "abathur_fleet"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        """Begin with no failure."""
        super().__init__()
        self.reasons: dict[str, str] = {}
        self.unreached: set[str] = set()

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """Remember the last failure of a host: after a rescue it is the one that says what was done about it."""
        if not ignore_errors:
            self._remember(result)

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """Remember that a host did not answer."""
        self.unreached.add(self._remember(result))

    def _remember(self, result: Any) -> str:
        # Before ansible-core 2.19 what is public now had an underscore.
        host, found = (getattr(result, name if hasattr(result, name) else f"_{name}") for name in ("host", "result"))
        self.reasons[host.name] = sentence(found)
        return str(host.name)

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """Write the summary, the failed hosts last, where the eye is."""
        run = stats.custom.get("_run", {}).get("abathur_fleet")
        if run is None:
            return
        rows = [self._row(stats, name) for name in run["hosts"]]
        self._show(sorted(rows, key=_order))
        for each in run.get("unknown", []):
            self._display.warning(each)
        file = self.get_option("file")
        if file and not context.CLIARGS["check"]:
            try:
                Path(file).parent.mkdir(exist_ok=True)
                Path(file).write_text(json.dumps(rows, indent=2) + "\n", encoding="utf-8")
            except OSError as error:
                another = "Next: ABATHUR_FLEET_FILE=PATH names another"
                self._display.warning(f"the summary was not written to {file}: {error.strerror}. {another}")

    def _show(self, rows: list[dict[str, str]]) -> None:
        """Print a line per host, and how many there are of each state."""
        host, state = (max(len(row[column]) for row in rows) for column in ("host", "state"))
        self._display.banner("FLEET")
        for row in rows:
            line = f"{row['host']:{host}}  {row['state']:{state}}  {row['reason'] or _release(row)}"
            self._display.display(line.rstrip(), color=_color(row["state"]))
        counts = Counter(row["state"] for row in rows)
        hosts = f"{len(rows)} host{'' if len(rows) == 1 else 's'}"
        self._display.display(f"{hosts}: " + ", ".join(f"{count} {name}" for name, count in counts.items()))

    def _row(self, stats: Any, name: str) -> dict[str, str]:
        """Return what came of a host."""
        counts = stats.summarize(name)
        done = stats.custom.get(name, {}).get("abathur_fleet", {})
        row = {"host": name, "state": NOT_BEGUN, "release": done.get("release") or "", "reason": done.get("reason", "")}
        # One that was passed over is counted by nobody else.
        if counts["failures"] or counts["unreachable"] or name in self.unreached:
            row |= {"state": FAILED, "reason": self.reasons.get(name, "")}
        elif done:
            row["state"] = done["state"] if counts["changed"] else "unchanged"
        if context.CLIARGS["check"] and row["state"] == done.get("state"):
            row["state"] = f"would be {row['state']}"
        return row


def _release(row: dict[str, str]) -> str:
    return f"release {row['release']}" if row["release"] else ""


def _order(row: dict[str, str]) -> tuple[bool, bool]:
    return row["state"] == FAILED, row["state"] == NOT_BEGUN


def _color(state: str) -> str:
    return {FAILED: "red", NOT_BEGUN: "yellow"}.get(state, "green")
