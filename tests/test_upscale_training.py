"""Learning to enlarge: pairs made by the rule, points that are where their colours are, figures against bicubic interpolation."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from pathorestore.data.batches import SharpBatch
from pathorestore.degradations.acquisition import compress, gaussian_blur
from pathorestore.degradations.resize import blur_then_resize, reduced, resized
from pathorestore.metrics.fidelity import psnr
from pathorestore.models.implicit_decoders import ImplicitDecoderConfig, LIIFDecoder, LTEDecoder
from pathorestore.models.iste import Search, TextureDecoder, TextureDecoderConfig
from pathorestore.models.swinir import SwinIR, SwinIRConfig
from pathorestore.training import UpscaleStage
from pathorestore.training.upscale_stage import ScaleSampling


def stage(seed=0, **sampling):
    torch.manual_seed(0)
    encoder = SwinIR(SwinIRConfig(embed=12, blocks=(1,), heads=2, window=4, features=8))
    decoder = TextureDecoder(TextureDecoderConfig(features=8, texture=12, hidden=(16,), heads=2, skip="bilinear"))
    return UpscaleStage(encoder, decoder, sampling=ScaleSampling(**{"small_px": 12, "points": 60} | sampling), seed=seed)


def batch(size=48, keys=(3, 4), seed=0):
    sharp = torch.rand(len(keys), 3, size, size, generator=torch.Generator().manual_seed(seed))
    return SharpBatch(sharp, torch.tensor(keys), torch.zeros(len(keys), dtype=torch.long))


@given(side=st.integers(8, 40), small=st.integers(4, 8))
def test_what_is_made_smaller_is_blurred_by_half_of_what_it_loses(side, small):
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    scale = side / small
    blurred = gaussian_blur(image, sigma_px=(scale - 1) / 2) if scale > 1 else image
    assert torch.equal(blur_then_resize(image, (small, small)), resized(blurred, (small, small)))


def test_reduction_is_pillows_bicubic():
    image = torch.rand(1, 3, 60, 45, generator=torch.Generator().manual_seed(0))
    channel = Image.fromarray(image[0, 0].numpy(), mode="F").resize((15, 20), Image.Resampling.BICUBIC)
    assert torch.allclose(resized(image, (20, 15))[0, 0], torch.from_numpy(np.array(channel)).clamp(0, 1), atol=1e-5)


def test_nothing_is_done_at_scale_one_and_nothing_is_enlarged():
    image = torch.rand(1, 3, 9, 9)
    assert torch.equal(blur_then_resize(image, (9, 9)), image)
    with pytest.raises(ValueError, match="to the larger"):
        blur_then_resize(image, (10, 9))


def test_the_blur_is_a_share_of_the_papers_and_may_be_left_out():
    image = torch.rand(1, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    assert torch.equal(blur_then_resize(image, (8, 8), blur=0), resized(image, (8, 8)))
    assert torch.equal(blur_then_resize(image, (8, 8), blur=0.5), resized(gaussian_blur(image, sigma_px=0.5), (8, 8)))
    with pytest.raises(ValueError, match="blur must not be negative"):
        blur_then_resize(image, (8, 8), blur=-0.1)


def test_each_image_is_blurred_by_its_own_share():
    """Noise loses contrast by blur: between the bounds the samples' contrast is between those of the bounds."""

    def contrast(blur):
        return stage(blur=blur, largest_scale=4.0).samples(batch(keys=range(30)))[0].std(dim=(1, 2, 3))

    none, some, all_of_it = contrast((0.0, 0.0)), contrast((0.0, 1.0)), contrast((1.0, 1.0))
    assert bool(((all_of_it <= some) & (some <= none)).all())
    share = ((none - some) / (none - all_of_it)).nan_to_num(0.5)
    assert share.min() < 0.2
    assert share.max() > 0.8
    with pytest.raises(ValueError, match="least and most"):
        stage(blur=(1.0, 0.5))


def test_the_colours_are_those_of_the_sharp_pixels_at_the_points():
    made = batch()
    small, places, footprint, colours = stage().samples(made)
    assert small.shape == (2, 3, 12, 12)
    for image, place, foot, colour in zip(made.sharp, places, footprint, colours, strict=True):
        side = round(12 / foot[0].item())
        part = image[None, :, :side, :side]
        found = F.grid_sample(part, place.float().flip(-1)[None, None], mode="nearest", align_corners=False)[0, :, 0].T
        assert torch.equal(found, colour)
        assert len(place.unique(dim=0)) == 60


def test_samples_follow_from_seed_and_key_alone():
    both, alone = stage().samples(batch(keys=(3, 4))), stage().samples(SharpBatch(*(part[1:] for part in batch(keys=(3, 4)))))
    other = stage(seed=1).samples(batch(keys=(3, 4)))
    assert all(torch.equal(one[1:], two) for one, two in zip(both, alone, strict=True))
    assert not torch.equal(both[2], other[2])


def test_scales_fill_their_range():
    made = SharpBatch(torch.rand(1, 3, 48, 48).expand(40, -1, -1, -1), torch.arange(40), torch.zeros(40, dtype=torch.long))
    scales = 1 / stage(points=1).samples(made)[2][:, 0]
    assert scales.min() >= 1
    assert scales.max() <= 4
    assert scales.std() > 0.6


def test_it_learns_to_draw_better_than_bilinear():
    network, made = stage(largest_scale=2.0), batch(seed=2)
    made = made._replace(sharp=gaussian_blur(made.sharp, sigma_px=1.2))
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(40):
        small, places, footprint, colours = network.samples(made)
        loss = (network.decoder(network.encoder(small), small, places, footprint) - colours).abs().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]


def test_a_share_of_the_small_images_is_compressed():
    plain, some = stage().samples(batch(keys=range(40)))[0], stage(compressed=0.5, quality=(70, 80)).samples(batch(keys=range(40)))[0]
    changed = (plain - some).abs().amax(dim=(1, 2, 3)) > 0.01
    assert 10 < int(changed.sum()) < 30
    assert torch.equal(plain[~changed], some[~changed])
    first = int(changed.nonzero()[0])
    tries = [compress(plain[first : first + 1], quality=quality) for quality in range(70, 81)]
    assert any(torch.equal(one[0], some[first]) for one in tries)
    for wrong in ({"compressed": 1.5}, {"quality": (90, 80)}, {"quality": (0, 80)}):
        with pytest.raises(ValueError, match="compressed must lie"):
            stage(**wrong)


def test_a_system_searches_among_as_many_textures_as_in_training():
    assert stage(points=60).settings() == stage(points=60).system.search == Search(max_keys=60)


def test_validation_looks_at_blurred_and_at_sharp_reductions(monkeypatch):
    network, told = stage(), {}
    monkeypatch.setattr(network, "score", lambda name, values, **_: told.setdefault(name, values))
    made = SharpBatch(gaussian_blur(batch(size=48).sharp, sigma_px=1.0), *batch(size=48)[1:])
    network.evaluate(made)
    for name, blur in (("gain_x2", 1.0), ("gain_x2_sharp", 0.0)):
        small, clean = reduced(made.sharp, 2.0, blur=blur)
        size = tuple(clean.shape[-2:])
        gain = psnr(network.system.upscale(small, out_size=size), clean) - psnr(resized(small, size), clean)
        assert torch.allclose(told[name], gain, atol=1e-4)
    assert not torch.allclose(told["gain_x2"], told["gain_x2_sharp"], atol=1e-3)
    small, clean = reduced(made.sharp, 2.0, blur=0.0)
    coded, size = compress(small, quality=85), tuple(clean.shape[-2:])
    gain = psnr(network.system.upscale(coded, out_size=size), clean) - psnr(resized(coded, size), clean)
    assert torch.allclose(told["gain_x2_jpeg"], gain, atol=1e-4)


def test_reduction_loses_no_pixel_to_rounding():
    small, clean = reduced(torch.rand(1, 3, 33, 33), 1.1)
    assert (small.shape[-1], clean.shape[-1]) == (30, 33)
    with pytest.raises(ValueError, match="too few to be made 9 times smaller"):
        reduced(torch.rand(1, 3, 8, 8), 9.0)


def test_validation_shows_whole_small_pixels_only():
    small, clean = reduced(torch.rand(1, 3, 64, 50), 3.3)
    assert small.shape[-2:] == (19, 15)
    assert clean.shape[-2:] == (63, 50)


@pytest.mark.parametrize("kind", [LIIFDecoder, LTEDecoder])
def test_the_decoders_it_is_compared_with_learn_in_the_same_stage(kind):
    network = stage()
    other = UpscaleStage(network.encoder, kind(ImplicitDecoderConfig(features=8, hidden=(9,), texture=6)), sampling=network.sampling)
    small, places, footprint, colours = other.samples(batch())
    (other.decoder(other.encoder(small), small, places, footprint) - colours).abs().mean().backward()
    assert all(parameter.grad is not None for parameter in other.decoder.parameters())
    assert other.system.upscale(small, scale=2.5).shape == (2, 3, 30, 30)


def test_crops_that_are_too_small_and_odd_settings_are_refused():
    with pytest.raises(ValueError, match=r"set crops\.crop_px to 48"):
        stage().samples(batch(size=40))
    with pytest.raises(ValueError, match="largest_scale"):
        stage(largest_scale=0.5)
