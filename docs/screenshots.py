"""Takes the pictures in docs/images: starts the demo, lets the day run to the storm, and photographs the board.

    python docs/screenshots.py [--speed N]

Needs Chromium (apt-get install chromium) and the extras `demo` and `test`.
"""

from __future__ import annotations

import argparse
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ROOT / "docs" / "images"
HOUR = "19"
"""The hour on the board's clock at which the pictures are taken: the storm is at its height."""

PICTURES = {
    "dashboard": {"viewport": {"width": 1440, "height": 900}, "color_scheme": "light"},
    "dashboard-dark": {"viewport": {"width": 1440, "height": 900}, "color_scheme": "dark"},
    "dashboard-phone": {"viewport": {"width": 390, "height": 1240}, "color_scheme": "light", "device_scale_factor": 2},
    "dashboard-wall": {"viewport": {"width": 1920, "height": 1080}, "color_scheme": "dark"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--speed", default="1200")
    speed = parser.parse_args().speed
    demo = subprocess.Popen(
        [sys.executable, "manage.py", "demo", "--speed", speed], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        photograph(address(demo))
    finally:
        demo.send_signal(signal.SIGINT)
        demo.wait(20)


def address(demo: subprocess.Popen[str]) -> str:
    """The URL that the demo prints."""
    for line in demo.stdout or []:
        if found := re.search(r"http://\S+", line):
            return found[0]
    raise SystemExit("The demo ended without printing its address.")


def photograph(url: str) -> None:
    IMAGES.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])
        for name, options in PICTURES.items():
            picture(browser, url, name, options)
        browser.close()


def picture(browser: Browser, url: str, name: str, options: dict[str, object]) -> None:
    # Reduced motion: a picture taken in the middle of an animation shows neither what was nor what is.
    page = browser.new_page(reduced_motion="reduce", **options)  # type: ignore[arg-type]
    page.set_default_timeout(120_000)
    page.goto(url)
    page.wait_for_selector('.live[data-state="live"]')
    # The first picture waits for its hour; by then the others' hour is there too, or has just passed.
    page.wait_for_function("hour => document.querySelector('#clock .time').textContent.slice(0, 2) >= hour", arg=HOUR)
    page.wait_for_function("() => document.querySelectorAll('#feed li').length >= 12")
    page.screenshot(path=IMAGES / f"{name}.png")
    page.close()


if __name__ == "__main__":
    main()
