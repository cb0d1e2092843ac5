"""The first look: measured honestly, drawn readably."""

import math

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from pathorestore.degradations.acquisition import gaussian_blur
from pathorestore.image import to_uint8
from pathorestore.pipelines.contact_sheet import Cell, SheetStyle, busiest_corner, colour_ramp, draw_sheet
from pathorestore.pipelines.demo import METHODS, DemoParts, best_unsharp, demo_image, run_demo, score, write_picture
from pathorestore.pipelines.report_text import demo_table


class Blend:
    """A restorer that mixes its input with the clean image: its scores are known beforehand."""

    tile_px = 64

    def __init__(self, clean: torch.Tensor, share: float):
        self.clean, self.share = clean, share

    def restore(self, image: torch.Tensor, *, seed: int = 0) -> torch.Tensor:
        return torch.lerp(image, self.clean, self.share)


@pytest.fixture
def sharp(nuclei_image) -> torch.Tensor:
    """A textured image of 192 px, of which the demo keeps the inner 64."""
    return torch.nn.functional.interpolate(nuclei_image, size=192, mode="bilinear").clamp(0, 1).mul(255).round().div(255)


@pytest.fixture
def rows(sharp):
    """Three focus positions, one of them in focus, with restorers that halve and quarter the error."""
    clean = sharp[..., 64:-64, 64:-64]
    parts = DemoParts(
        coarse=Blend(clean, 0.5), two_stage=Blend(clean, 0.75), focus_map_um=lambda image: image.mean(1, keepdim=True)[..., ::8, ::8]
    )
    return run_demo(parts, sharp, z_um=(0.0, 1.6, 3.2))


def test_halving_the_error_gains_six_decibels_and_the_degraded_image_falls_with_defocus(rows):
    for row in rows[1:]:
        gain = row.scores["coarse"].psnr_db - row.scores["degraded"].psnr_db
        assert gain == pytest.approx(20 * math.log10(2), abs=0.3)  # 8-bit rounding costs a little
        assert row.scores["two-stage"].psnr_db > row.scores["coarse"].psnr_db
    degraded = [row.scores["degraded"] for row in rows]
    assert degraded[0].psnr_db > degraded[1].psnr_db > degraded[2].psnr_db
    assert degraded[0].ssim > degraded[1].ssim > degraded[2].ssim


def test_the_unsharp_mask_gets_its_best_setting(rows):
    for row in rows[1:]:
        assert row.scores["unsharp mask"].psnr_db > row.scores["degraded"].psnr_db
    clean = rows[0].images["clean"]
    blurred = gaussian_blur(clean, sigma_px=1.0)
    best = float((best_unsharp(blurred, clean) - clean).square().mean())
    for sigma, amount in ((1.0, 1.0), (2.0, 0.5), (3.0, 2.0)):
        other = (blurred + amount * (blurred - gaussian_blur(blurred, sigma_px=sigma))).clamp(0, 1)
        assert best <= float((other - clean).square().mean())


def test_the_score_agrees_with_its_definition():
    clean = torch.zeros(1, 3, 16, 16)
    assert score(clean + 51 / 255, clean).psnr_db == pytest.approx(20 * math.log10(5))
    assert score(clean, clean).psnr_db == math.inf
    assert score(clean, clean).ssim == 1.0


def test_the_demo_is_decided_by_its_seed_and_reports_progress(sharp):
    parts = DemoParts(
        coarse=Blend(sharp[..., 64:-64, 64:-64], 0.5),
        two_stage=Blend(sharp[..., 64:-64, 64:-64], 0.5),
        focus_map_um=lambda image: image[:, :1],
    )
    heard = []
    first = run_demo(parts, sharp, z_um=(1.6, 3.2), seed=1, progress=lambda *pair: heard.append(pair))
    again, other = run_demo(parts, sharp, z_um=(1.6, 3.2), seed=1), run_demo(parts, sharp, z_um=(1.6, 3.2), seed=2)
    assert heard == [(1, 2), (2, 2)]
    assert torch.equal(first[1].images["degraded"], again[1].images["degraded"])
    assert not torch.equal(first[1].images["degraded"], other[1].images["degraded"])


def test_the_table_has_a_line_for_each_position_and_the_mean(rows):
    lines = demo_table(rows).splitlines()
    assert len(lines) == len(rows) + 2
    assert all(f"{method} dB" in lines[0] for method in METHODS)
    assert lines[-1].startswith("mean")
    assert f"{rows[2].scores['two-stage'].psnr_db:.2f}" in lines[3]
    assert len({len(line) for line in lines}) == 1


def test_the_picture_is_written_whole_with_a_column_more_than_the_methods_drawn(tmp_path, rows):
    write_picture(tmp_path / "deep" / "demo.png", rows)
    with Image.open(tmp_path / "deep" / "demo.png") as sheet:
        assert sheet.width > 5 * 64
        assert sheet.height > 3 * 64
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["demo.png"]


def test_a_sheet_shows_pictures_pixel_for_pixel_and_a_bar_of_the_right_length():
    generator = torch.Generator().manual_seed(0)
    picture = torch.rand(1, 3, 96, 96, generator=generator).mul(155).add(100).round().div(255)  # nothing as dark as ink
    style = SheetStyle(detail_yx=(8, 8), detail_px=16, zoom=2, pixel_um=0.5, bar_um=20.0)
    cells = [[Cell(picture=torch.ones(1, 3, 96, 96)), Cell(picture=picture, detail=False)]]
    sheet = np.array(draw_sheet(cells, [""], ["", ""], style))
    assert cv2.matchTemplate(sheet, to_uint8(picture), cv2.TM_SQDIFF).min() == 0
    ink = (sheet == 20).all(axis=2).sum(axis=1)
    assert ink.max() == 40


def test_colours_of_the_ramp_grow_lighter_and_end_where_values_end():
    values = torch.linspace(-0.5, 1.5, 41).reshape(1, 1, 1, 41)
    colours = colour_ramp(values)[0, :, 0]
    light = (torch.tensor([0.2126, 0.7152, 0.0722])[:, None] * colours).sum(0)
    assert (light.diff() >= 0).all()
    assert torch.equal(colours[:, 0], colours[:, 9])
    assert torch.equal(colours[:, 31], colours[:, 40])


def test_the_detail_is_taken_where_fine_structure_is():
    picture = torch.full((1, 3, 96, 128), 0.8)
    picture[..., 48:, 64:] = torch.rand(1, 3, 48, 64, generator=torch.Generator().manual_seed(0))
    y, x = busiest_corner(picture, 32)
    assert y >= 48
    assert x >= 64


def test_a_sheet_whose_labels_do_not_fit_is_refused():
    style = SheetStyle(detail_yx=(0, 0), detail_px=8, zoom=2, pixel_um=1.0)
    with pytest.raises(ValueError, match="do not fit"):
        draw_sheet([[Cell(picture=torch.zeros(1, 3, 32, 32))]], ["row"], ["one", "two"], style)


def test_the_demo_image_is_the_one_of_scikit_image():
    image = demo_image()
    assert image.shape == (1, 3, 512, 512)
    assert 0.3 < float(image.mean()) < 0.8
