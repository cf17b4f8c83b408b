"""Makes the README's pictures from the demonstration: docs/report.png by Chromium, docs/status.svg from `status`."""

from __future__ import annotations

import argparse
import subprocess
import tempfile
from html import escape
from pathlib import Path

import demonstration
from abathur_db import page, report, status

ROOT = Path(__file__).resolve().parents[1]
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
"""A browser that talks to nobody: it shows one file."""


def photograph(html: Path, picture: Path, width: int, height: int, *flags: str) -> str:
    """Let Chromium show a page and write a picture of it; return what it logged, console messages among it."""
    with tempfile.TemporaryDirectory() as profile:
        done = subprocess.run(
            [
                "chromium",
                *FLAGS,
                f"--user-data-dir={profile}",
                "--hide-scrollbars",
                "--enable-logging=stderr",
                f"--window-size={width},{height}",
                f"--screenshot={picture}",
                *flags,
                html.as_uri(),
            ],
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        )
    return done.stderr


def terminal(lines: list[str]) -> str:
    """Return lines of a terminal as SVG."""
    width, height = 9 * max(map(len, lines)) + 48, 20 * len(lines) + 44
    rows = "".join(
        f'<text x="24" y="{38 + 20 * number}" xml:space="preserve">{escape(line)}</text>'
        for number, line in enumerate(lines)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
        ' role="img" aria-label="The output of abathur-db status"><style>text{font:15px ui-monospace,SFMono-Regular,'
        "Menlo,&quot;DejaVu Sans Mono&quot;,monospace;fill:#d7dbe0}rect{fill:#171b21}</style>"
        f'<rect width="100%" height="100%" rx="8"/>{rows}</svg>\n'
    )


def main() -> None:
    """Write both pictures to --output."""
    parser = argparse.ArgumentParser(description="Makes the README's pictures.")
    parser.add_argument("--output", type=Path, default=ROOT / "docs", help="directory, default: docs")
    parser.add_argument("--dark", action="store_true", help="as a browser in dark mode shows the page")
    parser.add_argument("--width", type=int, default=1100)
    parser.add_argument("--height", type=int, default=1500)
    options = parser.parse_args()
    options.output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name, demonstration.timers(Path(name)):
        directory = Path(name)
        conf = demonstration.make(directory)
        # As on a host: its name and its path instead of this machine's.
        data = {**report.gather(conf), "host": "db1", "database": "/var/lib/abathur/abathur.db"}
        report.write_page(directory / "report.html", page.render(data))
        flags = ["--blink-settings=preferredColorScheme=0"] if options.dark else []
        photograph(directory / "report.html", options.output / "report.png", options.width, options.height, *flags)
        said = status.status(conf)
    lines = ["$ abathur-db status", *said.report(), f"status: {said.summary}"]
    shown = [line.replace(str(conf.database), "/var/lib/abathur/abathur.db") for line in lines]
    (options.output / "status.svg").write_text(terminal(shown), encoding="utf-8")


if __name__ == "__main__":
    main()
