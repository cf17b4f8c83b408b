"""Pieces of HTML that the pages share. Every text that comes from outside goes through `e`."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from html import escape
from importlib.resources import files
from typing import Any

from abathur_db import foreign, host

GOOD, BAD, WARN = "good", "bad", "warn"
GLYPHS = {GOOD: "✓", BAD: "✕", WARN: "!"}
"""A shape beside each word: the state is never told by colour alone."""

NOTHING = "&ndash;"
"""HTML of a cell that has no value."""


def e(value: Any) -> str:
    """Return a text escaped for HTML, in elements and in attributes."""
    return escape(str(value))


def state(kind: str, words: str) -> str:
    """Return a state: a shape and words, coloured as well."""
    return f'<span class="state {kind}"><span aria-hidden="true">{GLYPHS[kind]}</span> {e(words)}</span>'


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table from cells that are HTML already; on a phone each row becomes a block with its labels.

    The roles are said, because a browser forgets them for a table that is displayed as blocks.
    """
    head = "".join(f'<th role="columnheader" scope="col">{e(each)}</th>' for each in heads)
    body = []
    for first, *others in rows:
        cells = "".join(
            f'<td role="cell" data-label="{e(name)}"><div>{cell}</div></td>'
            for name, cell in zip(heads[1:], others, strict=True)
        )
        body.append(f'<tr role="row"><th role="rowheader" scope="row">{first}</th>{cells}</tr>')
    return (
        f'<table role="table" class="stack"><caption>{e(caption)}</caption>'
        f'<thead role="rowgroup"><tr role="row">{head}</tr></thead>'
        f'<tbody role="rowgroup">{"".join(body)}</tbody></table>'
    )


def section(identity: str, title: str, content: str, intro: str = "") -> str:
    """Return a section with its heading and a sentence; `content` is HTML already."""
    said = f'<p class="intro">{e(intro)}</p>' if intro else ""
    return f'<section id="{identity}"><h2>{e(title)}</h2>{said}{content}</section>'


def empty(sentence: str) -> str:
    """Return what stands where there is nothing to show yet."""
    return f'<p class="empty">{e(sentence)}</p>'


def moment(text: Any) -> datetime | None:
    """Return an ISO time, None for anything else; one without a zone is UTC."""
    try:
        return foreign.moment(text)
    except ValueError:
        return None


def when(text: Any) -> str:
    """Return a time as HTML that people and machines read."""
    found = moment(text)
    if found is None:
        return e(text if text else "never")
    return f'<time datetime="{found.isoformat()}">{found.day} {found:%b %Y, %H:%M}</time>'


def lasted(seconds: float | None) -> str:
    """Return a duration as people say it."""
    if seconds is None:
        return "not known"
    for limit, unit, size in ((120, "s", 1), (7200, "min", 60), (172800, "h", 3600)):
        if seconds < limit:
            return f"{seconds:.1f} s" if unit == "s" and seconds < 10 else f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} days"


def ago(text: Any, now: Any) -> str:
    """Return how long before `now` a time was."""
    then, present = moment(text), moment(now)
    if then is None or present is None:
        return "never"
    seconds = (present - then).total_seconds()
    return "just now" if abs(seconds) < 60 else f"{lasted(seconds)} ago"


def size(value: float) -> str:
    """Return bytes as people read them."""
    return host.readable(int(value)).replace(".0 ", " ").replace(" ", "\u00a0")


def document(title: str, body: str) -> str:
    """Return a whole page: one file, nothing loaded from anywhere, and a policy that forbids it."""
    style = (files("abathur_db") / "page.css").read_text(encoding="utf-8")
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline';"
        ' img-src data:">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><meta name="robots" content="noindex">'
        # An empty icon: without one a browser asks for it.
        f'<link rel="icon" href="data:,"><title>{e(title)}</title><style>{style}</style></head>'
        f'<body><a class="skip" href="#main">To the content</a>{body}</body></html>\n'
    )
