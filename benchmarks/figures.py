"""What a measurement says: ours, each peer, their ratio, the goal, reached or not; as table, JSON and chart."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pygal import HorizontalBar  # type: ignore[import-untyped]  # pygal has no types
from pygal.style import CleanStyle  # type: ignore[import-untyped]  # pygal has no types

UNITS = {
    "s": "{:.2f} s",
    "ms": "{:.0f} ms",
    "µs": "{:.0f} µs",
    "MB": "{:.0f} MB",
    "/s": "{:.0f}/s",
    "rows": "{:.0f} rows",
    "replicas": "{:.0f}",
    "": "{:.2f}",
}


@dataclass
class Figure:
    """One line of the table.

    `peers`: their values in the same unit, None for one that did not end. `to`: the peer that `limit` is a
    ratio to, empty when `limit` is a value of ours. `errors`: what the writer saw fail, ours and each peer's.
    """

    group: str
    name: str
    unit: str
    ours: float
    peers: dict[str, float | None] = field(default_factory=dict)
    to: str = ""
    limit: float | None = None
    errors: dict[str, int] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        """Ours to the peer that the goal names, else to the first one."""
        name = self.to or next(iter(self.peers), "")
        value = self.peers.get(name)
        return self.ours / value if value else None

    @property
    def reached(self) -> bool | None:
        """Whether the goal is reached; None without a goal."""
        if self.limit is None:
            return None
        return self.share is not None and self.share <= 1 and not self.errors.get("ours", 0)

    @property
    def share(self) -> float | None:
        """What was measured as a share of the goal: up to 1 it is reached. None without a goal."""
        value = self.ratio if self.to else self.ours
        return value / self.limit if self.limit and value is not None else None

    @property
    def goal(self) -> str:
        """The goal in words."""
        if self.limit is None:
            return ""
        return f"at most {self.limit:g} of {self.to}" if self.to else f"at most {self.limit:g} {self.unit}".strip()

    def as_dict(self) -> dict[str, Any]:
        """Return what stands in results.json."""
        return {
            "group": self.group,
            "name": self.name,
            "unit": self.unit,
            "ours": self.ours,
            "peers": self.peers,
            "ratio": self.ratio,
            "goal": self.goal,
            "share": self.share,
            "reached": self.reached,
            "errors": self.errors,
        }


def shown(value: float | None, unit: str, errors: int = 0) -> str:
    """Return a value as the table shows it."""
    text = "does not end" if value is None else UNITS[unit].format(value)
    return f"{text}, {errors} errors" if errors else text


def table(found: list[dict[str, Any]]) -> str:
    """Return figures, as results.json holds them, as a Markdown table."""
    lines = ["| What | Ours | Peers | Ratio | Goal | Reached |", "| --- | --- | --- | --- | --- | --- |"]
    for each in found:
        unit, errors = each["unit"], each["errors"]
        peers = "; ".join(f"{name}: {shown(value, unit, errors.get(name, 0))}" for name, value in each["peers"].items())
        ratio = "" if each["ratio"] is None else f"{each['ratio']:.2f}"
        by = f": {each['share']:.2f} of the goal" if each["share"] is not None else ""
        reached = {True: "yes", False: f"no{by}", None: ""}[each["reached"]]
        ours = shown(each["ours"], unit, errors.get("ours", 0))
        lines.append(f"| {each['group']}: {each['name']} | {ours} | {peers} | {ratio} | {each['goal']} | {reached} |")
    return "\n".join(lines)


def rows(known: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the figures of every part that results.json has of one size."""
    return [each for part in known["parts"].values() for each in part["figures"]]


def file(name: str) -> str:
    """Return the name of the chart of what was measured at a size or at a number of hosts."""
    return f"bench-{name.replace(' ', '').lower()}.svg"


def chart(found: list[dict[str, Any]], title: str) -> str:
    """Return an SVG bar chart: each figure with a goal as its share of that goal; up to 1 it is reached."""
    style = CleanStyle(font_family="sans-serif", colors=("#2a6f97", "#c1121f"), background="white")
    shares = [(f"{each['group']}: {each['name']}", each["share"]) for each in found if each["share"] is not None]
    bars = HorizontalBar(
        style=style,
        title=title,
        x_title="share of the goal (shorter is better; up to 1.0 it is reached)",
        js=(),
        show_legend=False,
        print_values=True,
        value_formatter=lambda value: f"{value:.2f}",
        width=900,
        height=60 + 34 * len(shares),
        truncate_label=-1,
        range=(0, 3),
    )
    bars.x_labels = [name for name, _ in reversed(shares)]
    bars.add("", [{"value": share, "color": "#2a6f97" if share <= 1 else "#c1121f"} for _, share in reversed(shares)])
    return str(bars.render(is_unicode=True, disable_xml_declaration=True))
