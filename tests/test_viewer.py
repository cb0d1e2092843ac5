"""The viewer's page and tiles: what is written, what is served, and what hostile names and requests come to."""

import base64
import hashlib
import io
import json
import re
from dataclasses import replace
from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from image_samples import RECORD, SRGB, save_tiff
from PIL import Image
from slide_samples import run_slide, tissue_pixels, write_slide
from tissue_files import save, tissue
from view_files import HOSTILE, restored_slide, save_pyramid, viewed

from pathorestore.pipelines.image_file import ImageFileError
from pathorestore.pipelines.web_page import filled, script_json
from pathorestore.slide.viewer import PAGE, page_data, page_html, write_view
from pathorestore.slide.viewer_images import open_view

pytest.importorskip("openslide", reason="the viewer reads slides with OpenSlide")


@pytest.fixture
def slide(tmp_path):
    return restored_slide(tmp_path / "restored.tif")


@pytest.fixture
def run(capsys):
    """Run the verb; returns exit code, stdout and stderr."""
    return partial(viewed, capsys)


def pixels(data: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(data)) as image:
        return np.array(image)


def assembled(picture, level: int) -> np.ndarray:
    """The tiles of one level, side by side."""
    columns, rows = picture.tiles.level_tiles[level]
    return np.vstack([np.hstack([pixels(picture.tile(level, column, row)) for column in range(columns)]) for row in range(rows)])


def test_the_tiles_of_the_last_level_are_the_slide(slide):
    with open_view(slide) as view:
        whole = assembled(view.restored, view.restored.tiles.level_count - 1)
    assert whole.shape == (700, 900, 3)
    assert np.abs(whole.astype(int) - tissue(1, 700, 900)).mean() < 4  # JPEG


def test_each_level_is_half_of_the_next_down_to_one_pixel(slide):
    with open_view(slide) as view:
        count = view.restored.tiles.level_count
        assert count == 11  # 2**10 >= 900
        sizes = [assembled(view.restored, level).shape[:2] for level in range(count)]
    assert sizes[0] == (1, 1)
    assert sizes[-1] == (700, 900)
    assert all(small == tuple(-(-side // 2) for side in large) for small, large in pairwise(sizes))


def test_a_coarse_level_shows_the_same_picture_in_small(slide):
    with open_view(slide) as view:
        small = assembled(view.restored, view.restored.tiles.level_count - 3)
    wanted = np.array(Image.fromarray(tissue(1, 700, 900)).resize((225, 175), Image.Resampling.BOX))
    assert np.corrcoef(small.ravel(), wanted.ravel())[0, 1] > 0.9


def test_a_view_folder_holds_the_page_the_tiles_and_the_licence(slide, tmp_path):
    told = []
    with open_view(slide, compare=save(tmp_path / "before.png", tissue(2, 700, 900))) as view:
        count = write_view(view, tmp_path / "a.view", progress=lambda done, total: told.append((done, total)))
    files = {path.relative_to(tmp_path / "a.view").as_posix() for path in (tmp_path / "a.view").rglob("*") if path.is_file()}
    tiles = {name for name in files if "_files/" in name}
    assert len(tiles) == count
    assert files - tiles == {PAGE, "openseadragon-LICENSE.txt", "restored.dzi", "degraded.dzi"}
    assert {"restored_files/10/3_2.jpg", "degraded_files/0/0_0.jpg"} <= tiles
    assert told[0] == (0, count)
    assert told[-1] == (count, count)


def test_the_page_names_what_it_shows_how_large_a_pixel_is_and_that_it_was_restored(slide, tmp_path):
    before = save_pyramid(tmp_path / "before.tif", tissue(2, 350, 450))
    with open_view(slide, compare=before) as view:
        data = page_data(view)
    assert [picture["key"] for picture in data["pictures"]] == ["degraded", "restored"]
    assert data["compare"] is True
    assert data["mpp"] == RECORD.pixel_um
    assert data["notice"] == "AI-restored, not for primary diagnosis"
    assert ["model id", "sharpener"] in data["record"]
    with open_view(before) as view:
        assert page_data(view)["mpp"] == pytest.approx(0.5)
        assert page_data(view)["notice"] == ""


def test_an_image_without_a_pixel_size_takes_that_of_the_one_it_was_made_from(tmp_path):
    before = save_pyramid(tmp_path / "before.tif", tissue(2, 350, 450))
    with open_view(save(tmp_path / "after.png", tissue(1, 700, 900)), compare=before) as view:
        assert view.mpp == pytest.approx(0.25)  # twice as many pixels


def test_a_damaged_record_is_told_and_the_notice_stays(tmp_path):
    broken = save_pyramid(tmp_path / "a.tif", tissue(1), description=RECORD.to_json().replace('"seed"', '"sead"'))
    with open_view(broken) as view:
        data = page_data(view)
    assert "sead" in data["trouble"]
    assert data["notice"] == "AI-restored, not for primary diagnosis"


def test_json_in_a_script_cannot_end_it():
    hostile = ["</script><script>alert(1)</script>", "<!--", "\u2028\u2029", "&lt;", "\ud800"]
    text = script_json(hostile)
    assert text.isascii()
    assert not set("<>&") & set(text)
    assert json.loads(text) == hostile


def test_a_part_that_looks_like_a_hole_stays_as_it_is():
    assert filled("{{a}} {{b}}", {"a": "{{b}}", "b": "$1 \\1"}) == "{{b}} $1 \\1"


def test_hostile_names_and_records_stay_text(tmp_path):
    record = replace(RECORD, model_id=f"</script>{HOSTILE}", parameters={"\u2028": HOSTILE})
    slide = save_pyramid(tmp_path / f"{HOSTILE}.svs.tif", tissue(1), description=record.to_json())
    layer = save(tmp_path / f"layer{HOSTILE}.png", tissue(2))
    with open_view(slide, compare=slide, layers={HOSTILE: layer}) as view:
        page = page_html(view)
        write_view(view, tmp_path / "out")
    assert "<img" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;.svs.tif</title>" in page
    assert page.count("<script") == page.count("</script>") == 3
    assert all("<" not in path.as_posix() for path in (tmp_path / "out").rglob("*") for path in [path.relative_to(tmp_path)])


def test_the_policy_allows_exactly_the_scripts_and_the_style_of_the_page(slide):
    with open_view(slide) as view:
        page = page_html(view)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1]
    directives = {words[0]: words[1:] for words in (part.split() for part in policy.split(";"))}
    assert directives["default-src"] == ["'none'"]
    assert "connect-src" not in directives
    assert "unsafe" not in policy

    def hashes(pattern: str) -> list[str]:
        texts = re.findall(pattern, page, flags=re.DOTALL)
        return [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in texts]

    assert directives["script-src"] == hashes(r"<script>(.*?)</script>")
    assert directives["style-src"] == hashes(r"<style[^>]*>(.*?)</style>")
    assert page.index("Content-Security-Policy") < page.index("<link") < page.index("<style")


def test_the_page_loads_nothing_from_anywhere(slide):
    with open_view(slide) as view:
        page = page_html(view)
    chrome = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"https?:|//\w|@import|url\(", chrome)
    assert not re.search(r"\b(src|srcset|action|background)\s*=", re.sub(r"<meta[^>]*>", "", chrome))
    ours = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)[1]
    assert not re.search(r"https?:|fetch\(|XMLHttpRequest|innerHTML|eval\(|insertAdjacentHTML|document\.write", ours)
    assert "sourceMappingURL" not in page


def test_layers_are_stretched_over_the_image_and_gray_ones_coloured(slide, tmp_path):
    focus = save(tmp_path / "focus.png", np.tile(np.arange(0, 256, 16, np.uint8), (3, 1)))
    depth = save(tmp_path / "depth.png", np.full((30, 40), 640, np.uint16))
    clear = save(tmp_path / "risk.png", np.dstack([tissue(3, 40, 30), np.full((40, 30), 128, np.uint8)]))
    with open_view(slide, layers={"focus": focus, "depth": depth, "risk": clear}) as view:
        first, second, third = view.layers
        assert [layer.size_px for layer in view.layers] == [(900, 700)] * 3
        assert (first.legend, second.legend, third.legend) == ((0, 255), (0, 640), None)
        tile = pixels(first.tile(10, 0, 0)).astype(int)
        assert tile[100, 5, 2] > tile[100, 5, 0]  # dark blue is low
        assert tile[100, 250, 1] > tile[100, 5, 1]
        assert pixels(second.tile(10, 0, 0))[0, 0].tolist() == [252, 232, 56]  # the highest value there is
        assert np.unique(pixels(third.tile(10, 0, 0))[..., 3]).tolist() == [128]


@pytest.mark.parametrize("profile", [SRGB, b"no profile" * 20])
def test_profiles_of_srgb_and_damaged_ones_change_nothing_and_are_not_in_the_tiles(tmp_path, profile):
    plain = save_pyramid(tmp_path / "plain.tif", tissue(1))
    profiled = save_pyramid(tmp_path / "profiled.tif", tissue(1), iccprofile=profile)
    with open_view(plain) as one, open_view(profiled) as other:
        assert b"ICC_PROFILE" not in other.restored.tile(8, 0, 0)
        difference = pixels(one.restored.tile(8, 0, 0)).astype(int) - pixels(other.restored.tile(8, 0, 0))
    assert np.abs(difference).max() <= 12


def test_another_profile_turns_the_colours(tmp_path):
    swapped = bytearray(SRGB)  # the colorants of red and blue change places in its table
    tags = {SRGB[at : at + 4]: at for at in range(132, 132 + 12 * int.from_bytes(SRGB[128:132], "big"), 12)}
    red, blue = tags[b"rXYZ"], tags[b"bXYZ"]
    swapped[red + 4 : red + 12], swapped[blue + 4 : blue + 12] = SRGB[blue + 4 : blue + 12], SRGB[red + 4 : red + 12]
    flat = np.full((256, 256, 3), (200, 120, 60), np.uint8)
    with open_view(save_pyramid(tmp_path / "a.tif", flat, iccprofile=bytes(swapped))) as view:
        shown = pixels(view.restored.tile(8, 0, 0))[100, 100].astype(int)
    assert np.abs(shown - [60, 120, 200]).max() <= 6


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "deep.tif"])
def test_files_that_openslide_cannot_open_are_read_as_images(tmp_path, name):
    deep = (tissue(1).astype(np.uint16) << 8) + 128
    path = save_tiff(tmp_path / name, deep, tile=(128, 128)) if name == "deep.tif" else save(tmp_path / name, tissue(1))
    with open_view(path) as view:
        whole = assembled(view.restored, 8)
    assert np.abs(whole.astype(int) - tissue(1)).mean() < 6


def test_an_existing_folder_is_refused_and_replaced_only_if_it_is_a_view(slide, tmp_path):
    folder, mine = tmp_path / "a.view", tmp_path / "mine"
    with open_view(slide) as view:
        write_view(view, folder)
        (folder / PAGE).write_text((folder / PAGE).read_text() + "older")
        with pytest.raises(ValueError, match="exists already; --overwrite"):
            write_view(view, folder)
        assert (folder / PAGE).read_text().endswith("older")
        write_view(view, folder, overwrite=True)
        assert not (folder / PAGE).read_text().endswith("older")
        mine.mkdir()
        (mine / "thesis.txt").write_text("years of work")
        with pytest.raises(ValueError, match=r"'thesis\.txt', which belongs to no view"):
            write_view(view, mine, overwrite=True)
        (mine / "thesis.txt").rename(mine / PAGE)
        with pytest.raises(ValueError, match="holds no page of a view"):
            write_view(view, mine, overwrite=True)
        with pytest.raises(ValueError, match="is no folder"):
            write_view(view, slide, overwrite=True)
    assert (mine / PAGE).read_text() == "years of work"
    assert {path.name for path in tmp_path.iterdir()} == {"a.view", "mine", "restored.tif"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("before", [False, True])
def test_interrupted_writing_leaves_nothing_or_the_older_view(slide, tmp_path, error, before):
    folder = tmp_path / "a.view"

    def stop(done: int, _total: int) -> None:
        if done == 5:
            raise error

    with open_view(slide) as view:
        if before:
            write_view(view, folder)
        with pytest.raises((KeyboardInterrupt, OSError)):
            write_view(view, folder, overwrite=True, progress=stop)
    assert {path.name for path in tmp_path.iterdir()} == {"restored.tif"} | ({"a.view"} if before else set())
    assert not before or len(list(folder.rglob("*.jpg"))) == view.restored.tiles.tile_count


def test_a_damaged_slide_is_named_and_leaves_nothing(slide, tmp_path):
    whole = slide.read_bytes()
    slide.write_bytes(whole[:20_000] + b"\0" * 40_000 + whole[60_000:])
    with open_view(slide) as view, pytest.raises(ImageFileError, match=r"restored\.tif: OpenSlide says .*damaged"):
        write_view(view, tmp_path / "a.view")
    assert [path.name for path in tmp_path.iterdir()] == ["restored.tif"]


def test_another_field_cannot_be_compared(slide, tmp_path):
    with pytest.raises(ImageFileError, match="does not show the same field: it has 900 x 900 px"):
        open_view(slide, compare=save(tmp_path / "b.png", tissue(2, 900, 900)))


def test_the_command_writes_a_view_beside_the_slide(slide, tmp_path, run):
    focus = save(tmp_path / "focus.png", tissue(3, 30, 40))
    code, out, err = run(slide, "--compare", slide, "--layer", f"focus={focus}")
    assert (code, err) == (0, "")
    assert f"view: {tmp_path / 'restored.view' / PAGE}, " in out
    code, _, err = run(slide)
    assert code == 2
    assert "restored.view: exists already; --overwrite replaces it" in err
    assert run(slide, "--overwrite", "-q") == (0, "", "")


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ((), "OUT"),
        (("{slide}", "--layer", "focus.png"), "'focus.png' is no layer; expected NAME=FILE"),
        (("{slide}", "--layer", "a={slide}", "--layer", "a={slide}"), "'a' is named twice"),
        (("{slide}", "--layer", "a=missing.png"), "missing.png: no such file"),
        (("missing.svs",), "missing.svs: no such file"),
        (("{folder}",), "is a directory"),
        (("{text}",), "notes.txt: is not an image"),
        (("{slide}", "--compare", "missing.svs"), "missing.svs: no such file"),
        (("{slide}", "--port", "80"), "--port belongs to --serve"),
        (("{slide}", "--serve", "--port", "70000"), "--port 70000 is no port; expected 1 to 65535"),
        (("{slide}", "--serve", "-o", "x"), "--serve writes nothing"),
    ],
)
def test_bad_input_gets_one_clear_line(slide, tmp_path, run, words, line):
    (tmp_path / "notes.txt").write_text("no image")
    places = {"slide": slide, "folder": tmp_path, "text": tmp_path / "notes.txt"}
    code, out, err = run(*(word.format(**places) for word in words))
    assert code in (1, 2)
    assert line in err
    assert err.count("\n") == 1
    assert out == ""
    assert not (tmp_path / "restored.view").exists()


def test_a_restored_region_is_compared_with_that_part_of_its_slide(tmp_path):
    whole = tissue_pixels(500, 700)
    source = write_slide(tmp_path / "whole.tif", whole, levels=1)
    run_slide(source, tmp_path / "part.tif", wishes={"region": (100, 50, 300, 200)})
    with open_view(tmp_path / "part.tif", compare=source) as view:
        assert view.degraded.size_px == view.restored.size_px == (300, 200)
        last = view.degraded.tiles.level_count - 1
        shown = np.asarray(view.degraded.tiles.get_tile(last, (0, 0)))[..., :3]
        assert np.array_equal(shown, whole[50 : 50 + shown.shape[0], 100 : 100 + shown.shape[1]])
    other = write_slide(tmp_path / "other.tif", whole[:120], levels=1)
    with pytest.raises(ImageFileError, match="100,50,300,200"):
        open_view(tmp_path / "part.tif", compare=other)
