"""The report in a real browser: it filters, searches, folds, and asks nobody for anything.

Screenshots are left in pytest's temporary folder (``--basetemp`` chooses it).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from browser import Browser, opened
from report_runs import broken_run, claim, finding, lab, piece, run
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.wait import WebDriverWait
from walks import across, dropped, published

from testbed.report import walk_page
from testbed.report.html import render
from testbed.walk.compare import compare

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

ALL = ["same", "differs", "evil", "wrong", "maybe", "fast", "absent", "motive"]
VISIBLE = """return [...document.querySelectorAll('.claim')].filter(c => c.checkVisibility())
             .map(c => c.id)"""
#: The contrast of every text with what is behind it, where both are plain colours (WCAG 2.2).
CONTRAST = """
const context = Object.assign(document.createElement('canvas'), {width: 1, height: 1})
  .getContext('2d', {willReadFrequently: true});
const parse = (colour) => {
  context.clearRect(0, 0, 1, 1); context.fillStyle = colour; context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data];
};
const light = ([r, g, b]) => {
  const [x, y, z] = [r, g, b].map(v => (v /= 255) <= 0.04045 ? v / 12.92
    : ((v + 0.055) / 1.055) ** 2.4);
  return 0.2126 * x + 0.7152 * y + 0.0722 * z;
};
const behind = (element) => {
  for (let one = element; one; one = one.parentElement) {
    const colour = parse(getComputedStyle(one).backgroundColor);
    if (colour[3] === 255) return colour;
  }
  return [255, 255, 255, 255];
};
const bad = new Set();
for (const element of document.querySelectorAll('main *, header *, footer *')) {
  const says = [...element.childNodes].some(n => n.nodeType === 3 && n.data.trim());
  if (!says || !element.checkVisibility() || element.closest('svg')) continue;
  if (element.closest(':disabled')) continue;
  const [a, b] = [light(parse(getComputedStyle(element).color)), light(behind(element))];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  if (ratio < 4.5) bad.add(`${element.tagName}.${element.className} ${ratio.toFixed(2)}`);
}
return [...bad];
"""


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    yield from opened(tmp_path_factory.mktemp("browser"))


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The addresses of some reports."""
    folder = tmp_path_factory.mktemp("reports")
    wide = [piece("node1# cat wide", "x" * 900), piece("holds", "long-" * 80)]
    wide_run = run(
        labs=[lab("a-lab-of-a-rather-long-name", [finding("wide", evidence=wide)])],
        claims=[claim("wide", "000", claim="unbroken" * 30, quoted=["quoted" * 40])],
    )
    texts = {
        "good": render(run()),
        "bad": render(broken_run()),
        "zh": render(run(), lang="zh"),
        "wide": render(wide_run),
        "walk": walk_page.page(dropped(), difference=compare(across(), dropped())),
        "walk-zh": walk_page.page(published(), lang="zh"),
    }
    for name, text in texts.items():
        (folder / f"{name}.html").write_text(text, encoding="utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in texts}


@pytest.fixture
def quiet(browser: Browser) -> Iterator[Browser]:
    """The browser; whatever the test does, nothing is asked for and the console is silent."""
    browser.messages()
    browser.requests()
    yield browser
    assert browser.messages() == []
    assert [url for url in browser.requests() if not url.startswith(("file:", "data:"))] == []


def visible(browser: Browser) -> list[str]:
    found: list[str] = browser.js(VISIBLE)
    return found


def wait(browser: Browser, seen: Callable[[], object]) -> None:
    WebDriverWait(browser.driver, 5, poll_frequency=0.02).until(lambda _: seen())


def click(browser: Browser, selector: str) -> None:
    browser.js("document.querySelector(arguments[0]).click()", selector)


def told(browser: Browser) -> str:
    return browser.driver.find_element(By.ID, "shown").text


def choose(browser: Browser, name: str, value: str) -> None:
    browser.js(
        """const one = document.querySelector(`[name=${arguments[0]}]`);
        one.value = arguments[1]; one.dispatchEvent(new Event('change', {bubbles: true}))""",
        name,
        value,
    )


def background(browser: Browser) -> Any:
    return browser.js("return getComputedStyle(document.body).backgroundColor")


# -- filters ------------------------------------------------------------------------


def test_everything_is_shown_at_first(quiet: Browser, pages: dict[str, str]) -> None:
    quiet.open(pages["good"])
    assert visible(quiet) == ALL
    assert told(quiet) == "All 8 claims"
    assert quiet.js("return document.querySelectorAll('details[open]').length") == 0


def test_verdicts_narrow_and_add_up(quiet: Browser, pages: dict[str, str]) -> None:
    quiet.open(pages["good"])
    click(quiet, "[name=v][value=contradicted]")
    assert visible(quiet) == ["differs", "wrong"]
    assert told(quiet) == "2 of 8 claims"
    counts = quiet.driver.find_elements(By.CSS_SELECTOR, ".document .count")
    assert [one.text for one in counts] == ["1 of 3 claims", "1 of 5 claims"]
    click(quiet, "[name=v][value=conditional]")
    assert visible(quiet) == ["differs", "wrong", "maybe"]
    assert quiet.js("return location.hash") == "#filter?v=conditional&v=contradicted"
    click(quiet, "#clear")
    wait(quiet, lambda: visible(quiet) == ALL)
    assert quiet.js("return location.hash") == ""


@pytest.mark.parametrize(
    ("name", "value", "left"),
    [
        ("d", "003", ["wrong", "maybe", "fast", "absent", "motive"]),
        ("lab", "docker-single-29", ["same", "differs"]),
        ("k", "isolation", ["maybe"]),
    ],
)
def test_lists_narrow(
    quiet: Browser, pages: dict[str, str], name: str, value: str, left: list[str]
) -> None:
    quiet.open(pages["good"])
    choose(quiet, name, value)
    assert visible(quiet) == left


def test_a_document_without_a_match_is_not_there(quiet: Browser, pages: dict[str, str]) -> None:
    quiet.open(pages["good"])
    choose(quiet, "d", "003")
    shown = quiet.js("return [...document.querySelectorAll('.document')].map(d => !d.hidden)")
    assert shown == [False, True]


def test_search_finds_words_in_evidence(quiet: Browser, pages: dict[str, str]) -> None:
    quiet.open(pages["good"])
    quiet.driver.find_element(By.NAME, "q").send_keys("DOCKER0-wrong ip")
    wait(quiet, lambda: visible(quiet) == ["wrong"])
    assert told(quiet) == "1 of 8 claims"


def test_nothing_found_says_so_and_how_to_go_on(quiet: Browser, pages: dict[str, str]) -> None:
    quiet.open(pages["good"])
    nothing = quiet.driver.find_element(By.ID, "nothing")
    assert not nothing.is_displayed()
    search = quiet.driver.find_element(By.NAME, "q")
    search.send_keys("no such word")
    wait(quiet, nothing.is_displayed)
    assert visible(quiet) == []
    search.send_keys(Keys.ESCAPE)
    wait(quiet, lambda: visible(quiet) == ALL)
    assert not nothing.is_displayed()


def test_an_address_keeps_a_filter(quiet: Browser, pages: dict[str, str]) -> None:
    quiet.open(pages["good"] + "#filter?v=conditional&v=contradicted&d=003&q=lladrr")
    assert visible(quiet) == ["wrong"]
    assert quiet.js("return document.querySelector('[name=q]').value") == "lladrr"
    assert quiet.js("return document.querySelector('[name=d]').value") == "003"


def test_a_tile_of_the_summary_is_a_filter(quiet: Browser, pages: dict[str, str]) -> None:
    quiet.open(pages["good"])
    click(quiet, ".tile.v-conditional")
    wait(quiet, lambda: visible(quiet) == ["maybe"])
    assert quiet.js("return document.querySelector('[name=v][value=conditional]').checked")


def test_what_is_unexpected_can_be_chosen(quiet: Browser, pages: dict[str, str]) -> None:
    quiet.open(pages["bad"])
    click(quiet, "[name=u]")
    assert visible(quiet) == ["same", "maybe"]


def test_a_slash_leads_to_the_search(quiet: Browser, pages: dict[str, str]) -> None:
    quiet.open(pages["good"])
    quiet.driver.find_element(By.TAG_NAME, "body").send_keys("/")
    assert quiet.js("return document.activeElement.name") == "q"
    assert quiet.js("return document.activeElement.value") == ""


# -- folding --------------------------------------------------------------------------


def test_a_link_to_a_claim_unfolds_it(quiet: Browser, pages: dict[str, str]) -> None:
    quiet.open(pages["good"] + "#wrong")
    assert quiet.js("return [...document.querySelectorAll('.claim[open]')].map(c => c.id)") == [
        "wrong"
    ]


def test_a_link_to_a_claim_that_is_filtered_out_brings_it_back(
    quiet: Browser, pages: dict[str, str]
) -> None:
    quiet.open(pages["good"] + "#filter?v=conditional")
    click(quiet, "#otherwise a[href='#wrong']")
    wait(quiet, lambda: "wrong" in visible(quiet))
    assert quiet.js("return document.getElementById('wrong').open")
    assert quiet.js("return document.activeElement.closest('.claim').id") == "wrong"


def test_all_that_is_shown_unfolds_and_folds(quiet: Browser, pages: dict[str, str]) -> None:
    quiet.open(pages["good"] + "#filter?v=contradicted")
    button = quiet.driver.find_element(By.ID, "unfold")
    assert button.text == "Unfold"
    click(quiet, "#unfold")
    opened = "return [...document.querySelectorAll('.claim[open]')].map(c => c.id)"
    assert quiet.js(opened) == ["differs", "wrong"]
    wait(quiet, lambda: button.text == "Fold")
    click(quiet, "#unfold")
    assert quiet.js(opened) == []


def test_evidence_is_folded_until_it_is_asked_for(quiet: Browser, pages: dict[str, str]) -> None:
    quiet.open(pages["good"] + "#differs")
    packets = quiet.driver.find_element(By.CSS_SELECTOR, "#differs .packets")
    assert not packets.is_displayed()
    quiet.driver.find_element(By.CSS_SELECTOR, "#differs .evidence > summary").send_keys(Keys.ENTER)
    wait(quiet, packets.is_displayed)
    assert len(packets.find_elements(By.CSS_SELECTOR, "tbody tr")) == 3


# -- looks ----------------------------------------------------------------------------


def test_the_system_s_colours_are_kept_until_one_chooses(
    quiet: Browser, pages: dict[str, str]
) -> None:
    quiet.open(pages["good"])
    light = background(quiet)
    quiet.open(pages["good"], scheme="dark")
    dark = background(quiet)
    assert dark != light
    button = quiet.driver.find_element(By.ID, "theme")
    assert button.text == "Colours: as the system"
    click(quiet, "#theme")
    assert (button.text, background(quiet)) == ("Colours: light", light)
    quiet.open(pages["good"], scheme="dark")
    assert background(quiet) == light, "the choice is remembered"
    click(quiet, "#theme")
    assert background(quiet) == dark
    click(quiet, "#theme")
    assert quiet.driver.find_element(By.ID, "theme").text == "Colours: as the system"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", ["good", "bad", "zh", "walk", "walk-zh"])
def test_every_text_can_be_read(
    quiet: Browser, pages: dict[str, str], name: str, scheme: Any, tmp_path: Path
) -> None:
    quiet.open(pages[name], scheme=scheme)
    quiet.js("for (const one of document.querySelectorAll('details')) one.open = true")
    assert quiet.js(CONTRAST) == []
    assert quiet.shot(tmp_path / f"{name}-{scheme}.png", height=6000).stat().st_size > 10_000


@pytest.mark.parametrize("width", [320, 360, 768, 1280])
@pytest.mark.parametrize("name", ["good", "bad", "zh", "wide", "walk", "walk-zh"])
def test_the_page_never_scrolls_sideways(
    quiet: Browser, pages: dict[str, str], name: str, width: int, tmp_path: Path
) -> None:
    quiet.open(pages[name], width=width)
    quiet.js("for (const one of document.querySelectorAll('details')) one.open = true")
    root = quiet.js("const e = document.documentElement; return [e.scrollWidth, e.clientWidth]")
    assert root[0] <= root[1] <= width
    quiet.shot(tmp_path / f"{name}-{width}.png", height=6000)


@pytest.mark.parametrize("name", ["wide", "good", "walk"])
def test_what_scrolls_can_be_reached_by_keyboard(
    quiet: Browser, pages: dict[str, str], name: str
) -> None:
    quiet.open(pages[name], width=360)
    quiet.js("for (const one of document.querySelectorAll('details')) one.open = true")
    unreachable = quiet.js(
        """return [...document.querySelectorAll('main *')]
        .filter(e => e.scrollWidth > e.clientWidth + 1 && e.tabIndex < 0
                && /auto|scroll/.test(getComputedStyle(e).overflowX))
        .map(e => e.outerHTML.slice(0, 80))"""
    )
    assert unreachable == []


def test_on_paper_the_claims_are_unfolded_and_the_tools_are_gone(
    quiet: Browser, pages: dict[str, str]
) -> None:
    quiet.open(pages["good"], media="print")
    shown = (
        "return document.querySelector(arguments[0]).checkVisibility({contentVisibilityAuto: true})"
    )
    assert quiet.js(shown, "#same .facts")
    assert not quiet.js(shown, "form.filter")
    assert not quiet.js(shown, "#theme")


def test_paper_is_white_whatever_the_screen_s_colours(
    quiet: Browser, pages: dict[str, str]
) -> None:
    quiet.open(pages["good"], scheme="dark", media="print")
    assert background(quiet) == "rgb(255, 255, 255)"
    assert quiet.js(CONTRAST) == []
    quiet.js("document.documentElement.dataset.theme = 'dark'")
    assert background(quiet) == "rgb(255, 255, 255)"
    assert quiet.js(CONTRAST) == []


def test_without_script_everything_is_there(quiet: Browser, pages: dict[str, str]) -> None:
    quiet.tell("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        quiet.open(pages["good"])
        quiet.tell("Emulation.setScriptExecutionDisabled", {"value": False})
        assert visible(quiet) == ALL
        assert not quiet.driver.find_element(By.CSS_SELECTOR, "form.filter").is_displayed()
    finally:
        quiet.tell("Emulation.setScriptExecutionDisabled", {"value": False})


def test_what_a_lab_said_does_nothing(quiet: Browser, pages: dict[str, str]) -> None:
    quiet.open(pages["good"] + "#evil")
    assert quiet.driver.title == "Container networking, put to the test"
    assert "document.title = 'taken'" in quiet.driver.find_element(By.ID, "evil").text


def test_a_narrow_page_of_a_walk_breaks_no_option(quiet: Browser, pages: dict[str, str]) -> None:
    """A browser breaks lines after hyphens by itself."""
    quiet.open(pages["walk"], width=400)
    script = """return [...document.querySelectorAll('.piece')].map(one => {
      const range = document.createRange(); range.selectNodeContents(one);
      const lines = new Set([...range.getClientRects()].map(box => Math.round(box.top)));
      return [one.textContent, lines.size]; })"""
    found = quiet.js(script)
    assert len(found) > 20
    assert [text for text, lines in found if lines > 1 and len(text) < 25] == []
