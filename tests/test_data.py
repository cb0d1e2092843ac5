"""Training data: crops that depend on the seed and their number alone."""

import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from pathorestore.data.sharp_crops import CropConfig, FromStep, SharpCrops, image_files


@pytest.fixture
def folder(tmp_path):
    generator = torch.Generator().manual_seed(0)
    for index, side in enumerate((64, 96)):
        pixels = torch.randint(0, 256, (side, side + 8, 3), generator=generator, dtype=torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / f"tile_{index}.png")
    (tmp_path / "MANIFEST.csv").write_text("file,non_commercial\ntile_0.png,yes\ntile_1.png,no\n")
    return tmp_path


def test_only_images_that_may_be_shipped_are_kept(folder):
    assert [path.name for path in image_files(folder)] == ["tile_0.png", "tile_1.png"]
    assert [path.name for path in image_files(folder, manifest=folder / "MANIFEST.csv")] == ["tile_1.png"]
    with pytest.raises(FileNotFoundError, match="no usable images"):
        image_files(folder / "nowhere")


def test_a_crop_depends_on_seed_and_number_alone_whatever_the_workers(folder):
    crops = SharpCrops(image_files(folder), CropConfig(size_px=32, seed=3))
    alone = torch.stack([crops[index] for index in range(10, 18)])
    for workers in (0, 1):
        loaded = next(iter(DataLoader(crops, batch_size=8, sampler=FromStep(10), num_workers=workers)))
        assert torch.equal(loaded, alone)
    other = SharpCrops(image_files(folder), CropConfig(size_px=32, seed=4))
    assert not torch.equal(other[10], alone[0])


def test_unaugmented_crops_are_windows_of_their_images(folder):
    crops = SharpCrops(image_files(folder)[:1], CropConfig(size_px=16, augment=False))
    image = torch.from_numpy(crops.images[0]).permute(2, 0, 1) / 255
    windows = image.unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3, 16, 16)
    for index in range(5):
        assert (windows == crops[index]).flatten(1).all(dim=1).any()


def test_crops_stay_in_range_and_size_when_resized(folder):
    crops = SharpCrops(image_files(folder), CropConfig(size_px=40, zoom=(0.5, 0.9, 2.5)))
    batch = torch.stack([crops[index] for index in range(20)])
    assert batch.shape == (20, 3, 40, 40)
    assert 0 <= float(batch.min()) <= float(batch.max()) <= 1


def test_images_smaller_than_the_crop_are_left_out_and_none_left_is_an_error(folder):
    assert len(SharpCrops(image_files(folder), CropConfig(size_px=80)).images) == 1
    with pytest.raises(ValueError, match="smaller crop"):
        SharpCrops(image_files(folder), CropConfig(size_px=500))
    with pytest.raises(ValueError, match="zoom"):
        CropConfig(zoom=())
