"""The viewer's page in a real browser, from the disk and from its server: what is seen, and what is asked for."""

import threading
from collections.abc import Iterator

import numpy as np
import pytest
from browser import Browser, needs_browser
from image_samples import RECORD
from tissue_files import save
from view_files import HOSTILE, _closed_sockets, save_pyramid  # noqa: F401  (the fixture replaces the general one)

from pathorestore.slide.viewer import PAGE, write_view
from pathorestore.slide.viewer_images import View, open_view
from pathorestore.slide.viewer_server import ViewServer

pytest.importorskip("openslide", reason="the viewer reads slides with OpenSlide")
pytestmark = needs_browser

BEFORE, AFTER, LAYER = (40, 60, 200), (220, 120, 30), (20, 220, 60)


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    one = Browser(str(tmp_path_factory.mktemp("profile")))
    yield one
    one.driver.quit()


@pytest.fixture
def view(tmp_path) -> Iterator[View]:
    """A blue image before, an orange one after, with a bright grid so that places can be told, and a green layer."""

    def field(colour: tuple[int, int, int]) -> np.ndarray:
        image = np.full((1500, 3000, 3), colour, np.uint8)
        lines = np.arange(3000) % 300 < 8
        image[lines[:1500]] = image[:, lines] = 255
        return image

    record = RECORD.to_json().replace("sharpener", f"</script>{HOSTILE}")
    after = save_pyramid(tmp_path / f"{HOSTILE}.svs", field(AFTER), description=record)
    before = save_pyramid(tmp_path / "before.tif", field(BEFORE)[::2, ::2])
    layer = save(tmp_path / "layer.png", np.full((20, 30, 3), LAYER, np.uint8))
    with open_view(after, compare=before, layers={HOSTILE: layer}) as opened:
        yield opened


@pytest.fixture
def page(view, tmp_path, browser) -> Browser:
    write_view(view, tmp_path / f"a {HOSTILE} #1%20.view")
    browser.open((tmp_path / f"a {HOSTILE} #1%20.view" / PAGE).as_uri())
    return browser


def close(colour: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return bool(np.abs(np.subtract(colour, wanted)).max() < 12)


def test_the_page_opens_from_the_disk_and_asks_for_nothing_outside_its_folder(page, tmp_path):
    assert close(page.at(0.25), BEFORE)
    assert close(page.at(0.72), AFTER)
    asked = page.asked_for()
    tiles = [url for url in asked if url.endswith(".jpg")]
    assert len(tiles) > 4
    strangers = [url for url in asked if not url.startswith((tmp_path.as_uri(), "data:"))]
    assert strangers == []
    assert page.complaints() == []


def test_hostile_names_are_shown_and_not_run(page):
    assert page.run("return document.title") == f"{HOSTILE}.svs"
    assert page.run("return document.getElementById('title').textContent") == f"{HOSTILE}.svs"
    assert HOSTILE in page.run("return document.getElementById('record').textContent")
    assert HOSTILE in page.run("return document.getElementById('layers').textContent")
    assert page.run("return document.querySelectorAll('img, script[src]').length") == 0
    assert page.run("return document.getElementById('notice').checkVisibility()")
    assert page.run("return document.getElementById('notice').textContent") == "AI-restored, not for primary diagnosis"


def test_the_slider_moves_and_the_picture_with_it(page):
    page.drag_handle_to(0.2)
    assert close(page.at(0.25), AFTER)
    page.drag_handle_to(0.68)
    assert close(page.at(0.25), BEFORE)
    assert close(page.at(0.6), BEFORE)
    page.driver.find_element("id", "handle").send_keys("\ue011")  # Home
    page.settle()
    assert page.driver.find_element("id", "handle").get_attribute("aria-valuenow") == "0"
    assert close(page.at(0.25), AFTER)
    assert page.complaints() == []


def test_moving_the_slider_loads_nothing_new(page):
    page.press("+")
    page.asked_for()
    page.drag_handle_to(0.1)
    page.drag_handle_to(0.68)
    assert page.asked_for() == []


def test_both_images_stay_in_place_together_when_zoomed(page):
    def lines() -> np.ndarray:
        stage = page.screen()[150:-60, 60:900]
        return (stage.min(axis=2) > 200).mean(axis=0) > 0.5

    page.press("1")
    page.press("\ue014")  # arrow right
    page.press("b")
    before = np.flatnonzero(lines())
    page.press("a")
    after = np.flatnonzero(lines())
    assert 8 <= len(after) <= 32  # the grid, 300 px apart, is in sight
    assert all(np.abs(one - column).min() <= 2 for one, other in ((before, after), (after, before)) for column in other)
    assert page.run("return document.getElementById('zoom').textContent") == "100 %"


def test_keys_change_the_image_the_zoom_and_the_panels(page):
    page.press("a")
    assert close(page.at(0.25), AFTER)
    page.press("b")
    assert close(page.at(0.65), BEFORE)
    page.press("s")
    zoom = page.run("return document.getElementById('zoom').textContent")
    page.press("++")
    assert page.run("return document.getElementById('zoom').textContent") != zoom
    page.press("0")
    assert page.run("return document.getElementById('zoom').textContent") == zoom
    shown = page.run("return document.getElementById('record').hidden")
    page.press("p")
    assert page.run("return document.getElementById('record').hidden") is not shown
    assert page.complaints() == []


def test_a_layer_covers_the_image_as_far_as_it_is_opaque(page):
    page.click("#layers input[type=checkbox]")
    assert close(page.at(0.25), tuple(np.add(BEFORE, LAYER) // 2))
    page.run("const r = document.querySelector('#layers input[type=range]'); r.value = 100; r.dispatchEvent(new Event('input'))")
    page.settle()
    assert close(page.at(0.25), LAYER)
    assert page.complaints() == []


def test_the_scale_bar_is_as_long_as_it_says(page):
    page.press("1")
    text, width = page.run("const s = document.getElementById('scale'); return [s.textContent.trim(), s.querySelector('i').offsetWidth]")
    number, unit = text.split()
    assert unit == "µm"
    assert width == pytest.approx(float(number) / RECORD.pixel_um, abs=1)


def test_a_small_window_shows_every_control_without_scrolling(view, tmp_path, tmp_path_factory):
    write_view(view, tmp_path / "a.view")
    small = Browser(str(tmp_path_factory.mktemp("profile")), 800, 600)
    try:
        small.open((tmp_path / "a.view" / PAGE).as_uri())
        boxes = small.run(
            "return [...document.querySelectorAll('button:not([hidden]), #notice, #handle, #scale')]"
            ".map((e) => e.getBoundingClientRect()).map((b) => [b.left, b.top, b.right, b.bottom, innerWidth, innerHeight])"
        )
        assert len(boxes) > 10
        assert all(0 <= left < right <= width and 0 <= top < bottom <= height for left, top, right, bottom, width, height in boxes)
        assert small.run("return document.documentElement.scrollWidth <= innerWidth")
    finally:
        small.driver.quit()


def test_the_served_page_looks_the_same_and_asks_only_its_server(view, browser):
    with ViewServer(view) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            browser.open(server.url)
            assert close(browser.at(0.25), BEFORE)
            assert close(browser.at(0.72), AFTER)
            asked = browser.asked_for()
            assert [url for url in asked if not url.startswith((server.url, "data:"))] == []
            assert browser.complaints() == []
        finally:
            browser.driver.get("about:blank")
            server.shutdown()
            thread.join()
