"""The documentation site in a real browser, opened from its folder: `make docs` builds it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from browser import Browser, opened
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

if TYPE_CHECKING:
    from collections.abc import Iterator

SITE = Path(__file__).parents[2] / "build" / "site"
PAGES = ("index", "tour", "reference/cli", "reference/topology")
PATIENCE = 60.0

pytestmark = pytest.mark.skipif(not (SITE / "index.html").exists(), reason="needs `make docs`")


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    yield from opened(tmp_path_factory.mktemp("browser"))


def address(page: str) -> str:
    return (SITE / f"{page}.html").as_uri()


@pytest.mark.parametrize(("width", "scheme"), [(1440, "light"), (390, "dark")])
@pytest.mark.parametrize("page", PAGES)
def test_a_page_fits_and_asks_only_its_folder(
    browser: Browser, page: str, width: int, scheme: Literal["light", "dark"]
) -> None:
    browser.open(address(page), width=width, scheme=scheme)
    assert browser.js("return document.documentElement.scrollWidth") <= width
    wanted = "slate" if scheme == "dark" else "default"
    found = browser.js("return document.body.getAttribute('data-md-color-scheme')")
    assert found == wanted
    assert [url for url in browser.requests() if not url.startswith(("file:", "data:"))] == []
    assert browser.messages() == []


def test_the_search_finds_a_command_without_a_server(browser: Browser) -> None:
    browser.open(address("index"))
    box = browser.driver.find_element(By.CSS_SELECTOR, "input.md-search__input")
    box.click()
    box.send_keys("partition")
    links = WebDriverWait(browser.driver, PATIENCE).until(
        lambda driver: driver.find_elements(By.CSS_SELECTOR, ".md-search-result__link")
    )
    targets = [link.get_attribute("href") or "" for link in links]
    assert any("reference/cli.html" in target for target in targets), targets
