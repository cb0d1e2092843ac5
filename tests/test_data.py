"""Training crops: functions of a seed and a number, from images that may be many, large, unequal, or damaged."""

import logging
import pickle
from collections import Counter

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.utils.data import DataLoader

from pathorestore.data import sharp_crops
from pathorestore.data.batches import PairBatch, SharpBatch
from pathorestore.data.drawing import CropConfig, Draws, turned
from pathorestore.data.image_cache import ArrayCache, UnreadableImage, read_rgb
from pathorestore.data.manifest import Row
from pathorestore.data.paired import PairedCrops, WholePairs
from pathorestore.data.sampling import KeySampler, ShareSampler
from pathorestore.data.sharp_crops import SharpCrops, WholeSharp, image_files

ROWS = [Row(path="tile_0.png"), Row(path="tile_1.png")]


def _noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture
def folder(tmp_path):
    """Two tiles of noise, 64 x 72 px and 96 x 104 px."""
    for index, side in enumerate((64, 96)):
        Image.fromarray(_noise(side, side + 8, index)).save(tmp_path / f"tile_{index}.png")
    return tmp_path


def _cut_short(path, share=0.5):
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])


def _loaded(crops, keys, *, batch=4, workers=0):
    """What a DataLoader makes of the crops, one batch after another."""
    return list(DataLoader(crops, batch_size=batch, sampler=keys, num_workers=workers))


def test_images_of_a_folder_come_in_the_order_of_their_names(folder):
    assert [path.name for path in image_files(folder)] == ["tile_0.png", "tile_1.png"]
    with pytest.raises(FileNotFoundError, match="no images under"):
        image_files(folder / "nowhere")


@pytest.mark.filterwarnings("ignore:.*suggested max number of worker.*")
def test_a_crop_depends_on_seed_and_number_alone_whatever_the_workers(folder):
    crops = SharpCrops(ROWS, CropConfig(crop_px=16, margin_px=8, cache_mb=0), folder=folder, seed=3)
    alone = torch.stack([crops[key].sharp for key in range(10, 18)])
    kept = SharpCrops(ROWS, CropConfig(crop_px=16, margin_px=8), folder=folder, seed=3)
    for workers in (0, 1, 2):
        batches = _loaded(kept, range(10, 18), workers=workers)
        assert all(isinstance(batch, SharpBatch) for batch in batches)
        assert torch.equal(torch.cat([batch.sharp for batch in batches]), alone)
        assert torch.cat([batch.key for batch in batches]).tolist() == list(range(10, 18))
        assert batches[0].key.dtype == batches[0].margin_px.dtype == torch.int64
        assert batches[0].margin_px.tolist() == [8] * 4
    assert torch.equal(pickle.loads(pickle.dumps(kept))[10].sharp, alone[0])
    other = SharpCrops(ROWS, crops.config, folder=folder, seed=4)
    assert not torch.equal(other[10].sharp, alone[0])


def test_unaugmented_crops_are_windows_of_their_images(folder):
    crops = SharpCrops(ROWS[:1], CropConfig(crop_px=8, margin_px=4, augment=False), folder=folder)
    image = torch.from_numpy(read_rgb(folder / "tile_0.png")).permute(2, 0, 1) / 255
    windows = image.unfold(1, 16, 1).unfold(2, 16, 1).permute(1, 2, 0, 3, 4).reshape(-1, 3, 16, 16)
    for key in range(5):
        assert (windows == crops[key].sharp).flatten(1).all(dim=1).any()


def test_augmentation_turns_the_same_window_in_all_eight_ways(folder):
    plain, turning = (SharpCrops(ROWS, CropConfig(crop_px=16, augment=augment), folder=folder) for augment in (False, True))
    ways = set()
    for key in range(60):
        matches = [way for way in range(8) if torch.equal(turned(plain[key].sharp, way), turning[key].sharp)]
        assert len(matches) == 1
        ways.update(matches)
    assert ways == set(range(8))


def test_crops_stay_in_range_and_size_when_resized(folder):
    crops = SharpCrops(ROWS, CropConfig(crop_px=40, zoom=(0.5, 0.9, 2.5)), folder=folder)
    batch = torch.stack([crops[key].sharp for key in range(20)])
    assert batch.shape == (20, 3, 40, 40)
    assert 0 <= float(batch.min()) <= float(batch.max()) <= 1


def test_images_are_drawn_in_proportion_to_their_area(folder):
    crops = SharpCrops(ROWS, CropConfig(crop_px=16), folder=folder)
    counts = Counter(crops._draws.which(key) for key in range(3000))
    small, large = (height * width for height, width in (image.size_px for image in crops.images))
    expected = 3000 * small / (small + large)
    assert counts[0] == pytest.approx(expected, abs=4 * (expected * large / (small + large)) ** 0.5)


def test_a_target_pixel_size_resizes_what_is_known_and_names_how_many_are_not(tmp_path, caplog):
    ramp = np.repeat(np.arange(0, 240, 2, dtype=np.uint8)[None, :, None], 120, axis=0).repeat(3, axis=2)
    Image.fromarray(ramp).save(tmp_path / "ramp.png")
    config = CropConfig(crop_px=16, target_mpp=0.5, augment=False)

    def slope(mpp):
        crop = SharpCrops([Row(path="ramp.png", mpp=mpp)], config, folder=tmp_path)[0].sharp
        assert crop.shape == (3, 16, 16)
        return float(crop[:, :, 4:12].diff(dim=2).mean() * 255)

    assert slope(0.5) == pytest.approx(2)
    assert slope(0.25) == pytest.approx(4, rel=0.02)
    assert slope(1.0) == pytest.approx(1, rel=0.02)
    assert "1 of 1 images have no mpp" not in caplog.text
    assert slope(None) == pytest.approx(2)
    assert "1 of 1 images have no mpp" in caplog.text
    two = SharpCrops([Row(path="ramp.png", mpp=0.25), Row(path="ramp.png", mpp=0.5)], config, folder=tmp_path)
    assert Counter(two._draws.which(key) for key in range(2000))[0] == pytest.approx(400, abs=80)


def test_images_smaller_than_the_crop_are_left_out_and_none_left_is_an_error(folder, caplog):
    assert [image.row for image in SharpCrops(ROWS, CropConfig(crop_px=40, margin_px=20), folder=folder).images] == ROWS[1:]
    assert "1 of 2 images are smaller than a crop" in caplog.text
    with pytest.raises(ValueError, match="smaller crop"):
        SharpCrops(ROWS, CropConfig(crop_px=500), folder=folder)
    # at twice the pixel size the smaller image is too small
    coarse = [Row(path=row.path, mpp=0.25) for row in ROWS]
    assert len(SharpCrops(coarse, CropConfig(crop_px=40, target_mpp=0.5), folder=folder).images) == 1


@pytest.mark.parametrize(
    "options",
    [{"crop_px": 4}, {"margin_px": -1}, {"zoom": ()}, {"zoom": (0.0,)}, {"target_mpp": -1.0}, {"on_unreadable": "ignore"}, {"cache_mb": -1},
     {"crops_per_image": 0}],
)  # fmt: skip
def test_a_configuration_is_checked_at_birth(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        CropConfig(**options)


# the cache


@given(sizes=st.lists(st.integers(100, 1200), min_size=5, max_size=9), wanted=st.lists(st.integers(0, 8), min_size=12, max_size=40))
def test_a_cache_never_keeps_more_than_its_budget_and_always_answers_right(sizes, wanted):
    cache = ArrayCache(1)
    for key in (index % len(sizes) for index in wanted):
        made = cache.get(key, lambda key=key: np.full(sizes[key] << 10, key % 256, dtype=np.uint8))
        assert len(made) == sizes[key] << 10
        assert made[0] == key % 256
        assert cache.kept_bytes == sum(sizes[kept] << 10 for kept in range(len(sizes)) if kept in cache) <= 1 << 20


def test_a_cache_drops_what_was_used_longest_ago_and_refuses_what_would_fill_it_alone():
    cache, made = ArrayCache(1), []

    def make(key, kib):
        return lambda: (made.append(key), np.zeros(kib << 10, dtype=np.uint8))[1]

    for key in ("a", "b", "a", "c"):  # a was used after b
        cache.get(key, make(key, 400))
    assert made == ["a", "b", "c"]
    assert "a" in cache
    assert "b" not in cache
    assert len(cache.get("huge", make("huge", 2000))) == 2000 << 10
    assert "huge" not in cache
    assert "a" in cache
    assert pickle.loads(pickle.dumps(cache)).kept_bytes == 0


def test_images_are_decoded_once_while_they_are_kept(folder, monkeypatch):
    decoded = []
    monkeypatch.setattr(sharp_crops, "read_rgb", lambda path: (decoded.append(path), read_rgb(path))[1])
    crops = SharpCrops(ROWS, CropConfig(crop_px=16), folder=folder)
    assert not decoded, "sizes come from headers"
    for key in range(20):
        crops[key]
    assert len(decoded) == 2


@given(key=st.integers(0, 10**12), crops=st.integers(2, 9), turns=st.integers(1, 9))
def test_within_a_block_every_image_that_has_its_turn_gives_the_same_number_of_crops(key, crops, turns):
    config = CropConfig(crops_per_image=crops, images_at_once=turns)
    draws = Draws(np.ones(10**6), config, seed=5)
    block = key // (crops * turns) * crops * turns
    drawn = Counter(draws.which(number) for number in range(block, block + crops * turns))
    assert sorted(drawn.values()) == [crops] * turns  # of a million images, none twice
    again = Counter(draws.which(number) for number in range(block + crops * turns, block + 2 * crops * turns))
    assert not set(drawn) & set(again)


def test_images_in_turn_are_decoded_once_for_all_their_crops(tmp_path, monkeypatch):
    for index in range(12):
        Image.fromarray(_noise(600, 600, index)).save(tmp_path / f"{index}.bmp")
    decoded = []
    monkeypatch.setattr(sharp_crops, "read_rgb", lambda path: (decoded.append(path), read_rgb(path))[1])
    rows = [Row(path=f"{index}.bmp") for index in range(12)]
    # each image takes 1.03 MiB, so that the cache holds four
    crops = SharpCrops(rows, CropConfig(crop_px=16, cache_mb=5, crops_per_image=10, images_at_once=4), folder=tmp_path)
    windows = {crops[key].sharp.numpy().tobytes() for key in range(80)}
    assert len(decoded) <= 8
    assert len(windows) == 80
    assert crops._cache.kept_bytes <= 5 << 20


def test_loading_that_will_be_slow_for_want_of_cache_is_foretold(tmp_path, caplog):
    for index in range(3):
        Image.new("RGB", (2400, 2000)).save(tmp_path / f"{index}.png")  # 13.7 MiB
    rows = [Row(path=f"{index}.png") for index in range(3)]

    def said(**options):
        caplog.clear()
        SharpCrops(rows, CropConfig(crop_px=16, **options), folder=tmp_path)
        return caplog.text

    assert "3 images take 14 MiB each once decoded, more than cache_mb=32" in said(cache_mb=32)
    assert "set it to 2" in said(cache_mb=32, crops_per_image=8)
    assert said(cache_mb=32, crops_per_image=8, images_at_once=2) == ""
    assert said(cache_mb=64) == ""


# pairs


@pytest.fixture
def stack(tmp_path):
    """Two focal planes and their target, which is the negative of the first; and a pair without labels."""
    for name, pixels in {"z0": _noise(50, 60), "z1": _noise(50, 60, 1), "fused": 255 - _noise(50, 60), "other": _noise(90, 80, 2)}.items():
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    return tmp_path


PLANES = [Row(path="z0.png", target="fused.png", z_um=-1.5, ctf=0.25), Row(path="other.png", target="other.png")]


def test_both_partners_get_the_same_window_and_turn_and_the_labels_of_their_row(stack):
    pairs = PairedCrops(PLANES, CropConfig(crop_px=20, zoom=(1.0, 1.5)), folder=stack, seed=2)
    (batch,) = _loaded(pairs, range(40), batch=40)
    assert isinstance(batch, PairBatch)
    assert batch.degraded.shape == batch.clean.shape == (40, 3, 20, 20)
    known = batch.defocus_um == -1.5
    assert 0 < known.sum() < 40
    assert torch.allclose(batch.degraded[known] + batch.clean[known], torch.ones(()), atol=1e-5)
    assert torch.equal(batch.degraded[~known], batch.clean[~known])
    assert batch.ctf[known].eq(0.25).all()
    assert batch.ctf[~known].isnan().all()
    assert batch.defocus_um[~known].isnan().all()
    assert batch.defocus_um.dtype == torch.float32
    assert batch.key.tolist() == list(range(40))


def test_partners_of_unequal_size_are_named_or_left_out(stack):
    rows = [Row(path="z0.png", target="other.png"), PLANES[0]]
    with pytest.raises(UnreadableImage, match=r"other\.png.*80 x 90 px.*z0\.png.*60 x 50 px"):
        PairedCrops(rows, CropConfig(crop_px=20), folder=stack)
    assert len(PairedCrops(rows, CropConfig(crop_px=20, on_unreadable="skip"), folder=stack).images) == 1
    with pytest.raises(UnreadableImage, match="registered"):
        WholePairs(rows, folder=stack)[0]


def test_pairs_take_no_margin(stack):
    with pytest.raises(ValueError, match="margin_px: 0"):
        PairedCrops(PLANES, CropConfig(crop_px=20, margin_px=4), folder=stack)


def test_whole_images_carry_their_rows_number(stack):
    pair = WholePairs(PLANES, folder=stack)[1]
    assert pair.degraded.shape == (3, 90, 80)
    assert int(pair.key) == 1
    assert pair.ctf.isnan()
    sharp = WholeSharp([Row(path="z0.png"), Row(path="other.png")], folder=stack)
    assert len(sharp) == 2
    assert sharp[1].sharp.shape == (3, 90, 80)
    assert (int(sharp[1].key), int(sharp[1].margin_px)) == (1, 0)


# damaged files


@pytest.mark.parametrize("options", [{"suffix": "png"}, {"suffix": "jpg"}, {"suffix": "bmp"}, {"suffix": "tif"}])
def test_a_file_that_ends_half_way_is_unreadable_in_every_format(tmp_path, options):
    path = tmp_path / f"half.{options['suffix']}"
    Image.fromarray(_noise(200, 200)).save(path)
    assert read_rgb(path).shape == (200, 200, 3)
    _cut_short(path)
    with pytest.raises(UnreadableImage, match=r"half\.\w+: cannot be read.*truncated.*on_unreadable: skip"):
        read_rgb(path)


def test_other_depths_and_files_that_are_missing_or_no_images_are_unreadable(tmp_path):
    Image.fromarray(np.zeros((8, 8), dtype=np.uint16)).save(tmp_path / "deep.png")
    (tmp_path / "note.png").write_text("not an image")
    for name, reason in {"deep.png": "mode I;16", "note.png": "no image", "gone.png": "no such file"}.items():
        with pytest.raises(UnreadableImage, match=f"{name}.*{reason}"):
            read_rgb(tmp_path / name)


@pytest.mark.filterwarnings("ignore:.*suggested max number of worker.*")
@pytest.mark.parametrize("workers", [0, 2])
def test_training_stops_at_an_unreadable_image_and_names_it_also_from_a_worker(folder, workers):
    crops = SharpCrops(ROWS, CropConfig(crop_px=16), folder=folder)
    _cut_short(folder / "tile_1.png")
    with pytest.raises(UnreadableImage) as caught:
        _loaded(crops, range(20), workers=workers)
    assert str(caught.value).startswith(f"{folder / 'tile_1.png'}: cannot be read")
    assert "Traceback" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:.*suggested max number of worker.*")
def test_unreadable_images_are_passed_over_alike_in_every_process_and_said_once(folder, caplog):
    config = CropConfig(crop_px=16, on_unreadable="skip")
    rows = [*ROWS, Row(path="gone.png")]
    whole = SharpCrops(ROWS[:1], config, folder=folder)
    before = SharpCrops(rows, config, folder=folder)
    assert "gone.png" in caplog.text
    sound = [before[key].sharp for key in range(40)]
    crops = [SharpCrops(rows, config, folder=folder) for _ in range(3)]
    _cut_short(folder / "tile_1.png")
    caplog.clear()
    redrawn = [crops[0][key].sharp for key in range(40)]
    assert sum("tile_1.png" in record.message for record in caplog.records) == 1
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    backwards = [crops[1][key].sharp for key in reversed(range(40))][::-1]
    elsewhere = torch.cat([batch.sharp for batch in _loaded(crops[2], range(40), workers=2)])
    assert torch.equal(torch.stack(redrawn), torch.stack(backwards))
    assert torch.equal(torch.stack(redrawn), elsewhere)
    same = [torch.equal(a, b) for a, b in zip(sound, redrawn, strict=True)]
    assert 0 < sum(same) < 40, "crops of readable images stay what they were"
    assert len({crop.numpy().tobytes() for crop in redrawn}) == 40
    assert whole.images == before.images[:1]


@pytest.mark.filterwarnings("ignore:.*suggested max number of worker.*")
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_whose_images_are_all_unreadable_stops(folder, workers):
    crops = SharpCrops(ROWS, CropConfig(crop_px=16, on_unreadable="skip"), folder=folder)
    for name in ("tile_0.png", "tile_1.png"):
        _cut_short(folder / name)
    with pytest.raises(UnreadableImage, match=r"^2 of 2 images cannot be read"):
        _loaded(crops, range(8), workers=workers)
    (folder / "tile_0.png").write_bytes(b"")
    (folder / "tile_1.png").write_bytes(b"")
    with pytest.raises(ValueError, match="2 cannot be read"):
        SharpCrops(ROWS, CropConfig(crop_px=16, on_unreadable="skip"), folder=folder)
    with pytest.raises(UnreadableImage, match=r"tile_0\.png"):
        SharpCrops(ROWS, CropConfig(crop_px=16), folder=folder)


# keys


_SHARES = st.tuples(st.integers(1, 5), st.integers(1, 4), st.integers(1, 6))


def _epochs(count, first=0, start=0, **options):
    sampler = KeySampler(first=first, **options)
    keys = []
    for epoch in range(start, start + count):
        sampler.set_epoch(epoch)
        keys += list(sampler)
    return keys


@given(shares=_SHARES)
def test_the_processes_of_a_step_share_what_one_process_would_take(shares):
    batch, world, steps = shares
    size = batch * world * steps
    alone = _epochs(2, epoch_size=size, batch_size=batch * world)
    assert alone == list(range(2 * size))
    ranks = [_epochs(2, epoch_size=size, batch_size=batch, rank=rank, world=world) for rank in range(world)]
    for step in range(2 * steps):
        shared = [key for keys in ranks for key in keys[step * batch : (step + 1) * batch]]
        assert shared == alone[step * batch * world : (step + 1) * batch * world]
    assert len(KeySampler(epoch_size=size, batch_size=batch, world=world)) == size // world


@given(shares=_SHARES, data=st.data())
def test_a_resumed_sequence_is_the_tail_of_the_uninterrupted_one(shares, data):
    batch, world, steps = shares
    options = {"epoch_size": batch * world * steps, "batch_size": batch, "world": world, "rank": data.draw(st.integers(0, world - 1))}
    done = data.draw(st.integers(0, 3 * steps - 1))
    whole = _epochs(3, **options)
    assert _epochs(3 - done // steps, first=done * batch * world, start=done // steps, **options) == whole[done * batch :]


def test_an_epoch_of_broken_batches_is_refused_with_one_that_would_do():
    with pytest.raises(ValueError, match="try 24"):
        KeySampler(epoch_size=25, batch_size=4, world=2)


@given(count=st.integers(0, 50), world=st.integers(1, 7))
def test_validation_keys_are_seen_once_by_one_process(count, world):
    shares = [list(ShareSampler(count, rank=rank, world=world)) for rank in range(world)]
    assert sorted(key for share in shares for key in share) == list(range(count))
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [len(ShareSampler(count, rank=rank, world=world)) for rank in range(world)] == [len(share) for share in shares]
