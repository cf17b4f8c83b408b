"""Ctrl-C: it ends a command between two changes, and whoever pressed it is told which were made."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import FrameType

SAME_SECONDS = 1.0
"""A second Ctrl-C within this time is the first: a terminal sends it to every process, and a parent passes it on."""


@dataclass
class _State:
    """What is known of the one command that this process runs."""

    asked: float = 0.0
    """When Ctrl-C was pressed last, by the monotonic clock; 0 before."""
    held: int = 0
    pending: bool = False
    done: list[str] = field(default_factory=list)
    child: int = 0
    stop: Callable[[], object] | None = None
    finished: bool = False

    def forget(self) -> None:
        """Be as a new one."""
        self.__dict__.update(vars(_State()))


_state = _State()


@contextmanager
def listening() -> Iterator[None]:
    """Take Ctrl-C for one command: the body sees KeyboardInterrupt, but never inside of a change."""
    _state.forget()
    before, unraisable = signal.signal(signal.SIGINT, _pressed), sys.unraisablehook
    sys.unraisablehook = lambda about: None if about.exc_type is KeyboardInterrupt else unraisable(about)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        sys.unraisablehook = unraisable


def _pressed(_: int, __: FrameType | None) -> None:
    now = time.monotonic()
    again = _state.asked and now - _state.asked < SAME_SECONDS
    _state.asked = now
    if again or _state.finished:
        return
    if _state.child:
        with suppress(ProcessLookupError):
            os.kill(_state.child, signal.SIGINT)
    if _state.stop:
        _state.stop()
    elif _state.held:
        _state.pending = True
    else:
        raise KeyboardInterrupt


def finish() -> None:
    """Take no notice of Ctrl-C from now on: what is left is the answer."""
    _state.finished = True


def asked() -> bool:
    """Tell whether Ctrl-C was pressed: what an error says after that is its doing."""
    return bool(_state.asked)


def done() -> list[str]:
    """Return what was changed so far, a sentence each."""
    return _state.done


def did(sentence: str) -> None:
    """Remember a change that stays, whatever comes after it; the same sentence once."""
    if sentence not in _state.done:
        _state.done.append(sentence)


@contextmanager
def held() -> Iterator[None]:
    """Hold Ctrl-C back while the body runs. Raises KeyboardInterrupt at its end when it was pressed meanwhile."""
    _state.held += 1
    try:
        yield
    finally:
        _state.held -= 1
    if _state.pending and not _state.held:
        _state.pending = False
        raise KeyboardInterrupt


@contextmanager
def change(sentence: str) -> Iterator[None]:
    """Make a short change that is whole or not at all, and remember it; none is begun after Ctrl-C.

    Raises KeyboardInterrupt.
    """
    if asked():
        raise KeyboardInterrupt
    with held():
        yield
        did(sentence)


@contextmanager
def awaited(child: int) -> Iterator[None]:
    """Wait for a child process of this command: Ctrl-C is passed on to it, and seen here when the child has ended."""
    _state.child = child
    try:
        with held():
            yield
    finally:
        _state.child = 0


@contextmanager
def stopped_by(stop: Callable[[], object]) -> Iterator[None]:
    """Let Ctrl-C call `stop` while the body runs, which then comes to its own end."""
    _state.stop = stop
    try:
        yield
    finally:
        _state.stop = None


def begin_child() -> None:
    """Begin anew in a process that was just forked: what was pressed and changed before is its parent's to tell."""
    _state.forget()
