"""A real browser for the tests of pages: what is seen, and what is asked for."""

import io
import json
import shutil
import time

import numpy as np
import pytest
from PIL import Image

BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
DRIVER = shutil.which("chromedriver")
webdriver = pytest.importorskip("selenium.webdriver", reason="steering a browser needs selenium, of the extra dev")
needs_browser = pytest.mark.skipif(not (BROWSER and DRIVER), reason="needs chromium and chromedriver on the PATH")

OPTIONS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-proxy-server",
)


class Browser:
    """A page as a user sees it, and what it has asked for. stage: id of the element in which images are shown."""

    def __init__(self, profile: str, width: int = 1280, height: int = 800, *, stage: str = "slide"):
        from selenium.webdriver.chrome.options import Options
        from selenium.webdriver.chrome.service import Service

        options = Options()
        options.binary_location = BROWSER
        for option in (*OPTIONS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(option)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        self.stage = stage
        self.driver = webdriver.Chrome(options=options, service=Service(DRIVER))

    def open(self, url: str) -> None:
        self.driver.get("about:blank")
        self.asked_for()  # what the browser asked for before, its own pages among it
        self.complaints()
        self.driver.get(url)
        self.settle()

    def settle(self) -> None:
        """Wait until the page says that all is there and the picture stands still."""
        limit, last = time.monotonic() + 30, None
        while time.monotonic() < limit:
            shot = self.driver.get_screenshot_as_png()
            if self.run("return document.documentElement.dataset.state") == "shown" and shot == last:
                return
            last = shot
            time.sleep(0.15)
        raise AssertionError("the page did not come to rest")

    def run(self, script: str, *arguments: object) -> object:
        return self.driver.execute_script(script, *arguments)

    def screen(self) -> np.ndarray:
        with Image.open(io.BytesIO(self.driver.get_screenshot_as_png())) as image:
            return np.array(image.convert("RGB")).astype(int)

    def at(self, x: float, y: float = 0.3) -> tuple[int, ...]:
        """The colour of the stage at a share of its width and height."""
        box = self.run(
            "const b = document.getElementById(arguments[0]).getBoundingClientRect(); return [b.x, b.y, b.width, b.height]", self.stage
        )
        shot = self.screen()
        return tuple(shot[int(box[1] + y * box[3]), int(box[0] + x * box[2])].tolist())

    def press(self, keys: str) -> None:
        self.driver.find_element("tag name", "body").send_keys(keys)
        self.settle()

    def click(self, selector: str) -> None:
        self.driver.find_element("css selector", selector).click()
        self.settle()

    def drag_handle_to(self, x: float) -> None:
        from selenium.webdriver.common.action_chains import ActionChains

        handle = self.driver.find_element("id", "handle")
        middle, width = self.run("const b = arguments[0].getBoundingClientRect(); return [b.x + b.width / 2, innerWidth]", handle)
        ActionChains(self.driver).drag_and_drop_by_offset(handle, round(x * width - middle), 0).perform()
        self.settle()

    def asked_for(self) -> list[str]:
        """The address of every request since this was last called."""
        events = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        return [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser")]
