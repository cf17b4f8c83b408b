"""Helpers of the unit tests: a page as a reader sees it."""

from __future__ import annotations

import html.parser

VOID = {"meta", "link", "path", "img", "br", "input"}


class Reader(html.parser.HTMLParser):
    """Reads a page strictly: every element closed, in order; keeps tags and text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == [], "elements that are not closed"

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """Keep the element with its attributes."""
        self.tags.append((tag, dict(attributes)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        """See that it ends the element that was opened last."""
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        """Keep the text that a reader sees."""
        if "style" not in self.open:
            self.text += f" {data}"


def words(text: str) -> str:
    """Return the text of a page as a reader sees it, spaces evened."""
    return " ".join(Reader(text).text.split())
