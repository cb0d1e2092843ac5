"""The report of an evaluation as a file: what stands in it, how numbers are written, and what hostile names come to."""

import base64
import hashlib
import json
import math
import os
import re
import sys
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from report_samples import COLUMNS, METHODS, made_pictures, made_rows, made_summary

from pathorestore.evaluation import plots
from pathorestore.evaluation.plots import OKABE_ITO, colours, degradation_curves, distributions
from pathorestore.evaluation.report import page_data, report_html, write_report
from pathorestore.evaluation.report_format import bounds, decimals_for, escaped, number, p_value, visible
from pathorestore.evaluation.report_tables import best_methods, comparison_table, failure_list, flat, glance, score_table
from pathorestore.evaluation.results import Bin, Column, PictureSet, Score, ScoreRow, Summary
from pathorestore.metrics.statistics import Interval

pytest.importorskip("matplotlib", reason="the plots of a report need matplotlib, of the extra report")

HOSTILE = (
    "<script>alert(1)</script>.png",
    '"><img src=x onerror=alert(1)>',
    "{{title}} $x_1$ \\$ %(a)s",
    "</script></style></title><!--\u2028 'quoted' &lt;",
    os.fsdecode(b"caf\xff \x00\x1b[31m\n.tif") + "\u202e",
)
TAME = ("one", "two", "three", "four", "five")


class Parsed(HTMLParser):
    """What a browser makes of a page: elements with their attributes, and text."""

    def __init__(self, page: str):
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text: list[str] = []
        self.comments: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text.append(data)

    def handle_comment(self, data):
        self.comments.append(data)

    def of(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def named(names: tuple[str, ...], folder: Path) -> tuple[Summary, list[ScoreRow], list[PictureSet]]:
    """A small evaluation in which every text is one of these names."""
    columns = tuple(replace(column, label=names[2], note=names[1], unit=names[3]) for column in COLUMNS[:1])
    rows = [replace(row, case=names[0] + row.case) for row in made_rows(names, columns, images=6, distances=(0.8, 1.6))]
    agreements = made_summary(rows, names, columns).agreements[:2]
    summary = made_summary(
        rows,
        names,
        columns,
        title=names[0],
        agreements=tuple(replace(one, quantity=names[1], label=names[1], unit=names[2]) for one in agreements),
        risk=(replace(made_summary(rows, names, columns).risk[0], method=names[2]),),
        set_scores=tuple((names[1], name, 1.5, names[0]) for name in names),
        left_out={names[0]: names[1]},
        failures=(names[2:],),
        run={names[0]: names[1], names[2]: {names[3]: [names[4]]}, "date": names[1]},
    )
    pictures = made_pictures(folder, count=1, side_px=64, methods=names)
    return summary, rows, [replace(one, case=names[0], why=names[1]) for one in pictures]


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory) -> str:
    return report_html(*named(HOSTILE, tmp_path_factory.mktemp("hostile")))


@pytest.fixture(scope="module")
def tame_page(tmp_path_factory) -> str:
    return report_html(*named(TAME, tmp_path_factory.mktemp("tame")))


@pytest.fixture(scope="module")
def drawn() -> tuple[Summary, list[ScoreRow]]:
    rows = made_rows(images=12)
    return made_summary(rows), rows


@pytest.fixture
def bare() -> Summary:
    """An evaluation of nothing."""
    nothing = {
        "scores": (),
        "comparisons": (),
        "bins": (),
        "agreements": (),
        "risk": (),
        "set_scores": (),
        "left_out": {},
        "failures": (),
        "run": {},
    }
    return Summary(title="nothing", methods=("a", "b"), reference="b", columns=(), cases=0, unit="image", groups=0, **nothing)


def svgs(page: str) -> list[ElementTree.Element]:
    sources = [str(attributes["src"]) for attributes in Parsed(page).of("img") if "src" in attributes]
    start = "data:image/svg+xml;base64,"
    assert all(source.startswith(start) for source in sources)
    return [ElementTree.fromstring(base64.b64decode(source.removeprefix(start))) for source in sources]


def test_hostile_names_add_no_element_and_no_attribute(hostile_page, tame_page):
    hostile, tame = Parsed(hostile_page), Parsed(tame_page)
    assert [(tag, sorted(attributes)) for tag, attributes in hostile.elements] == [
        (tag, sorted(attributes)) for tag, attributes in tame.elements
    ]
    assert hostile.comments == tame.comments == []
    assert hostile_page.count("<script") == hostile_page.count("</script>") == 2


def test_hostile_names_are_shown_letter_by_letter(hostile_page):
    text = "".join(Parsed(hostile_page).text)
    assert all(visible(name) in text for name in HOSTILE)
    assert "caf\\xff \\x00\\x1b[31m\\n" in text
    assert "{{title}} $x_1$" in text
    hostile_page.encode("utf-8")


def test_names_in_plots_are_neither_markup_nor_mathematics(hostile_page):
    plots_found = svgs(hostile_page)
    assert len(plots_found) == 4
    text = [element.text or "" for plot in plots_found for element in plot.iter() if element.tag.endswith("}text")]
    assert any("$x_1$" in line for line in text)
    assert any("<script>alert(1)</script>.png" in line for line in text)
    tags = {element.tag.rpartition("}")[2] for plot in plots_found for element in plot.iter()}
    assert not tags & {"script", "foreignObject", "a"}


@given(st.text(st.characters(codec=None)))
@example("\ufffe\uffff\x00\x7f\x85\ud800\udcff\r\n")
def test_any_text_becomes_one_line_that_html_and_xml_can_hold(text):
    shown = visible(text)
    assert len(shown.splitlines()) <= 1 or re.search("[\u2028\u2029]", shown)
    assert ElementTree.fromstring(f"<a b={json.dumps('x')}>{escaped(text)}</a>".encode()).text == (shown or None)
    page = Parsed(f'<p title="{escaped(text)}">{escaped(text)}</p>')
    assert page.elements == [("p", {"title": shown})]
    assert "".join(page.text) == shown


def test_the_policy_allows_exactly_the_script_and_the_style_of_the_page(tame_page):
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', tame_page)[1]
    directives = {words[0]: words[1:] for words in (part.split() for part in policy.split(";"))}

    def hashes(pattern: str) -> list[str]:
        texts = re.findall(pattern, tame_page, flags=re.DOTALL)
        return [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts]

    assert directives["default-src"] == ["'none'"]
    assert directives["img-src"] == ["data:"]
    assert directives["script-src"] == hashes(r"<script>(.*?)</script>")
    assert directives["style-src"] == hashes(r"<style>(.*?)</style>")
    assert set(directives) == {"default-src", "img-src", "script-src", "style-src", "base-uri", "form-action"}
    assert tame_page.index("Content-Security-Policy") < tame_page.index("<link") < tame_page.index("<style")


def test_the_page_names_no_address_and_carries_no_inline_style_or_handler(tame_page):
    page = Parsed(tame_page)
    assert not re.search(r"https?:|@import|url\(", re.sub(r"base64,[\w+/=]+", "", tame_page))
    for tag, attributes in page.elements:
        assert not any(name.startswith("on") or name in ("style", "action", "srcset", "background") for name in attributes), tag
        assert all(str(attributes[name]).startswith(("data:", "#")) for name in ("src", "href") if name in attributes), tag
    script = re.search(r"<script>(.*?)</script>", tame_page, flags=re.DOTALL)[1]
    assert not re.search(r"fetch\(|XMLHttpRequest|innerHTML|eval\(|insertAdjacentHTML|document\.write", script)
    assert all(attributes.get("alt") for attributes in page.of("img") if "src" in attributes)


def test_equal_numbers_give_an_equal_page_and_leave_the_users_matplotlib_alone(tmp_path, tame_page):
    import matplotlib

    with matplotlib.rc_context({"text.usetex": True, "font.size": 31.0, "svg.fonttype": "path"}):
        before = dict(matplotlib.rcParams)
        again = report_html(*named(TAME, tmp_path))
        assert dict(matplotlib.rcParams) == before
    assert again == tame_page


def test_the_page_says_what_it_is_and_what_was_compared(tame_page):
    text = " ".join("".join(Parsed(tame_page).text).split())
    assert "AI-restored, not for primary diagnosis. Research use only." in text
    assert "12 cases of 6 images · 5 methods · 1 measure · 1 failure" in text
    for heading in ("Scores", "Differences", "Images", "Every image", "By distance from focus", "Agreement of measurements", "Risk maps"):
        assert heading in text
    for heading in ("Sets of images", "Left out", "Failures", "How it was made", "Definitions"):
        assert heading in text
    anchors = {attributes.get("id") for attributes in Parsed(tame_page).of("section")}
    linked = {str(attributes["href"])[1:] for attributes in Parsed(tame_page).of("a")}
    assert linked == anchors


def test_an_evaluation_of_nothing_is_a_page_without_empty_sections(bare):
    page = report_html(bare, [], [])
    assert svgs(page) == []
    assert [attributes["id"] for attributes in Parsed(page).of("section") if "hidden" not in attributes] == ["scores", "definitions"]


@pytest.mark.parametrize("unknown", [math.nan, None])
def test_a_number_that_does_not_exist_is_an_en_dash(unknown):
    assert number(unknown, 2) == "–"
    assert p_value(math.nan) == "–"
    assert bounds(Interval(1.0, math.nan, math.nan), 2) == "–"
    assert flat({"a": unknown}) == [("a", "–")]


def test_missing_numbers_are_nowhere_called_nan(tmp_path):
    columns = COLUMNS[5:6]
    rows = [replace(row, scores={"area": math.nan}) for row in made_rows(METHODS[:2], columns, images=2, distances=(0.8,))]
    none = Interval(math.nan, math.nan, math.nan)
    score = Score(column="area", method=METHODS[0], interval=none, median=math.nan, images=0, without=2)
    summary = made_summary(made_rows(METHODS[:2], columns, images=2), METHODS[:2], columns, run={"loss": math.nan, "device": None}, risk=())
    compared = replace(
        made_summary(made_rows(images=2)).comparisons[0], column="area", difference=none, median_difference=math.nan, p=math.nan, verdict=""
    )
    bins = (Bin(column="area", method=METHODS[0], low=0.0, high=math.inf, interval=none, images=0),)
    agreement = replace(summary.agreements[0], bias=math.nan, lower=math.nan, upper=math.nan)
    changes = {"scores": (score,), "comparisons": (replace(compared, p_holm=math.nan, reason="2 pairs are fewer than 10"),), "bins": bins}
    page = report_html(replace(summary, **changes, agreements=(agreement,)), rows, made_pictures(tmp_path, count=1, side_px=32))
    shown = Parsed(re.sub(r"<(script|style)>.*?</\1>", "", page, flags=re.DOTALL))
    told = " ".join(
        [*shown.text, *(value or "" for _, found in shown.elements for name, value in found.items() if name not in ("src", "content"))]
    )
    told += " ".join(element.text or "" for plot in svgs(page) for element in plot.iter())
    assert not re.search(r"\b(nan|none)\b", told, re.IGNORECASE)
    assert "2 cases without it" in told
    assert "2 pairs are fewer than 10" in told


@pytest.mark.parametrize(
    ("value", "decimals", "signed", "text"),
    [
        (31.306, 2, False, "31.31"),
        (-0.3149, 2, True, "−0.31"),
        (0.5, 2, True, "+0.50"),
        (-0.0004, 2, True, "0.00"),
        (12345.6, 0, False, "12\u202f346"),
        (math.inf, 2, False, "∞"),
        (-math.inf, 2, False, "−∞"),
        (3.2e-9, 6, False, "3.20e−09"),
    ],
)
def test_numbers_are_written_for_readers(value, decimals, signed, text):
    assert number(value, decimals, signed=signed) == text


@pytest.mark.parametrize(("p", "text"), [(0.00099, "<\u00a00.001"), (0.001, "0.00100"), (0.04561, "0.0456"), (0.5, "0.500"), (1.0, "1.00")])
def test_p_has_three_digits_or_is_less_than_a_thousandth(p, text):
    assert p_value(p) == text


@pytest.mark.parametrize(
    ("values", "unit", "decimals"),
    [
        ((22.8, 31.3), "dB", 2),
        ((8.1,), "dB", 2),
        ((0.8576,), "", 4),
        ((208.8, 111.3), "", 1),
        ((54321.0,), "", 0),
        ((), "", 2),
        ((math.nan, math.inf), "", 2),
    ],
)
def test_a_column_shows_four_digits_of_its_largest_mean_and_decibels_two_decimals(values, unit, decimals):
    assert decimals_for(values, unit) == decimals


@given(st.floats(-1e8, 1e8, allow_nan=False), st.integers(0, 6), st.booleans())
def test_a_written_number_is_the_number_up_to_rounding(value, decimals, signed):
    text = number(value, decimals, signed=signed).replace("\u202f", "").replace("−", "-")
    assert float(text) == pytest.approx(value, abs=0.5001 * 10**-decimals, rel=0.01)


def claimed(summary: Summary, verdicts: dict[str, str]) -> Summary:
    """The same with other verdicts against these methods, in the first column."""
    first = summary.columns[0].key
    changed = tuple(
        replace(one, verdict=verdicts.get(one.other, one.verdict)) if one.column == first else one for one in summary.comparisons
    )
    return replace(summary, comparisons=changed)


def test_the_best_method_is_marked_only_where_every_difference_is_claimed(drawn):
    summary, _ = drawn
    assert best_methods(claimed(summary, dict.fromkeys(METHODS, "better")))["psnr_db"] == METHODS[-1]
    assert "psnr_db" not in best_methods(claimed(summary, dict.fromkeys(METHODS, "better") | {METHODS[1]: ""}))
    assert score_table(summary, colours(summary)).count("class=best") == len(best_methods(summary)) > 0


def test_another_method_is_marked_where_the_reference_is_claimed_to_be_worse(drawn):
    summary, _ = drawn
    other = replace(
        summary, reference=METHODS[0], comparisons=tuple(replace(one, method=METHODS[0], other=one.method) for one in summary.comparisons)
    )
    best = METHODS[-1]
    assert best_methods(claimed(other, {best: "worse"}))["psnr_db"] == best
    assert "psnr_db" not in best_methods(claimed(other, {best: ""}))


def test_what_is_no_method_is_shown_gray_and_never_best(drawn):
    summary, _ = drawn
    clean = Score(column="psnr_db", method="clean", interval=Interval(99.0, 98.0, 100.0), median=99.0, images=12, without=0)
    with_clean = replace(summary, scores=(*summary.scores, clean))
    assert colours(with_clean)["clean"] == plots.GRAY
    assert "99.00" in score_table(with_clean, colours(with_clean))
    assert best_methods(with_clean) == best_methods(summary)
    assert colours(summary) == dict(zip(METHODS, OKABE_ITO, strict=False))


def test_a_comparison_tells_difference_p_wins_verdict_and_why_there_is_no_claim(drawn):
    summary, _ = drawn
    one = replace(
        summary.comparisons[0],
        difference=Interval(-0.314, -0.48, -0.148),
        median_difference=-0.2,
        n=31,
        unit="slide",
        p=0.03,
        p_holm=0.4,
        images=124,
        wins=40,
        ties=2,
        verdict="",
        reason="9 pairs are fewer than 10",
    )
    text = " ".join(" ".join(Parsed(comparison_table(replace(summary, comparisons=(one,)), colours(summary))).text).split())
    for words in (
        "−0.31 [−0.48, −0.15]",
        "−0.20",
        "0.0300",
        "0.400",
        "31 slides",
        "40 of 124 images, 2 ties",
        "no claim",
        "9 pairs are fewer than 10",
    ):
        assert words in text
    counts = re.findall(r'<td class="(better|worse|open)">(\d+)', glance(replace(summary, comparisons=(one,)), colours(summary)))
    assert counts[:3] == [("better", "0"), ("worse", "0"), ("open", "1")]


def test_a_small_difference_keeps_digits_that_tell_it_from_nothing(drawn):
    summary, _ = drawn
    one = replace(summary.comparisons[0], difference=Interval(0.0031, 0.0012, 0.005))
    assert "+0.0031" in comparison_table(replace(summary, comparisons=(one,)), colours(summary))


def test_failures_are_counted_though_not_all_are_shown():
    text = failure_list(tuple((f"image-{index}", "coarse", "broken") for index in range(700)))
    assert "700 failures" in text
    assert "200 more are not shown" in text
    assert text.count("<tr>") == 501


def test_every_finite_score_is_a_point(drawn):
    summary, rows = drawn
    (plot,) = distributions(replace(summary, columns=summary.columns[5:6]), rows)
    finite = sum(math.isfinite(row.scores["area"]) for row in rows)
    points = [
        one for one in ElementTree.fromstring(plot.svg).iter() if one.tag.endswith("}use") and "fill-opacity: 0.55" in one.get("style", "")
    ]
    assert finite < len(rows)
    assert len(points) == finite
    assert plot.title == "Area error of nuclei"
    assert all(method in plot.alt for method in METHODS)


def test_a_method_has_the_same_colour_in_tables_and_plots(drawn):
    summary, rows = drawn
    few = replace(summary, columns=summary.columns[:1])
    table, (curve,), box = score_table(summary, colours(summary)), degradation_curves(few), distributions(few, rows)[0]
    for colour in OKABE_ITO[1 : len(METHODS)]:  # SVG leaves out black
        assert f'fill="{colour}"' in table
        assert colour.encode() in curve.svg
        assert colour.encode() in box.svg


def test_ranges_of_distance_are_named_by_their_ends(drawn):
    summary, _ = drawn
    bins = tuple(
        Bin(column="psnr_db", method=METHODS[0], low=low, high=high, interval=Interval(30.0, 29.0, 31.0), images=9)
        for low, high in ((0.5, 1.0), (4.0, math.inf))
    )
    (plot,) = degradation_curves(replace(summary, bins=bins))
    text = [one.text for one in ElementTree.fromstring(plot.svg).iter() if one.tag.endswith("}text")]
    assert "0.5 – 1" in text
    assert "≥ 4" in text


def test_pictures_are_embedded_byte_by_byte(drawn, tmp_path):
    summary, _ = drawn
    (pictures,) = made_pictures(tmp_path, count=1, side_px=48)
    (found,) = page_data(summary, [pictures])["sets"]
    assert [picture["label"] for picture in found["pictures"]] == ["clean", *METHODS]
    for picture, path in zip(found["pictures"], pictures.pictures.values(), strict=True):
        kind, _, data = picture["source"].partition(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(data) == path.read_bytes()
    assert (found["width"], found["height"], found["pixel_um"]) == (48, 48, 0.25)
    assert found["scores"][0] == ["PSNR, dB ↑", "–", "24.10", "25.73", "27.36", "28.99", "30.62"]


@pytest.mark.parametrize(
    ("content", "error", "words"),
    [(b"GIF89a", ValueError, r"begins with b'GIF8'; a picture of a report must be a PNG or JPEG"), (None, OSError, "x.png")],
)
def test_what_is_no_picture_is_named(drawn, tmp_path, content, error, words):
    (pictures,) = made_pictures(tmp_path, count=1, side_px=16)
    if content is not None:
        (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(error, match=words):
        page_data(drawn[0], [replace(pictures, pictures=pictures.pictures | {"coarse": tmp_path / "x.png"})])


def test_an_existing_report_is_kept_unless_it_is_to_be_replaced_and_whenever_writing_fails(bare, tmp_path, monkeypatch):
    path = tmp_path / "new" / "report.html"
    write_report(path, bare, [], [])
    first = path.read_bytes()
    assert first.startswith(b"<!DOCTYPE html>")
    with pytest.raises(ValueError, match=r"report\.html: exists already; --overwrite replaces it"):
        write_report(path, bare, [], [])
    monkeypatch.setattr(os, "fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match="No space left on device"):
        write_report(path, replace(bare, title="other"), [], [], overwrite=True)
    assert path.read_bytes() == first
    assert [one.name for one in path.parent.iterdir()] == ["report.html"]
    monkeypatch.undo()
    write_report(path, replace(bare, title="other"), [], [], overwrite=True)
    assert b"<title>other</title>" in path.read_bytes()


def test_without_matplotlib_the_remedy_is_named(drawn, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match=r'need matplotlib; pip install "pathorestore\[report\]"'):
        report_html(*drawn, [])


@pytest.mark.slow
def test_a_large_evaluation_is_reported_within_seconds():
    columns = (*COLUMNS, *(Column(key=f"other{index}", label=f"Measure {index}") for index in range(18)))
    rows = made_rows(METHODS, columns, images=250)
    summary = made_summary(rows, METHODS, columns)
    start = time.process_time()
    page = report_html(summary, rows, [])
    assert time.process_time() - start < 20
    assert len(page) < 8e6
    assert np.unique([row.case for row in rows]).size == 1000
