"""The report in a real browser, opened from the disk: what is seen, what the comparer does, and what hostile names come to."""

import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from browser import Browser, needs_browser
from report_samples import COLUMNS, METHODS, made_rows, made_summary
from tissue_files import save, tissue
from view_files import _closed_sockets  # noqa: F401  (the fixture replaces the general one)

from pathorestore import cli
from pathorestore.evaluation.report import write_report
from pathorestore.evaluation.report_format import visible
from pathorestore.evaluation.results import PictureSet, Summary

pytest.importorskip("matplotlib", reason="the plots of a report need matplotlib, of the extra report")
pytestmark = needs_browser

HOSTILE = ("<script>alert(1)</script>.png", '"><img src=x onerror=alert(1)>', "{{title}}</script>\u2028", os.fsdecode(b"\xff.tif"))
COLOURS = {"clean": (40, 160, 60), "degraded": (40, 60, 200), "two-stage": (220, 120, 30)}
PIXEL_UM, SIDE_PX = 0.25, 200
ARROW_LEFT, ARROW_RIGHT, HOME = "\ue012", "\ue014", "\ue011"


@pytest.fixture(scope="module")
def browser(tmp_path_factory) -> Iterator[Browser]:
    one = Browser(str(tmp_path_factory.mktemp("profile")), 1280, 1000, stage="stage")
    yield one
    one.driver.quit()


def picture(folder: Path, name: str, colour: tuple[int, int, int]) -> Path:
    """One colour with a dark bar and a dark row, so that places can be told."""
    image = np.full((SIDE_PX, SIDE_PX, 3), colour, np.uint8)
    image[:, 60:64] = image[160:164] = 0
    return save(folder / f"{name}.png", image)


def cases(folder: Path, names: tuple[str, str] = ("first", "second")) -> list[PictureSet]:
    scores = {"degraded": {"psnr_db": 21.5}, "two-stage": {"psnr_db": 28.25}}
    found = []
    for index, name in enumerate(names):
        shown = {label: tuple(np.clip(np.array(colour) + 35 * index, 0, 255)) for label, colour in COLOURS.items()}
        pictures = {label: picture(folder, f"{index}-{label}", colour) for label, colour in shown.items()}
        pixel_um = PIXEL_UM if index == 0 else None
        found.append(
            PictureSet(case=name, degraded_by="z 1.6 \u00b5m", why=f"why {name}", pictures=pictures, scores=scores, pixel_um=pixel_um)
        )
    return found


@pytest.fixture(scope="module")
def summary() -> Summary:
    rows = made_rows((METHODS[0], METHODS[-1]), COLUMNS, images=4, distances=(0.8, 1.6))
    return made_summary(rows, (METHODS[0], METHODS[-1]), COLUMNS, agreements=(), risk=(), bins=())


@pytest.fixture(scope="module")
def report(summary, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    rows = made_rows(summary.methods, COLUMNS[:2], images=4, distances=(0.8, 1.6))
    write_report(folder / "a #1%20.html", summary, rows, cases(folder))
    return folder / "a #1%20.html"


@pytest.fixture
def page(report, browser) -> Browser:
    browser.open(report.as_uri())
    browser.run("document.getElementById('images').scrollIntoView()")
    browser.settle()
    return browser


def close(colour: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    return bool(np.abs(np.subtract(colour, wanted)).max() < 12)


def text_of(page: Browser, name: str) -> str:
    return str(page.run("return document.getElementById(arguments[0]).textContent", name))


def choose(page: Browser, selector: str, label: str) -> None:
    from selenium.webdriver.support.ui import Select

    Select(page.driver.find_element("css selector", selector)).select_by_visible_text(label)
    page.settle()


def to_stage(page: Browser, keys: str) -> None:
    page.driver.find_element("id", "stage").send_keys(keys)
    page.settle()


def drag(page: Browser, name: str, right_px: int, down_px: int = 0) -> None:
    from selenium.webdriver.common.action_chains import ActionChains

    actions = ActionChains(page.driver)
    actions.move_to_element_with_offset(page.driver.find_element("id", name), 0, 10 if name == "handle" else 120).click_and_hold()
    actions.move_by_offset(right_px, down_px).release().perform()
    page.settle()


def bar(page: Browser) -> tuple[float, float]:
    """Where the middle of the dark bar lies in the stage, and how wide it is, in px, looked for above the middle."""
    box = page.run("const b = document.getElementById('stage').getBoundingClientRect(); return [b.x, b.y, b.width, b.height]")
    line = page.screen()[int(box[1] + 0.45 * box[3]), int(box[0]) : int(box[0] + box[2])]
    image = np.flatnonzero(line.max(axis=1) > 60)
    dark = [x for x in np.flatnonzero(line.max(axis=1) < 12) if image[0] < x < image[-1]]
    return float(np.mean(dark)), float(len(dark))


def test_the_report_opens_from_the_disk_asks_for_nothing_and_complains_of_nothing(report, browser, tmp_path):
    browser.open(report.as_uri())
    asked = [url for url in browser.asked_for() if not url.startswith("data:")]
    assert asked == [report.as_uri()]
    assert browser.complaints() == []
    assert browser.run("return [...document.images].every((image) => !image.src || image.complete && image.naturalWidth > 0)")
    browser.driver.save_screenshot(str(tmp_path / "report.png"))
    assert (tmp_path / "report.png").stat().st_size > 10_000


def test_the_slider_splits_the_pictures_by_pointer_and_by_key(page):
    assert close(page.at(0.4), COLOURS["degraded"])
    assert close(page.at(0.6), COLOURS["two-stage"])
    drag(page, "handle", -200)
    assert close(page.at(0.4), COLOURS["two-stage"])
    drag(page, "handle", 350)
    assert close(page.at(0.6), COLOURS["degraded"])
    handle = page.driver.find_element("id", "handle")
    before = int(handle.get_attribute("aria-valuenow"))
    handle.send_keys(ARROW_LEFT * 3)
    page.settle()
    assert int(handle.get_attribute("aria-valuenow")) == before - 6
    handle.send_keys(HOME)
    page.settle()
    assert handle.get_attribute("aria-valuenow") == "0"
    assert close(page.at(0.35), COLOURS["two-stage"])
    assert page.complaints() == []


def test_case_and_pictures_are_chosen_and_their_scores_stand_below(page):
    assert "28.25" in text_of(page, "case-scores")
    assert "21.50" in text_of(page, "case-scores")
    choose(page, "#left", "clean")
    assert close(page.at(0.4), COLOURS["clean"])
    assert "21.50" not in text_of(page, "case-scores")
    page.click("#swap")
    assert close(page.at(0.4), COLOURS["two-stage"])
    assert close(page.at(0.6), COLOURS["clean"])
    page.click("#cases li:nth-child(2) button")
    assert close(page.at(0.4), tuple(np.array(COLOURS["two-stage"]) + 35))  # the choice stays
    assert page.run("return document.querySelectorAll('#cases [aria-current=true]').length") == 1
    assert text_of(page, "why") == "second, z 1.6 µm: why second"
    assert page.run("return document.getElementById('scale').hidden")


def test_both_pictures_zoom_and_move_together(page):
    fitted = text_of(page, "zoom")
    to_stage(page, "1")
    assert text_of(page, "zoom") == "100 %"
    middle, width = bar(page)
    assert width == pytest.approx(4, abs=1)
    to_stage(page, "+")
    assert text_of(page, "zoom") == "150 %"
    to_stage(page, ARROW_RIGHT)
    drag(page, "stage", 37)
    moved, width = bar(page)
    stage_px = page.run("return document.getElementById('stage').clientWidth")
    assert width == pytest.approx(6, abs=1)
    assert moved - stage_px / 2 == pytest.approx(1.5 * (middle - stage_px / 2) - 60 + 37, abs=2)
    page.driver.find_element("id", "handle").send_keys(HOME)  # now the other picture is seen there
    page.settle()
    assert bar(page)[0] == pytest.approx(moved, abs=1)
    to_stage(page, "0")
    assert text_of(page, "zoom") == fitted
    assert page.complaints() == []


def test_the_wheel_zooms_about_the_pointer_and_pixels_stay_sharp(page):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.actions.wheel_input import ScrollOrigin

    to_stage(page, "1")
    before, _ = bar(page)
    stage_px = page.run("return document.getElementById('stage').clientWidth")
    origin = ScrollOrigin.from_element(page.driver.find_element("id", "stage"), round(before - stage_px / 2), -100)
    ActionChains(page.driver).pause(0.4).scroll_from_origin(origin, 0, -400).perform()
    page.settle()
    assert int(text_of(page, "zoom").split()[0]) == pytest.approx(100 * 1.0015**400, abs=2)
    assert bar(page)[0] == pytest.approx(before, abs=3)
    assert page.run("return getComputedStyle(document.getElementById('left-image')).imageRendering") == "pixelated"


def test_the_scale_bar_is_as_long_as_it_says(page):
    to_stage(page, "1")
    text, width = page.run("const s = document.getElementById('scale'); return [s.textContent.trim(), s.querySelector('i').offsetWidth]")
    number, unit = text.split()
    assert unit == "µm"
    assert width == pytest.approx(float(number) / PIXEL_UM, abs=1)


def test_one_figure_is_shown_at_a_time_and_all_can_be_chosen(page):
    shown = "return [...document.querySelectorAll('#distributions figure')].map((figure) => figure.checkVisibility())"
    assert page.run(shown) == [True, False]
    choose(page, "#distributions select", "SSIM")
    assert page.run(shown) == [False, True]


def test_measures_are_chosen_where_there_are_many(summary, browser, tmp_path):
    columns = (*COLUMNS, *(replace(COLUMNS[0], key=f"more{index}", label=f"More {index}") for index in range(3)))
    write_report(tmp_path / "many.html", replace(summary, columns=columns), [], [])
    browser.open((tmp_path / "many.html").as_uri())
    visible_rows = "return [...document.querySelectorAll('[data-column=\"1\"]')].filter((row) => row.checkVisibility()).length"
    assert browser.run(visible_rows) == 2  # in the scores and in the differences
    browser.click(".columns summary")
    browser.click(".columns label:nth-child(2) input")
    assert browser.run(visible_rows) == 0
    assert not browser.run("return document.getElementById('images').checkVisibility()")
    assert browser.complaints() == []


def test_hostile_names_are_shown_and_not_run(summary, browser, tmp_path):
    methods = (HOSTILE[0], HOSTILE[2])
    rows = made_rows(methods, COLUMNS[:1], images=3, distances=(0.8,))
    hostile = made_summary(
        rows, methods, COLUMNS[:1], title=HOSTILE[1], agreements=(), risk=(), failures=(HOSTILE[1:],), run={HOSTILE[1]: HOSTILE[3]}
    )
    (first, second) = cases(tmp_path, (HOSTILE[1], HOSTILE[3]))
    pictures = dict(zip(methods, first.pictures.values(), strict=False))
    write_report(tmp_path / "hostile.html", hostile, rows, [replace(one, why=HOSTILE[0], pictures=pictures) for one in (first, second)])
    browser.open((tmp_path / "hostile.html").as_uri())
    assert browser.run("return document.title") == HOSTILE[1]
    text = str(browser.run("return document.body.textContent"))
    assert all(visible(name) in text for name in HOSTILE)
    browser.run("document.getElementById('images').scrollIntoView()")
    browser.click("#cases li:nth-child(2) button")
    assert text_of(browser, "why").startswith("\\xff.tif, z 1.6 µm: <script>alert(1)</script>")
    assert browser.run("return [...document.querySelectorAll('#left option')].map((option) => option.textContent)") == [
        visible(name) for name in methods
    ]
    assert browser.run("return document.querySelectorAll('[onerror], [src=x], script[src]').length") == 0
    assert browser.run("return document.scripts.length") == 2
    assert [url for url in browser.asked_for() if not url.startswith("data:")] == [(tmp_path / "hostile.html").as_uri()]
    assert browser.complaints() == []


def test_tables_and_plots_are_there_without_javascript_and_the_comparer_says_what_it_needs(report, browser):
    browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    try:
        browser.driver.get(report.as_uri())
        seen = browser.driver.find_element("tag name", "body").text
        figures = browser.driver.find_elements("css selector", "#distributions img")
        assert all(figure.is_displayed() for figure in figures)
        assert len(figures) == 2
        assert not browser.driver.find_element("id", "comparer").is_displayed()
        assert "Comparing images needs JavaScript." in seen
        assert "AI-restored, not for primary diagnosis" in seen
    finally:
        browser.driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})


@pytest.mark.parametrize("width", [900, 1280, 1900])
def test_nothing_is_wider_than_the_window(report, browser, width):
    browser.driver.set_window_size(width, 900)
    try:
        browser.open(report.as_uri())
        assert browser.run("return document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        boxes = browser.run(
            "const edges = (e) => { const box = e.getBoundingClientRect(); return [box.left, box.right]; };"
            "return [...document.querySelectorAll('button, #handle, h1')].map(edges)"
        )
        assert all(0 <= left < right <= width for left, right in boxes)
    finally:
        browser.driver.set_window_size(1280, 1000)


def judged(clean: Path, out: Path, *words: str) -> Path:
    """The report of all five methods on simulated defocus, by the command."""
    methods = ("--baseline", "degraded", "unsharp", "wiener", "--coarse", "coarse=default", "--model", "two-stage=default", "--risk")
    metrics = ("--metrics", "psnr", "nuclei", "nuclei_objects", "-q")
    assert cli.main(["evaluate", "--clean", str(clean), "-o", str(out), *methods, *metrics, *words]) == 0
    return out / "report.html"


def slide_over(browser: Browser, page: Path, picture: Path) -> None:
    """Open a report, compare the degraded with the restored image, and see the slider change what is shown."""
    browser.open(page.as_uri())
    browser.run("document.getElementById('images').scrollIntoView()")
    choose(browser, "#left", "degraded")
    choose(browser, "#right", "two-stage")
    before = browser.screen()
    drag(browser, "handle", 250)
    after = browser.screen()
    browser.driver.save_screenshot(str(picture))
    assert np.abs(before - after).max() > 30
    assert browser.complaints() == []
    assert [url for url in browser.asked_for() if not url.startswith("data:")] == [page.as_uri()]


def test_a_whole_evaluation_is_looked_at_in_the_browser(browser, tmp_path):
    for seed in (0, 1):
        save(tmp_path / "clean" / f"{seed}.png", tissue(seed, 128, 128))
    page = judged(tmp_path / "clean", tmp_path / "out", "--simulate", "0.8", "2.4", "--tile", "128")
    slide_over(browser, page, tmp_path / "screen.png")
    text = browser.run("return document.body.innerText")
    assert all(name in text for name in ("degraded", "unsharp mask", "Wiener, PSF known", "coarse", "two-stage", "Risk maps", "Agreement"))


@pytest.mark.real_data
@pytest.mark.skipif("PATHORESTORE_DATA" not in os.environ, reason="PATHORESTORE_DATA is not set")
def test_an_evaluation_of_real_images_is_looked_at_in_the_browser(browser, tmp_path):
    words = ("--simulate", "0.8", "1.6", "2.4", "3.2", "--crop", "256", "--limit", "3")
    slide_over(browser, judged(Path(os.environ["PATHORESTORE_DATA"]), tmp_path / "out", *words), tmp_path / "screen.png")
