"""A real browser without a window: Debian's Chromium, driven by its own driver."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

if TYPE_CHECKING:
    from collections.abc import Iterator

OPTIONS = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--disable-breakpad",
)  # fmt: skip
ENDS_WITHIN = 10.0  # seconds


def programs() -> tuple[str, str] | None:
    """Chromium and its driver, None where one of them is not installed."""
    found = shutil.which("chromium"), shutil.which("chromedriver")
    return (found[0], found[1]) if found[0] and found[1] else None


class Browser:
    """One browser with one page.  ``close`` ends all of its processes."""

    def __init__(self, folder: Path) -> None:
        there = programs()
        assert there is not None, "ask programs() first"
        self._profile = folder / "profile"
        options = webdriver.ChromeOptions()
        options.binary_location = there[0]
        for option in (*OPTIONS, f"--user-data-dir={self._profile}"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        # Its caches and fonts' caches are nobody else's.
        env = {**os.environ, "HOME": str(folder), "XDG_CACHE_HOME": str(folder / "cache")}
        self.driver = webdriver.Chrome(options=options, service=Service(there[1], env=env))

    def close(self) -> None:
        self.driver.quit()
        deadline = time.monotonic() + ENDS_WITHIN
        while left := list(self._processes()):
            if time.monotonic() > deadline:
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                break
            time.sleep(0.05)

    def _processes(self) -> Iterator[int]:
        """Return the processes with our profile, which no other browser has."""
        mark = str(self._profile).encode()
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    words = (entry / "cmdline").read_bytes()
                except OSError:  # it has ended
                    continue
                if mark in words and int(entry.name) != os.getpid():
                    yield int(entry.name)

    def open(
        self,
        url: str,
        *,
        width: int = 1280,
        height: int = 900,
        scheme: Literal["light", "dark"] = "light",
        media: str = "",
    ) -> None:
        """Open an address as a screen of that size shows it, with nothing remembered."""
        screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self.tell("Emulation.setDeviceMetricsOverride", screen)
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.tell("Emulation.setEmulatedMedia", {"media": media, "features": features})
        self.driver.get("about:blank")  # or another hash of the same page would load nothing
        self.messages()
        self.requests()
        self.driver.get(url)

    def js(self, script: str, *given: Any) -> Any:
        """Return the result of a function with this body."""
        return self.driver.execute_script(script, *given)

    def messages(self) -> list[str]:
        """Return the console's lines since the last call."""
        return [str(entry["message"]) for entry in self._log("browser")]

    def requests(self) -> list[str]:
        """Every address that was asked for since this was last asked."""
        events = [json.loads(entry["message"]) for entry in self._log("performance")]
        return [
            event["message"]["params"]["request"]["url"]
            for event in events
            if event["message"]["method"] == "Network.requestWillBeSent"
        ]

    def _log(self, name: str) -> list[dict[str, Any]]:
        get: Any = self.driver.get_log  # selenium has not typed it
        entries: list[dict[str, Any]] = get(name)
        return entries

    def shot(self, path: Path, *, height: int = 1600) -> Path:
        """A picture of the page from its top, or from where it is scrolled to."""
        size = self.js("return [innerWidth, document.documentElement.scrollHeight, scrollY]")
        clip = {"x": 0, "y": size[2], "width": size[0], "height": min(height, size[1]), "scale": 1}
        answer = self.tell("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})
        path.write_bytes(base64.b64decode(answer["data"]))
        return path

    def tell(self, command: str, given: dict[str, Any]) -> Any:
        """Give a command of the DevTools protocol."""
        return self.driver.execute_cdp_cmd(command, given)


def opened(folder: Path) -> Iterator[Browser]:
    """One browser for a fixture: a page takes tenths of a second, a browser seconds."""
    if programs() is None:
        pytest.skip("needs a browser: apt-get install chromium chromium-driver")
    made = Browser(folder)
    yield made
    made.close()
