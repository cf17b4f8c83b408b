"""Makes the README's pictures from the demonstration: docs/report.png by Chromium, docs/status.svg from `status`."""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from html import escape
from pathlib import Path

import browser
import demonstration
from abathur_db import page, report, status

ROOT = Path(__file__).resolve().parents[1]


def terminal(lines: list[str]) -> str:
    """Return lines of a terminal as SVG."""
    width, height = 9 * max(map(len, lines)) + 48, 20 * len(lines) + 44
    rows = "".join(
        f'<text x="24" y="{38 + 20 * number}" xml:space="preserve">{_coloured(line)}</text>'
        for number, line in enumerate(lines)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' role="img" aria-label="The output of abathur-db status"><style>text{font:15px ui-monospace,SFMono-Regular,'
        "Menlo,&quot;DejaVu Sans Mono&quot;,monospace;fill:#d7dbe0}.ok{fill:#84cca1}rect{fill:#171b21}</style>"
        f'<rect width="100%" height="100%" rx="8"/>{rows}</svg>\n'
    )


def _coloured(line: str) -> str:
    word, gap, rest = line.partition("  ")
    return f'<tspan class="ok">ok</tspan>{gap}{escape(rest)}' if word == "ok" else escape(line)


def main() -> None:
    """Write both pictures to --output."""
    parser = argparse.ArgumentParser(description="Makes the README's pictures.")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="directory, default: docs")
    parser.add_argument("--dark", action="store_true", help="as a browser in dark mode shows the page")
    parser.add_argument("--width", type=int, default=1080)
    parser.add_argument("--height", type=int, default=1960)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    picture = options.output / "report.png"
    with tempfile.TemporaryDirectory() as name, demonstration.timers(Path(name)):
        directory = Path(name)
        conf = demonstration.make(directory)
        # As on a host: its name and its path instead of this machine's.
        data = {**report.gather(conf), "host": "db1", "database": "/var/lib/abathur/abathur.db"}
        report.write_page(directory / "report.html", page.render(data))
        with browser.chromium() as tab:
            tab.show(directory / "report.html", width=options.width, height=options.height, dark=options.dark)
            tab.photograph(picture)
        said = status.status(conf)
    # Flat colours: a palette loses nothing that can be seen, and the repository stays small.
    subprocess.run(["pngquant", "--nofs", "--force", "--output", picture, "--", picture], check=True)
    lines = ["$ abathur-db status", *said.report(), f"status: {said.summary}"]
    shown = [line.replace(str(conf.database), "/var/lib/abathur/abathur.db") for line in lines]
    (options.output / "status.svg").write_text(terminal(shown), encoding="utf-8")


if __name__ == "__main__":
    main()
