"""Writes the README's generated parts anew: variables from the roles, commands from the tool, figures as measured.

Each part stands between <!-- name --> and <!-- /name -->; a test fails when the README is not up to date.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import yaml
from abathur_db import cli

from benchmarks import figures

ROOT = Path(__file__).resolve().parents[1]
README = ROOT / "README.md"


def variables() -> str:
    """Return a table per role: name, default, choices, meaning; from the defaults and the argument specs."""
    parts = []
    for role in sorted((ROOT / "roles").iterdir()):
        defaults = _yaml(role / "defaults/main.yml")
        entries = _yaml(role / "meta/argument_specs.yml")["argument_specs"]
        options = {name: option for entry in entries.values() for name, option in entry["options"].items()}
        lines = ["| Variable | Default | Meaning |", "| --- | --- | --- |"]
        for name, option in options.items():
            meaning = option["description"]
            if "choices" in option:
                meaning += f" One of: {', '.join(f'`{each}`' for each in option['choices'])}."
            lines.append(f"| `{name}` | {_default(defaults[name])} | {meaning} |")
        parts.append("\n".join([f"**{role.name}**", "", *lines]))
    return "\n\n".join(parts)


def commands() -> str:
    """Return the table of the tool's commands."""
    lines = ["| Command | What it does | Runs as | `--dry-run` |", "| --- | --- | --- | --- |"]
    for name, command in cli.COMMANDS.items():
        dry_run = "yes" if command.dry_run else ""
        lines.append(f"| `abathur-db {name}` | {command.help} | {command.runs_as} | {dry_run} |")
    return "\n".join(lines)


def measured() -> str:
    """Return the figures of `make bench`, a table per size of database or fleet, and what the work costs by size."""
    results = json.loads((ROOT / "benchmarks/results.json").read_text(encoding="utf-8"))
    parts = []
    for size, found in results.items():
        taken = [f"{name} {part['rounds']}" for name, part in found["parts"].items()]
        last = max(found["parts"].values(), key=lambda part: part["time"])
        parts.append(f"**{size}**, {last['machine']}, {last['time'][:10]}; rounds: {', '.join(taken)}.")
        parts.append(figures.table(figures.rows(found)))
        parts.append(f"![each figure as a share of its goal](docs/{figures.file(size)})")
    return "\n\n".join([*parts, _costs(results)])


def _costs(results: dict[str, Any]) -> str:
    """Return the seconds of each piece of work by size, of the run that had the most sizes."""
    costs: dict[str, dict[str, float]] = max(
        (found["seconds_by_gigabytes"] for found in results.values()), key=len, default={}
    )
    if not costs:
        return ""
    lines = ["| Seconds at | " + " | ".join(f"{size} GB" for size in costs) + " |", "| --- |" + " --- |" * len(costs)]
    for name in next(iter(costs.values())):
        lines.append(f"| {name} | " + " | ".join(f"{each[name]:.2f}" for each in costs.values()) + " |")
    return "\n".join(lines)


def render(text: str) -> str:
    """Return the README's text with every generated part written anew. Raises ValueError for an absent part."""
    for name, part in (("variables", variables()), ("commands", commands()), ("measured", measured())):
        begin, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        if begin not in text or end not in text:
            raise ValueError(f"README.md has no part <!-- {name} --> … <!-- /{name} -->")
        before, _, rest = text.partition(begin)
        text = f"{before}{begin}{part}\n{end}{rest.partition(end)[2]}"
    return text


def _yaml(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def _default(value: Any) -> str:
    if isinstance(value, dict):
        return "`{" + ", ".join(value) + "}`"
    text = value if isinstance(value, str) else json.dumps(value)
    return f"`{text}`" if "{{" not in text else "from the job table" if "keys()" in text else "`reports/`"


if __name__ == "__main__":
    README.write_text(render(README.read_text(encoding="utf-8")), encoding="utf-8")
