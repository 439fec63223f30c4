"""A headless Chromium, driven by the words of WebDriver; for tests of pages."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

_ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # WebDriver's name for a reference
_PORT = re.compile(r"started successfully on port (\d+)")


def is_there() -> bool:
    return shutil.which("chromium") is not None and shutil.which("chromedriver") is not None


class Browser:
    """One window."""

    def __init__(self, session_url: str) -> None:
        self._url = session_url

    def open(self, address: str) -> None:
        self._ask("POST", "url", {"url": address})

    def address(self) -> str:
        return str(self._ask("GET", "url"))

    def text(self) -> str:
        """Return the text of the page as a reader sees it."""
        return str(self._ask("GET", f"{self._find('body')}/text"))

    def fill(self, selector: str, text: str) -> None:
        self._ask("POST", f"{self._find(selector)}/value", {"text": text})

    def click(self, selector: str) -> None:
        self._ask("POST", f"{self._find(selector)}/click", {})

    def run(self, script: str) -> Any:
        """Return what a script of the test's returns; the page's own policy is not asked."""
        return self._ask("POST", "execute/sync", {"script": script, "args": []})

    def cookies(self) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self._ask("GET", "cookie")
        return found

    def prefer(self, scheme: str) -> None:
        """Have the user prefer a color scheme, "light" or "dark"."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self._tell("Emulation.setEmulatedMedia", {"features": features})

    def resize(self, width: int, height: int) -> None:
        """Have the page laid out for a screen of this size, which may be a phone's."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self._tell("Emulation.setDeviceMetricsOverride", size)

    def save_downloads(self, directory: Path) -> None:
        where = {"behavior": "allow", "downloadPath": str(directory)}
        self._tell("Browser.setDownloadBehavior", where)

    def press(self, *keys: str) -> None:
        """Press keys one after the other, wherever the focus is."""
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        body = {"actions": [{"type": "key", "id": "keyboard", "actions": actions}]}
        self._ask("POST", "actions", body)

    def console(self) -> list[str]:
        """Return what the browser said against the page since it was asked last."""
        return [each["message"] for each in self._ask("POST", "se/log", {"type": "browser"})]

    def _tell(self, command: str, parameters: dict[str, Any]) -> None:
        """Send a command of the protocol for Chromium's own tools."""
        self._ask("POST", "goog/cdp/execute", {"cmd": command, "params": parameters})

    def _find(self, selector: str) -> str:
        found = self._ask("POST", "element", {"using": "css selector", "value": selector})
        return f"element/{found[_ELEMENT]}"

    def _ask(self, method: str, what: str, body: Any = None) -> Any:
        answer = requests.request(method, f"{self._url}/{what}", json=body, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()["value"]


@contextlib.contextmanager
def browser(directory: Path) -> Iterator[Browser]:
    """Give a browser that keeps its files in a directory, until the end of the block."""
    options = {"args": ["--headless=new", "--no-sandbox", f"--user-data-dir={directory}"]}
    wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}}
    with subprocess.Popen(
        ["chromedriver", "--port=0"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HOME": str(directory)},
        text=True,
    ) as driver:
        try:
            assert driver.stdout is not None
            found = next(filter(None, map(_PORT.search, driver.stdout)))
            url = f"http://127.0.0.1:{found[1]}/session"
            answer = requests.post(url, json={"capabilities": {"alwaysMatch": wanted}}, timeout=120)
            assert answer.status_code == 200, answer.text
            session_url = f"{url}/{answer.json()['value']['sessionId']}"
            try:
                yield Browser(session_url)
            finally:
                requests.delete(session_url, timeout=60)
        finally:
            driver.terminate()
