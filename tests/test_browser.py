"""The page in a real browser: quiet console, no request, no sideways scrolling, light and dark, on paper."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import browser
import demonstration
import pytest
from abathur_db import fleet_page, page, report, runs

pytestmark = pytest.mark.engine

LONG = "a_word_without_an_end_" * 12


@pytest.fixture(scope="module")
def tab() -> Iterator[browser.Page]:
    """Lend a tab of a headless Chromium."""
    with browser.chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return pages by name: of a healthy host, of a sick one with long words everywhere, and of a fleet."""
    directory = tmp_path_factory.mktemp("pages")
    with demonstration.timers(directory):
        data = report.gather(demonstration.make(directory, minutes=720, rows=500))
    sick: dict[str, Any] = json.loads(json.dumps(data))
    sick |= {"ok": False, "host": LONG[:60], "drift": [f"-{LONG}", f"+{LONG}"], "database": f"/{LONG}"}
    sick["backups"].insert(0, {"id": LONG, "counts": False, "fault": LONG})
    for check in sick["checks"]:
        check.update(ok=False, measured=LONG, hint=LONG)
    hosts = [{"name": LONG[:60], "unreachable": LONG}, {**sick, "name": "b"}, {**data, "name": "c"}]
    texts = {
        "healthy": page.render(data),
        "sick": page.render(sick),
        "fleet": fleet_page.render(hosts, runs.now()),
    }
    found = {}
    for name, text in texts.items():
        found[name] = directory / f"{name}.html"
        found[name].write_text(text, encoding="utf-8")
    return found


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [360, 768, 1280])
@pytest.mark.parametrize("name", ["healthy", "sick", "fleet"])
def test_a_page_opens_quietly_and_fits_its_window(
    tab: browser.Page, pages: dict[str, Path], name: str, width: int, dark: bool
) -> None:
    tab.show(pages[name], width=width, dark=dark)
    assert tab.evaluate("document.documentElement.scrollWidth") <= width
    assert tab.evaluate("window.innerWidth") == width
    assert tab.evaluate("document.querySelector('h1').getBoundingClientRect().height") > 20
    assert tab.complaints() == []
    assert tab.requests() == [pages[name].as_uri()]


def test_dark_is_dark_and_light_is_light(tab: browser.Page, pages: dict[str, Path]) -> None:
    grounds = []
    for dark in (False, True):
        tab.show(pages["healthy"], width=1280, dark=dark)
        grounds.append(tab.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert grounds == ["rgb(250, 249, 246)", "rgb(19, 22, 27)"]


def test_a_chart_is_drawn_and_its_line_follows_the_scheme(tab: browser.Page, pages: dict[str, Path]) -> None:
    strokes = set()
    for dark in (False, True):
        tab.show(pages["healthy"], width=1280, dark=dark)
        assert tab.evaluate("document.querySelector('.chart .line').getTotalLength()") > 50
        strokes.add(tab.evaluate("getComputedStyle(document.querySelector('.chart .line')).stroke"))
    assert len(strokes) == 2


def test_a_phone_shows_the_newer_half_of_the_calendar(tab: browser.Page, pages: dict[str, Path]) -> None:
    shown = []
    for width in (360, 1280):
        tab.show(pages["healthy"], width=width)
        shown.append(
            tab.evaluate(
                "[...document.querySelectorAll('.calendar tbody tr:first-child td')]"
                ".filter(each => each.getBoundingClientRect().width >= 12).length"
            )
        )
    assert shown == [14, 28]


def test_text_keeps_a_readable_size_on_a_phone(tab: browser.Page, pages: dict[str, Path]) -> None:
    tab.show(pages["healthy"], width=360)
    sizes = tab.evaluate(
        "[...document.querySelectorAll('body *')].filter(each => each.textContent.trim() && !each.children.length)"
        ".map(each => parseFloat(getComputedStyle(each).fontSize))"
    )
    assert min(sizes) >= 11


def test_on_paper_the_page_is_white_without_links_to_itself(tab: browser.Page, pages: dict[str, Path]) -> None:
    tab.show(pages["healthy"], width=800, dark=True, media="print")
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert tab.evaluate("getComputedStyle(document.querySelector('nav')).display") == "none"
    assert tab.call("Page.printToPDF")["data"]


def test_the_browser_s_complaints_and_requests_would_be_seen(tab: browser.Page, tmp_path: Path) -> None:
    """The tests above can fail: a page that does what ours must not."""
    bad = tmp_path / "bad.html"
    bad.write_text('<body style="width: 9999px"><img src="missing.png"><script>console.error("bad")</script>')
    tab.show(bad, width=360)
    assert tab.evaluate("document.documentElement.scrollWidth") > 360
    assert any("bad" in each for each in tab.complaints())
    assert (tmp_path / "missing.png").as_uri() in tab.requests()
    with pytest.raises(RuntimeError, match="nowhere"):
        tab.evaluate("nowhere")
    with pytest.raises(RuntimeError, match=r"No\.such"):
        tab.call("No.such")


def test_scripts_in_a_page_are_forbidden_by_its_policy(
    tab: browser.Page, pages: dict[str, Path], tmp_path: Path
) -> None:
    """Should an escape ever be forgotten, what gets in does not run and loads nothing."""
    broken = tmp_path / "broken.html"
    payload = "<script>document.title = 'owned'</script><img src=missing.png>"
    broken.write_text(pages["healthy"].read_text().replace("<main", f"{payload}<main"))
    tab.show(broken, width=800)
    assert "healthy" in tab.evaluate("document.title")
    assert any("Content Security Policy" in each for each in tab.complaints())
