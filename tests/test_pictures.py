"""Pictures of training: colours in order, grids that hold what they are given, files at the right steps."""

import pytest
import pytorch_lightning as pl
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from small_stage import SmallStage, crops, fit, loader, trainer
from torch.utils.data import default_collate

from pathorestore.data.batches import SharpBatch
from pathorestore.functional.color import srgb_to_linear
from pathorestore.image import from_uint8
from pathorestore.training.average import ExponentialAverage
from pathorestore.training.budget import WallClockBudget
from pathorestore.training.pictures import PictureGrid, draw_grid, heat_colours
from pathorestore.training.record import default_logger


def _lightness(colours):
    """CIE L* of colours b 3 h w."""
    luminance = (srgb_to_linear(colours) * torch.tensor([0.2126, 0.7152, 0.0722])[:, None, None]).sum(1)
    return torch.where(luminance > 216 / 24389, 116 * luminance ** (1 / 3) - 16, luminance * 24389 / 27)


def test_heat_colours_grow_evenly_lighter_with_the_distance():
    steps = _lightness(heat_colours(torch.linspace(0, 4, 33)[None, None, None], top_um=4.0))[0, 0].diff()
    assert (steps > 0).all()
    assert steps.max() < 1.4 * steps.mean()


@given(distance=st.floats(-10, 10), top=st.floats(0.1, 8))
def test_heat_colours_depend_on_the_distance_to_focus_relative_to_the_top(distance, top):
    def colour(um, top_um):
        return heat_colours(torch.full((1, 1, 1, 1), um), top_um=top_um)

    assert torch.equal(colour(distance, top), colour(-distance, top))
    torch.testing.assert_close(colour(distance, top), colour(3 * distance, 3 * top), rtol=0, atol=1e-4)
    assert colour(distance, top).min() >= 0
    assert colour(distance, top).max() <= 1
    if abs(distance) >= top:
        assert torch.equal(colour(distance, top), colour(100.0, top))


def test_heat_colours_of_what_nobody_knows_are_gray_and_shapes_are_checked():
    distance = torch.tensor([0.0, float("nan"), float("inf")])[None, None, None]
    colours = heat_colours(distance, top_um=1.0)
    assert colours.shape == (1, 3, 1, 3)
    assert (colours[..., 1:] == 0.5).all()
    with pytest.raises(ValueError, match="positive distance in um, got 0"):
        heat_colours(distance, top_um=0.0)
    with pytest.raises(ValueError, match="expected b 1 h w"):
        heat_colours(torch.zeros(3, 4), top_um=1.0)


def _pixels(grid):
    import numpy as np

    return from_uint8(np.asarray(grid))


def _contains(grid, picture):
    """Whether a picture 3 h w stands somewhere in the grid, to the bit."""
    pixels, picture = (_pixels(grid)[0] * 255).round(), (picture * 255).round()
    windows = pixels.unfold(1, picture.shape[1], 1).unfold(2, picture.shape[2], 1)  # 3 y x h w
    return bool((windows == picture[:, None, None]).all(dim=(0, 3, 4)).any())


def test_a_grid_holds_every_picture_unchanged_under_its_name():
    generator = torch.Generator().manual_seed(0)
    columns = {name: torch.rand(2, 3, 12, 16, generator=generator) for name in ("degraded", "a name that is wider than its pictures")}
    grid = draw_grid(columns)
    assert all(_contains(grid, picture) for images in columns.values() for picture in images)
    assert grid.width > 2 * 16 * 3  # the name fits
    bare = draw_grid({name: torch.ones(2, 3, 12, 16) for name in columns})
    renamed = draw_grid({name: torch.ones(2, 3, 12, 16) for name in ("clean", *list(columns)[1:])})
    assert bare.tobytes() != renamed.tobytes()


def test_smaller_pictures_are_enlarged_pixel_by_pixel():
    small, large = torch.rand(1, 3, 4, 4), torch.rand(1, 3, 8, 8)
    grid = draw_grid({"small": small, "large": large})
    assert _contains(grid, large[0])
    assert _contains(grid, small[0].repeat_interleave(2, 1).repeat_interleave(2, 2))


def test_a_heat_map_gets_a_bar_from_nought_to_its_top():
    columns = {"degraded": torch.zeros(1, 3, 32, 64), "distance": torch.zeros(1, 3, 32, 64)}
    plain, legend = draw_grid(columns), draw_grid(columns, legends_um={"distance": 4.0, "absent": 1.0})
    assert legend.height > plain.height
    assert _contains(legend, heat_colours(torch.linspace(0, 4, 64).expand(1, 1, 3, 64), top_um=4.0)[0])
    assert legend.tobytes() != draw_grid(columns, legends_um={"distance": 3.0}).tobytes()  # the number is written


@pytest.mark.parametrize(
    "columns",
    [{}, {"a": torch.zeros(1, 1, 4, 4)}, {"a": torch.zeros(3, 4, 4)}, {"a": torch.zeros(1, 3, 4, 4), "b": torch.zeros(2, 3, 4, 4)}],
)
def test_columns_that_make_no_grid_are_refused_with_their_shapes(columns):
    with pytest.raises(ValueError, match="pictures are of shapes"):
        draw_grid(columns)


def _names(folder):
    return sorted(path.name for path in (folder / "pictures").iterdir())


def test_pictures_are_written_at_the_validations_that_were_asked_for_and_a_resumed_run_counts_on(tmp_path):
    def callbacks():
        return [PictureGrid(every_n_validations=2, images=3), WallClockBudget()]

    fit(SmallStage(), tmp_path / "whole", callbacks=callbacks(), max_steps=16)
    assert _names(tmp_path / "whole") == ["step_000004.png", "step_000012.png"]
    first = fit(SmallStage(), tmp_path / "parts", callbacks=callbacks(), max_steps=4)
    first.save_checkpoint(tmp_path / "x.ckpt")
    fit(SmallStage(), tmp_path / "parts", callbacks=callbacks(), max_steps=16, ckpt_path=tmp_path / "x.ckpt")
    assert _names(tmp_path / "parts") == _names(tmp_path / "whole")


def test_the_grid_shows_the_first_images_of_the_first_batch_through_the_averaged_weights(tmp_path):
    stage, average = SmallStage(), ExponentialAverage(0.5)
    # the average before the grid: at the end of validation its weights are gone already
    fit(stage, tmp_path, callbacks=[average, PictureGrid(images=1)], max_steps=4)
    batch = default_collate(crops()[:1])
    average.swap(stage)
    stage.eval()
    with torch.no_grad():
        expected = stage.pictures(batch)
    with Image.open(tmp_path / "pictures" / "step_000004.png") as grid:
        assert all(_contains(grid, images[0]) for images in expected.values())
        assert grid.height < 2 * 8 + 40
    average.swap(stage)
    with torch.no_grad():
        live = stage.pictures(batch)
    assert not torch.equal((live["coarse"] * 255).round(), (expected["coarse"] * 255).round())


def test_a_stage_without_pictures_gets_none(tmp_path):
    stage = SmallStage()
    stage.pictures = lambda batch: {}
    fit(stage, tmp_path, callbacks=[PictureGrid()])
    assert not (tmp_path / "pictures").exists()


def test_outside_fit_the_picture_names_no_step(tmp_path):
    trainer(tmp_path, callbacks=[PictureGrid()]).validate(SmallStage(), loader())
    assert _names(tmp_path) == ["validation.png"]


def test_a_sanity_check_draws_nothing_and_counts_as_nothing(tmp_path):
    fit(SmallStage(), tmp_path, callbacks=[PictureGrid(every_n_validations=2)], max_steps=8, num_sanity_val_steps=1)
    assert _names(tmp_path) == ["step_000004.png"]


def test_tensorboard_gets_the_same_grid(tmp_path):
    pytest.importorskip("tensorboard")
    loggers = default_logger(tmp_path)
    given_images = []
    assert loggers[0].experiment  # the table makes the folder
    board = loggers[1].experiment
    write = board.add_image
    board.add_image = lambda *args, **options: given_images.append((args, options)) or write(*args, **options)
    running = fit(SmallStage(), tmp_path, callbacks=[PictureGrid()], logger=loggers)
    (((tag, pixels, step), options),) = given_images
    assert (tag, step, options) == ("pictures", 4, {"dataformats": "HWC"})
    with Image.open(f"{running.log_dir}/pictures/step_000004.png") as grid:
        assert torch.equal(from_uint8(pixels.numpy()), _pixels(grid))


def test_other_processes_than_the_first_draw_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(pl.Trainer, "is_global_zero", False)
    fit(SmallStage(), tmp_path, callbacks=[PictureGrid()])
    assert not (tmp_path / "pictures").exists()


def test_batches_are_cut_whatever_they_are_made_of(tmp_path):
    seen = []

    class Counting(SmallStage):
        def pictures(self, batch):
            seen.append(batch)
            return super().pictures(batch)

    fit(Counting(), tmp_path, callbacks=[PictureGrid(images=1)])
    assert isinstance(seen[0], SharpBatch)
    assert [len(field) for field in seen[0]] == [1, 1, 1]


@pytest.mark.parametrize("options", [{"every_n_validations": 0}, {"images": 0}])
def test_impossible_grids_are_refused(options):
    with pytest.raises(ValueError, match="at least 1"):
        PictureGrid(**options)
