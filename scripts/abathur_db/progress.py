"""Progress of long work: a bar with rate and time left on a terminal, one line a minute elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from abathur_db.result import printable

JOURNAL_SECONDS = 60
"""Outside a terminal nothing is said in the first minute, then a line each minute."""


def note(line: str) -> None:
    """Say something in passing to whoever watches at a terminal; a journal stays quiet."""
    if sys.stderr.isatty():
        print(printable(line), file=sys.stderr)


def agreed(what: str) -> bool:
    """Ask at a terminal whether to go on; elsewhere nobody is there to be asked, and it goes on."""
    if not sys.stdin.isatty():
        return True
    print(f"{printable(what)} Go on? [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _meter(label: str, total: int) -> Any:
    try:
        from tqdm import tqdm
    except ModuleNotFoundError:
        # From a checkout without the environment: the work is done all the same, quietly.
        return None

    # Generic for the type checker only: tqdm[…] fails when it runs.
    class Lines(tqdm):  # type: ignore[type-arg]
        """A meter whose every refresh is a line of its own."""

        @staticmethod
        def status_printer(file: Any) -> Callable[[str], None]:
            """Return the function that prints a state; an empty one would only clear a bar."""
            return lambda state: print(state, file=file, flush=True)

        def close(self) -> None:
            """End without a last refresh: there is no bar to clear."""
            self.disable = True

    tqdm.monitor_interval = 0
    terminal = sys.stderr.isatty()
    pace: dict[str, Any] = {} if terminal else {"mininterval": JOURNAL_SECONDS, "delay": JOURNAL_SECONDS, "miniters": 1}
    kind = tqdm if terminal else Lines
    return kind(total=total, desc=label, unit="B", unit_scale=True, leave=False, file=sys.stderr, **pace)


@contextmanager
def shown(label: str, total: int) -> Iterator[Callable[[int], Any]]:
    """Show work on `total` bytes; the body calls what it gets with the number of bytes just done."""
    meter = _meter(label, total)
    if meter is None:
        yield lambda _: None
        return
    with meter:
        yield meter.update
