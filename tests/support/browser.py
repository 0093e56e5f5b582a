"""A headless Chromium for tests of pages."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PHONE_PX = (390, 844)
DESKTOP_PX = (1280, 900)
WAIT_S = 60


def missing() -> str | None:
    """Why no browser can be started here; None where one can."""
    if _program("CHROMIUM", "chromium", "chromium-browser", "google-chrome") is None:
        return "no Chromium on this machine (apt-get install chromium chromium-driver)"
    if _program("CHROMEDRIVER", "chromedriver") is None:
        return "no chromedriver on this machine (apt-get install chromium-driver)"
    return None


@contextmanager
def chromium() -> Iterator[Any]:
    """Selenium's driver of one that talks to nobody; gone afterwards."""
    selenium = pytest.importorskip("selenium.webdriver", reason="selenium is not installed (pip install -e '.[test]')")
    options = selenium.ChromeOptions()
    options.binary_location = _program("CHROMIUM", "chromium", "chromium-browser", "google-chrome")
    # As root, and where /dev/shm is small, as in containers, Chromium starts with these alone.
    for argument in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-background-networking"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = selenium.Chrome(options, selenium.ChromeService(_program("CHROMEDRIVER", "chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def show(driver: Any, page: Path, size_px: tuple[int, int] = DESKTOP_PX, scheme: str = "light") -> None:
    """Open a page from the disk on a screen of this size and in this colour scheme."""
    width, height = size_px
    screen = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size_px == PHONE_PX}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    prefer(driver, scheme)
    driver.get(page.resolve().as_uri())


def prefer(driver: Any, scheme: str) -> None:
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def scroll_to(driver: Any, selector: str) -> None:
    driver.execute_script(
        "document.querySelector(arguments[0]).scrollIntoView({block: 'center', behavior: 'instant'})", selector
    )


def until(driver: Any, script: str, *arguments: object) -> Any:
    """What a script gives when it gives something true."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(driver, WAIT_S).until(lambda waiting: waiting.execute_script(script, *arguments))


def drawn(driver: Any, figure: str) -> None:
    """Scroll to a figure and wait until it is drawn."""
    selector = f"#plot-{figure}"
    scroll_to(driver, selector)
    until(
        driver,
        "const p = document.querySelector(arguments[0]); return Boolean(p.dataset.drawn && p.calcdata)",
        selector,
    )


def complaints(driver: Any) -> list[str]:
    """What the console says since it was asked last."""
    return [f"{entry['level']}: {entry['message']}" for entry in driver.get_log("browser")]


def _program(variable: str, *names: str) -> str | None:
    own = os.environ.get(variable)
    return own or next((found for name in names if (found := shutil.which(name))), None)
