"""Takes the pictures in docs/images: starts the demo, sets its clock to the storm, and photographs the pages.

    python docs/screenshots.py [--only dashboard,durable]

Needs Chromium (apt-get install chromium) and the extras `demo` and `test`.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from playwright.sync_api import Browser, Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
STORM = 510
"""Thousandths of the day at which the pictures are taken: the storm is at its height."""

LIVE = ".live[data-state=live], .pg-live[data-state=live]"


@dataclass(frozen=True)
class Picture:
    """What is photographed, and how."""

    path: str
    width: int
    height: int
    dark: bool = False
    scale: int = 1
    before: Callable[[Page], None] = lambda page: None
    whole: bool = False
    """Whether what does not fit the screen is on it, too."""


def follow(page: Page) -> None:
    page.click("#journey button")
    page.wait_for_selector("#journey[data-done=true]")


def fail(page: Page) -> None:
    """Some events that are dead, some that are tried again."""
    page.wait_for_selector("[data-group=hotels] .badge.good")
    page.click("#act-hotel")
    page.wait_for_selector("#act-hotel:not(.quiet-button)")
    page.click("#act-cancel")
    page.wait_for_selector("[data-list=dead] .why >> nth=4")
    page.click("#act-cancel")
    page.wait_for_selector("[data-list=parked] .why >> nth=2")


PICTURES = {
    "dashboard": Picture("", 1440, 900),
    "dashboard-dark": Picture("", 1440, 900, dark=True),
    "dashboard-phone": Picture("", 390, 1240, scale=2),
    "dashboard-wall": Picture("", 1920, 1080, dark=True),
    "changelist": Picture("admin/flights/flight/?status__exact=departed", 1440, 900),
    "journey": Picture("journey/", 1280, 900, before=follow, whole=True),
    "durable": Picture("durable/", 1280, 760, before=fail),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PICTURES), help="names, with commas between")
    names = parser.parse_args().only.split(",")
    demo = subprocess.Popen(
        [sys.executable, "manage.py", "demo", "--speed", "0"], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        photograph(address(demo), names)
    finally:
        demo.send_signal(signal.SIGINT)
        demo.wait(20)


def address(demo: subprocess.Popen[str]) -> str:
    """The URL that the demo prints."""
    for line in demo.stdout or []:
        if found := re.search(r"http://\S+", line):
            return found[0]
    raise SystemExit("The demo ended without printing its address.")


def photograph(url: str, names: list[str]) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        set_clock(browser, url)
        for name in names:
            take(browser, url, name, PICTURES[name])
        browser.close()


def set_clock(browser: Browser, url: str) -> None:
    page = browser.new_page()
    page.set_default_timeout(60_000)
    page.goto(url)
    page.wait_for_selector(LIVE)
    page.evaluate("part => flights.post(document.getElementById('controls').dataset.url, { jump: part / 1000 })", STORM)
    page.wait_for_function("() => Number(document.querySelector('[data-tile=arrived] .value').textContent) > 300")
    page.close()


def take(browser: Browser, url: str, name: str, picture: Picture) -> None:
    # Reduced motion: a picture taken in the middle of an animation shows neither what was nor what is.
    page = browser.new_page(
        viewport={"width": picture.width, "height": picture.height},
        color_scheme="dark" if picture.dark else "light",
        device_scale_factor=picture.scale,
        reduced_motion="reduce",
    )
    page.set_default_timeout(60_000)
    page.goto(url)
    page.goto(url + picture.path)
    page.wait_for_selector(LIVE)
    page.wait_for_load_state("networkidle")
    picture.before(page)
    page.mouse.move(0, 0)
    page.evaluate("document.activeElement.blur()")
    page.screenshot(path=IMAGES / f"{name}.png", full_page=picture.whole)
    page.close()


if __name__ == "__main__":
    main()
