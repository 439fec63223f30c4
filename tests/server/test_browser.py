"""The pages in a real browser. Skipped where there is no Chromium with its chromedriver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.test_accounts import password_of
from tests.support.browser import Browser, browser, is_there
from tests.support.mount_daemons import wait_for
from tests.support.servers import ServerHandle, upload

pytestmark = pytest.mark.skipif(not is_there(), reason="needs chromium and chromium-driver")
TAB, ENTER = "\ue004", "\ue007"
HOSTILE = "<script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">"
FRAMED_ALERT = "<iframe srcdoc=\"<script>parent.document.title='taken'</script>\"></iframe>"

# The lowest ratio of contrast that any text has with what is behind it, as WCAG 2 has it.
LOWEST_CONTRAST = """
const luminance = colour => {
  const parts = colour.match(/[\\d.]+/g).slice(0, 3).map(value => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
};
const behind = element => {
  const colour = getComputedStyle(element).backgroundColor;
  if (colour !== 'rgba(0, 0, 0, 0)') return colour;
  return element.parentElement ? behind(element.parentElement) : 'rgb(255, 255, 255)';
};
const ratios = [...document.querySelectorAll('body *')].map(element => {
  const [a, b] = [luminance(getComputedStyle(element).color), luminance(behind(element))];
  return (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
});
return Math.min(...ratios);
"""


@pytest.fixture(scope="module")
def window(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with browser(tmp_path_factory.mktemp("chromium")) as window:
        yield window


@pytest.fixture(scope="module")
def address(server: ServerHandle) -> str:
    contents = {"images/a long path/of an item/that breaks/on a phone.tif": b"x" * 1000}
    readme = f"description: {HOSTILE}\nother: >\n  {FRAMED_ALERT}\n".encode()
    uri = upload(
        server,
        contents,
        readme=readme,
        name="seen-in-a-browser",
        creator_username=HOSTILE,
        annotations={"hostile": HOSTILE},
    )
    return f"{server.url}/browse/dataset/{uri.replace('://', '/')}"


def test_a_dataset_is_found_and_saved_in_a_browser_by_keyboard(
    server: ServerHandle, window: Browser, address: str, tmp_path: Path
) -> None:
    window.open(address)
    window.fill("#username", server.username)
    window.fill("#password", password_of(server))
    window.press(ENTER)
    shown = window.text()

    assert window.address() == address
    assert window.run("return document.title") == "seen-in-a-browser - dserver"
    assert shown.count("document.title") >= 3
    assert "seen-in-a-browser" in shown
    assert window.run("return document.cookie") == ""
    assert all("401" in said for said in window.console())  # nothing but the page before the login

    window.press(TAB)
    assert window.run("return document.activeElement.textContent") == "Skip to the content"
    window.save_downloads(tmp_path)
    window.click("tbody a")
    saved = tmp_path / "on a phone.tif"
    wait_for(lambda: saved.exists() and saved.stat().st_size, "the download")
    assert saved.read_bytes() == b"x" * 1000


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 1200])
def test_pages_can_be_read_on_each_screen_in_each_scheme(
    server: ServerHandle, window: Browser, address: str, scheme: str, width: int
) -> None:
    window.prefer(scheme)
    window.resize(width, 800)
    for page in (address, f"{server.url}/", f"{server.url}/browse/dataset/s3/none/none"):
        window.open(page)

        needed, there = window.run(
            "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
        )
        assert needed <= there, page
        assert window.run(LOWEST_CONTRAST) >= 4.5, page
