"""Focus quality control: tiles part the image, glass is left out, verdicts follow the distance, pictures and tables say what was judged."""

import csv
import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from slide_samples import write_slide
from tissue_files import save, tissue

from pathorestore.degradations.optical import simulate_stack
from pathorestore.degradations.recipes import Setting
from pathorestore.image import from_uint8, to_uint8
from pathorestore.models.defocus import DefocusEstimator, DefocusEstimatorConfig
from pathorestore.pipelines.batch import BadResult
from pathorestore.pipelines.mop import default_folder
from pathorestore.pipelines.raster import ImageFileError
from pathorestore.slide import focus_qc
from pathorestore.slide.focus_picture import HeatMap, blocks_of, plain_title, round_length
from pathorestore.slide.focus_qc import FocusFile, FocusOptions, TissueFocus, boxes_of, open_source, tissue_of
from pathorestore.slide.focus_report import features_of
from pathorestore.slide.focus_verdict import FocusSummary, Thresholds, TileFocus, edges_px, summarise, tiles_csv, tiles_of_csv
from pathorestore.slide.source import SlideReadError

GLASS = 240


class ByRedness:
    """A judge with answers known beforehand: distance 5 um times the mean red, contrast transfer one minus that red."""

    def __init__(self):
        self.shapes: list[tuple[int, ...]] = []

    def __call__(self, tiles: torch.Tensor, tissue: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        assert tissue.shape[0] == tiles.shape[0]
        self.shapes.append(tuple(tiles.shape))
        red = tiles[:, 0].mean(dim=(1, 2))
        return 5 * red, 1 - red


def judged(path: Path, judge=None, **wishes):
    return FocusFile(judge=judge or ByRedness(), options=FocusOptions(**({"mpp": 0.25} | wishes)), thresholds=Thresholds())(path)


def patchwork(reds: list[list[int]], tile_px: int = 64) -> np.ndarray:
    """One colour a tile, of this redness; GLASS in place of a redness is glass."""
    rows = [
        np.concatenate([np.full((tile_px, tile_px, 3), (r, GLASS if r == GLASS else 30, GLASS if r == GLASS else 30)) for r in row], 1)
        for row in reds
    ]
    return np.concatenate(rows).astype(np.uint8)


@pytest.fixture(scope="module")
def estimator() -> DefocusEstimator:
    return DefocusEstimator.from_pretrained(default_folder() / "defocus").eval()


@given(height=st.integers(32, 900), width=st.integers(32, 900), tile_px=st.integers(64, 300))
def test_tiles_part_the_image_and_none_is_a_sliver(height, width, tile_px):
    seen = np.zeros((height, width), int)
    for x, y, wide, tall in boxes_of(edges_px(height, tile_px), edges_px(width, tile_px), 1):
        seen[y : y + tall, x : x + wide] += 1
        assert min(tall, wide) >= min(tile_px / 2, height, width)
        assert max(tall, wide) <= 1.5 * tile_px
    assert (seen == 1).all()


@given(rows=st.integers(1, 40), columns=st.integers(1, 40), every=st.integers(1, 12))
def test_every_nth_tile_is_one_of_all_and_stands_for_a_block_of_the_image(rows, columns, every):
    down, across = (edges_px(count * 64, 64) for count in (rows, columns))
    chosen = list(boxes_of(down, across, every))
    assert set(chosen) <= set(boxes_of(down, across, 1))
    assert 1 <= len(chosen) <= -(-rows // every) * -(-columns // every)
    focus = a_map(tuple(down), tuple(across), [TileFocus(*box, 1.0, 0.5, 1.0, "restore") for box in chosen], every)
    blocks = blocks_of(focus)
    assert blocks.codes.shape == (len(blocks.rows_px) - 1, len(blocks.columns_px) - 1)
    assert (blocks.rows_px[0], blocks.rows_px[-1], blocks.columns_px[-1]) == (0, down[-1], across[-1])
    for (x, y, wide, tall), index in zip(chosen, range(len(chosen)), strict=True):
        row, column = divmod(index, blocks.codes.shape[1])
        assert blocks.rows_px[row] <= y
        assert y + tall <= blocks.rows_px[row + 1]
        assert blocks.columns_px[column] <= x
        assert x + wide <= blocks.columns_px[column + 1]


def a_map(rows, columns, tiles, every=1, thumbnail=None):
    return focus_qc.FocusMap(
        rows_px=rows, columns_px=columns, tiles=tuple(tiles), every=every, mpp=0.25, mpp_assumed=False, thumbnail=thumbnail, notes=()
    )


def test_known_answers_come_out_as_exactly_that_table_and_those_outlines(tmp_path):
    path = save(tmp_path / "a.png", patchwork([[GLASS, 51, 102], [153, 204, GLASS]]))
    focus = judged(path, tile_px=64)
    assert tiles_csv(focus.tiles).splitlines() == [
        "x_px,y_px,width_px,height_px,defocus_um,ctf,tissue_share,verdict",
        "0,0,64,64,,,0.000,glass",
        "64,0,64,64,1.000,0.800,1.000,fine",
        "128,0,64,64,2.000,0.600,1.000,restore",
        "0,64,64,64,3.000,0.400,1.000,restore",
        "64,64,64,64,4.000,0.200,1.000,rescan",
        "128,64,64,64,,,0.000,glass",
    ]
    features = features_of(focus.tiles)
    assert [found["properties"]["classification"]["name"] for found in features] == ["fine", "restore", "restore", "rescan"]
    assert features[0]["geometry"] == {"type": "Polygon", "coordinates": [[[64, 0], [128, 0], [128, 64], [64, 64], [64, 0]]]}
    assert features[0]["properties"]["objectType"] == "annotation"
    assert features[0]["properties"]["measurements"] == {"Defocus um": 1.0, "CTF": 0.8, "Tissue share": 1.0}
    found = summarise(focus.tiles, Thresholds())
    assert (found.tiles, found.tissue_tiles, found.verdict) == (6, 4, "rescan")
    assert (found.median_um, found.p90_um, found.mean_ctf) == pytest.approx((2.5, 3.7, 0.5), abs=1e-6)
    assert (found.fine_share, found.restore_share, found.rescan_share) == (0.25, 0.5, 0.25)


@given(values=st.lists(st.one_of(st.none(), st.tuples(st.floats(0, 9), st.floats(0, 1))), max_size=40))
def test_the_table_of_tiles_reads_back_to_three_decimals(values):
    limits = Thresholds()
    tiles = [
        TileFocus(64 * at, 0, 64, 64, *((None, None, 0.0, "glass") if pair is None else (*pair, 0.5, limits.verdict(*pair))))
        for at, pair in enumerate(values)
    ]
    back = tiles_of_csv(tiles_csv(tiles))
    assert [tile.verdict for tile in back] == [tile.verdict for tile in tiles]
    assert list(csv.reader(io.StringIO(tiles_csv(back)))) == list(csv.reader(io.StringIO(tiles_csv(tiles))))
    before, after = summarise(tiles, limits), summarise(back, limits)
    assert (before.verdict, before.fine_share) == (after.verdict, after.fine_share)
    if before.p90_um is not None:
        distances = [tile.defocus_um for tile in tiles if tile.defocus_um is not None]
        assert before.p90_um == pytest.approx(np.quantile(distances, 0.9), abs=1e-9)
        assert before.median_um == pytest.approx(np.median(distances), abs=1e-9)


@pytest.mark.parametrize(
    ("fine", "restore", "rescan", "verdict"),
    [(9, 0, 1, "fine"), (8, 0, 2, "rescan"), (7, 3, 0, "fine"), (6, 4, 0, "restore"), (69, 21, 10, "restore"), (0, 0, 0, "glass")],
)
def test_a_file_asks_for_what_enough_of_its_tissue_asks_for(fine, restore, rescan, verdict):
    kinds = [("fine", 0.5, 0.9)] * fine + [("restore", 2.0, 0.2)] * restore + [("rescan", 4.0, 0.0)] * rescan
    tiles = [TileFocus(0, 0, 64, 64, um, ctf, 1.0, kind) for kind, um, ctf in kinds]
    glass = [TileFocus(0, 0, 64, 64, None, None, 0.0, "glass")] * 50
    assert summarise([*tiles, *glass], Thresholds()).verdict == verdict


def test_thresholds_are_where_verdicts_change():
    limits = Thresholds(fine_ctf=0.8, rescan_um=2.0)
    assert [limits.verdict(2.0, 0.8), limits.verdict(2.0, 0.79), limits.verdict(2.01, 0.9)] == ["fine", "restore", "rescan"]
    for bad in ({"fine_ctf": 0.0}, {"fine_ctf": 1.1}, {"rescan_um": 0.0}, {"rescan_um": float("nan")}, {"rescan_share": 1.0}):
        with pytest.raises(ValueError, match="must"):
            Thresholds(**bad)


def test_a_tile_full_of_tissue_is_judged_as_the_estimator_judges_it(estimator):
    tiles = torch.cat([from_uint8(tissue(seed)) for seed in (1, 2)])
    told = estimator(tiles)
    distances, ctf = TissueFocus(estimator)(tiles, torch.ones(2, 1, 32, 32))
    assert torch.allclose(distances, told.defocus_um.abs(), atol=1e-5)
    assert torch.allclose(ctf, told.ctf.clamp(0, 1), atol=1e-5)


def test_a_sigmoid_head_is_read_as_one():
    torch_seeded = torch.Generator().manual_seed(0)
    network = DefocusEstimator(DefocusEstimatorConfig(blocks=(1, 1, 1, 1), widths=(4, 4, 4, 4), ctf_activation="sigmoid")).eval()
    tile = torch.rand(1, 3, 64, 64, generator=torch_seeded)
    assert torch.allclose(TissueFocus(network)(tile, torch.ones(1, 1, 8, 8))[1], network(tile).ctf, atol=1e-6)


@pytest.mark.parametrize("z_um", [0.0, 1.6])
def test_glass_in_a_tile_hardly_moves_what_its_tissue_reads(estimator, z_um):
    sharp = tissue(5)
    corner = np.full_like(sharp, GLASS)
    corner[:128, :128] = sharp[:128, :128]
    whole, quarter = (
        simulate_stack(from_uint8(pixels), torch.tensor([z_um]), setting=Setting.ideal(), generator=torch.Generator().manual_seed(0)).planes
        for pixels in (sharp, corner)
    )
    here, everywhere = tissue_of(quarter, np.array([GLASS] * 3, float)), torch.ones(1, 1, 64, 64)
    assert float(here.mean()) == pytest.approx(0.25, abs=0.05)
    focus = TissueFocus(estimator)
    of_whole, of_tissue, of_all = (float(focus(*given)[0]) for given in ((whole, everywhere), (quarter, here), (quarter, everywhere)))
    assert abs(of_tissue - of_whole) < 0.3
    assert of_all > of_whole + 0.6  # what the average over all of the tile would say


def test_a_tile_with_little_tissue_counts_as_glass(tmp_path):
    pixels = patchwork([[51, GLASS]])
    pixels[:, 64:70] = (200, 30, 30)
    first, second = judged(save(tmp_path / "a.png", pixels), tile_px=64).tiles
    assert (first.verdict, second.verdict) == ("fine", "glass")
    assert 0 < second.tissue_share < focus_qc.LEAST_TISSUE
    assert second.defocus_um is None


def test_defocus_raises_the_distance_and_turns_the_verdict(tmp_path, estimator):
    import skimage.data

    sharp = from_uint8(skimage.data.immunohistochemistry()[:512, :512])
    planes = simulate_stack(
        sharp, torch.tensor([0.0, 1.6, 5.0]), setting=Setting.ideal(), generator=torch.Generator().manual_seed(0)
    ).planes
    found = []
    for name, plane in zip("abc", planes, strict=True):
        focus = judged(save(tmp_path / f"{name}.png", to_uint8(plane)), TissueFocus(estimator))
        found.append(summarise(focus.tiles, Thresholds()))
    distances = [summary.median_um for summary in found]
    assert distances[0] < distances[1] < distances[2]
    assert found[0].mean_ctf > found[1].mean_ctf > found[2].mean_ctf
    assert [summary.verdict for summary in found[1:]] == ["restore", "rescan"]
    assert found[0].verdict != "rescan"


@pytest.mark.parametrize(("mpp", "side", "seen"), [(0.5, 32, 64), (0.125, 128, 64), (0.252, 64, 64)])
def test_tiles_are_brought_to_the_pixel_size_that_the_estimator_knows(tmp_path, mpp, side, seen):
    judge = ByRedness()
    focus = judged(save(tmp_path / "a.png", patchwork([[51] * 4] * 4)), judge, tile_px=64, mpp=mpp)
    assert {tile.width_px for tile in focus.tiles} == {side}
    assert {shape[2:] for shape in judge.shapes} == {(seen, seen)}
    assert (focus.mpp, focus.mpp_assumed) == (mpp, False)


def test_an_unknown_pixel_size_is_assumed_and_said(tmp_path):
    path = save(tmp_path / "a.png", patchwork([[51, 51]]))
    focus = judged(path, tile_px=64, mpp=None)
    assert (focus.mpp, focus.mpp_assumed) == (0.25, True)
    assert any("--mpp" in note for note in focus.notes)


@pytest.mark.parametrize(
    ("mpp", "side", "words"), [(1.0, 256, "larger than 0.6 um"), (0.25, 20, "at least 32 px"), (0.125, 40, "at least 64 px")]
)
def test_what_is_too_coarse_or_too_small_is_refused(tmp_path, mpp, side, words):
    path = save(tmp_path / "a.png", np.full((side, side, 3), 90, np.uint8))
    with pytest.raises(ImageFileError, match=words):
        judged(path, mpp=mpp)


def test_a_judge_without_finite_answers_is_an_error(tmp_path):
    path = save(tmp_path / "a.png", patchwork([[51]]))
    with pytest.raises(BadResult, match="not finite"):
        judged(path, lambda tiles, tissue: (torch.full((len(tiles),), torch.nan), torch.zeros(len(tiles))), tile_px=64)


def test_batches_hold_so_many_tiles_and_change_no_answer(tmp_path):
    reds = [[20 * (row + column) for column in range(5)] for row in range(5)]
    path = save(tmp_path / "a.png", patchwork(reds)[:300, :310])
    tables = []
    for size in (1, 3, 100):
        judge = ByRedness()
        tables.append(tiles_csv(judged(path, judge, tile_px=64, batch_size=size).tiles))
        assert max(shape[0] for shape in judge.shapes) <= size
    assert tables[0] == tables[1] == tables[2]


def test_progress_counts_the_tiles_with_tissue(tmp_path):
    heard = []
    path = save(tmp_path / "a.png", patchwork([[GLASS, GLASS, GLASS, 51, 51]]))
    FocusFile(
        judge=ByRedness(),
        options=FocusOptions(mpp=0.25, tile_px=64),
        thresholds=Thresholds(),
        progress=lambda done, total: heard.append((done, total)),
    )(path)
    assert heard == [(1, 3), (2, 3), (3, 3)]  # one of glass alone is near enough to be looked at


class Watched:
    """A source that counts what is read of it, and fails at places."""

    def __init__(self, source, bad: tuple[int, int] | None = None):
        self.facts, self.background, self.overview, self.close = source.facts, source.background, source.overview, source.close
        self.source, self.bad, self.largest_px, self.boxes = source, bad, 0, []

    def read(self, y_px, x_px, height_px, width_px):
        self.largest_px = max(self.largest_px, height_px * width_px)
        self.boxes.append((x_px, y_px))
        if (x_px, y_px) == self.bad:
            raise SlideReadError("torn")
        return self.source.read(y_px, x_px, height_px, width_px)


def watch(monkeypatch, path, **wishes):
    seen = Watched(open_source(path), **wishes)
    monkeypatch.setattr(focus_qc, "open_source", lambda *_: seen)
    return seen


def test_of_a_slide_single_tiles_are_read_whatever_its_height_and_no_glass(tmp_path, monkeypatch):
    pixels = patchwork([[51, GLASS, GLASS, GLASS]] * 30)
    seen = watch(monkeypatch, write_slide(tmp_path / "a.tif", pixels, levels=3))
    waiting = []
    settle = FocusFile._settle
    monkeypatch.setattr(FocusFile, "_settle", lambda self, tiles, alike: (waiting.append(len(alike)), settle(self, tiles, alike))[1])
    focus = judged(tmp_path / "a.tif", tile_px=64, batch_size=4)
    assert seen.largest_px == 64 * 64
    assert max(waiting) == 4
    # the overview is widened by one of its pixels, so that the glass beside tissue is looked at too
    assert {x for x, _ in seen.boxes} <= {0, 64}
    assert [tile.verdict for tile in focus.tiles] == ["fine", "glass", "glass", "glass"] * 30


def test_a_tile_that_cannot_be_decoded_is_told_and_the_rest_judged(tmp_path, monkeypatch):
    path = save(tmp_path / "a.png", patchwork([[51, 102], [51, 51]]))
    watch(monkeypatch, path, bad=(64, 0))
    focus = judged(path, tile_px=64)
    assert [tile.verdict for tile in focus.tiles] == ["fine", "unreadable", "fine", "fine"]
    assert any("cannot be decoded" in note for note in focus.notes)
    assert summarise(focus.tiles, Thresholds()).unreadable_tiles == 1
    assert [found["properties"]["measurements"] for found in features_of(focus.tiles)][1] == {"Tissue share": 0.0}


def test_plain_images_need_no_openslide(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openslide", None)
    for name in ("a.png", "a.tif"):
        assert judged(save(tmp_path / name, patchwork([[51]])), tile_px=64).tiles[0].verdict == "fine"


def test_transparent_pixels_are_glass_and_16_bits_are_read(tmp_path):
    import tifffile

    pixels = np.concatenate([patchwork([[51, 51]]), np.full((64, 128, 1), 255, np.uint8)], 2)
    pixels[:, 64:, 3] = 0
    Image.fromarray(pixels, "RGBA").save(tmp_path / "a.png")
    assert [tile.verdict for tile in judged(tmp_path / "a.png", tile_px=64).tiles] == ["fine", "glass"]
    tifffile.imwrite(tmp_path / "deep.tif", patchwork([[51, 102]]).astype(np.uint16) * 257, photometric="rgb")
    first, second = judged(tmp_path / "deep.tif", tile_px=64).tiles
    assert (first.defocus_um, second.defocus_um) == pytest.approx((1.0, 2.0), abs=1e-5)


def picture_of(focus, title="a.png") -> Image.Image:
    return HeatMap(
        focus=focus, summary=summarise(focus.tiles, Thresholds()), thresholds=Thresholds(), title=title, footnote="estimates"
    ).draw()


def test_the_picture_colours_tiles_by_distance_and_leaves_glass_gray(tmp_path):
    focus = judged(save(tmp_path / "a.png", patchwork([[20, GLASS, 235]])), tile_px=64)
    picture = np.asarray(picture_of(focus)).astype(int)
    middle = picture[84 + 80, [24 + 80, 24 + 240, 24 + 400]]  # 64 px tiles are shown 2.5 times as large
    near, glass, far = middle
    assert near[2] > near[0]  # blue
    assert np.ptp(glass) == 0
    assert far[0] > far[2]  # yellow
    assert near.sum() < far.sum()


@pytest.mark.parametrize(
    "title", ["a\nb.png", "<script>alert(1)</script>.svs", "x" * 5000, "\u202ekcab.png", "z\u00fcrich \u03bcm \U0001f52c.tif", "\udcff", ""]
)
def test_any_title_gives_a_picture_with_one_line_of_known_signs(title):
    plain = plain_title(title)
    assert plain.isprintable()
    assert plain.isascii()
    tiles = [TileFocus(0, 0, 100, 40, 2.0, 0.3, 1.0, "restore")]
    first = picture_of(a_map((0, 40), (0, 100), tiles), title)
    assert first.size == picture_of(a_map((0, 40), (0, 100), tiles)).size


def test_pictures_of_long_and_of_tiny_files_are_drawn():
    for height, width in ((40, 40_000), (40_000, 40), (33, 33)):
        tiles = [TileFocus(0, 0, width, height, None, None, 0.0, "unreadable")]
        picture = picture_of(a_map((0, height), (0, width), tiles))
        assert max(picture.size) < 1400


@given(about=st.floats(0.01, 1e6))
def test_the_scale_bar_is_a_round_length_no_longer_than_asked(about):
    length = round_length(about)
    assert about / 2.5 - 1e-9 <= length <= about * (1 + 1e-9)
    assert f"{length:.0e}"[0] in "125"


def test_a_summary_in_words_tells_verdict_and_figures():
    tiles = [TileFocus(0, 0, 64, 64, 1.0, 0.5, 1.0, "restore")]
    assert summarise(tiles, Thresholds()).sentence() == (
        "restore: 1 tissue tiles, 0 % fine, 100 % restore, 0 % rescan; |z| median 1.00, p90 1.00 um, CTF 0.50"
    )
    assert "no tissue" in summarise([], Thresholds()).sentence()
    assert isinstance(summarise([], Thresholds()), FocusSummary)


@pytest.mark.parametrize("text", ["", "a,b\n1,2\n", "x_px\n"])
def test_another_table_is_no_table_of_tiles(text):
    with pytest.raises(ValueError, match="expected the columns"):
        tiles_of_csv(text)


@pytest.mark.parametrize("bad", [{"tile_px": 32}, {"every": 0}, {"batch_size": 0}, {"mpp": 0.0}, {"mpp": 20.0}])
def test_options_that_cannot_be_are_refused(bad):
    with pytest.raises(ValueError, match="must"):
        FocusOptions(**bad)


def test_the_script_behind_the_thresholds_prints_every_table_and_writes_every_row(tmp_path, monkeypatch, estimator, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "benchmarks"))
    import qc_thresholds

    class System:
        weights_sha256 = "ef" * 32
        prompter = SimpleNamespace(defocus=estimator)

        def coarse_only(self):
            return SimpleNamespace(restore=lambda image: image)

    for name in ("a", "b", "fine"):
        save(tmp_path / "in" / f"{name}.png", tissue(1, 512, 512))
    monkeypatch.setattr(qc_thresholds, "load_default", System)
    monkeypatch.setattr(qc_thresholds, "Z_UM", (0.8, 4.0))
    monkeypatch.setattr(qc_thresholds, "TISSUE_SHARES", (1.0, 0.25))
    qc_thresholds.main(f"--data {tmp_path}/in --oversampled fi* --limit 3 --json {tmp_path}/r.json".split())
    written = json.loads((tmp_path / "r.json").read_text())
    rows = written["results"]["out_of_focus"]
    assert len(rows) == 3 * 3 * 2
    assert [row["psnr_before"] == row["psnr_after"] for row in rows if "psnr_after" in row] == [
        True
    ] * 4  # every second image, two distances
    ideal = [[row["defocus_um"] for row in rows if row["setting"] == "ideal" and row["z_um"] == z_um] for z_um in (0.8, 4.0)]
    assert max(ideal[0]) < min(ideal[1])
    assert [row["image"] for row in rows[::6]] == ["a.png", "b.png", "fine.png"]
    assert ideal[0][2] < min(ideal[0][:2]) - 0.1  # the same picture, shown smaller
    glass = {(row["share"], row["z_um"]): row for row in written["results"]["beside_glass"]}
    assert glass[0.25, 0.0]["all_um"] > glass[0.25, 0.0]["tissue_um"] + 0.6
    assert [row["mpp"] for row in written["results"]["whole"]] == [0.25, 0.25, 0.25, 0.125]
    told = capsys.readouterr().out
    assert "| 4 um | 0.04 |" in told
    assert "| 0.8 um | 0, 3, 0 |" in told
    assert "2 whole images at 0.25 um" in told
    assert "1 whole oversampled images at 0.125 um" in told
