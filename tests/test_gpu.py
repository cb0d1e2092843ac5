"""On a CUDA device: the same numbers as on the CPU, and memory bounded by the tile."""

import pytest
import torch

from pathorestore.functional.noise import NoiseField
from pathorestore.models.encoders import TinyEncoder, TinyEncoderConfig
from pathorestore.models.pformer import PFormer, PFormerConfig
from pathorestore.pipelines.mop import load_default
from pathorestore.pipelines.tiled import TiledRestorer

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.fixture(autouse=True)
def _full_precision(monkeypatch):
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def test_noise_is_the_same_bits_on_every_device():
    field = NoiseField(7, ((5, 9), (1000, 2000)))
    here, there = (field.draw(2, channels=3, height_px=64, width_px=64, device=device) for device in ("cpu", "cuda"))
    assert torch.equal(here, there.cpu())


@pytest.mark.parametrize("impl", ["folded", "taps", "naive"])
def test_the_p_former_agrees_with_the_cpu(impl):
    from dataclasses import replace

    torch.manual_seed(0)
    network = PFormer(replace(PFormerConfig.tiny(), moe_impl=impl)).eval()
    image, prompt = torch.rand(3, 3, 64, 64), torch.randn(3, 192)
    with torch.no_grad():
        here = network(image, prompt)
        there = network.cuda()(image.cuda(), prompt.cuda()).cpu()
    assert torch.allclose(here, there, atol=1e-4)


def test_the_encoder_agrees_with_the_cpu():
    encoder, image = TinyEncoder(TinyEncoderConfig.tiny()).eval(), torch.rand(2, 3, 128, 128)
    with torch.no_grad():
        here = encoder(image).cls
        there = encoder.cuda()(image.cuda()).cls.cpu()
    assert torch.allclose(here, there, atol=1e-4)


def test_restoration_agrees_with_the_cpu_and_between_batch_sizes(nuclei_image):
    restorer, image = load_default(), torch.nn.functional.interpolate(nuclei_image, size=(300, 330))
    here = TiledRestorer(restorer).restore(image, seed=1)
    restorer.cuda()
    there = [TiledRestorer(restorer, device="cuda", batch_size=size).restore(image, seed=1) for size in (1, 4)]
    # Canny's hysteresis may flip on a last bit, so a few pixels may differ by more than rounding
    for result in there:
        assert (result - here).abs().mean() < 1e-4
        assert (result - here).abs().max() < 0.05


def test_memory_is_bounded_by_the_tile_and_not_by_the_image():
    restorer = load_default().cuda()
    peaks = []
    for side in (512, 1536):
        torch.cuda.reset_peak_memory_stats()
        TiledRestorer(restorer, device="cuda").restore(torch.rand(1, 3, side, side))
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < 1.05 * peaks[0]


def test_a_slide_comes_out_as_on_the_cpu_in_batches(tmp_path):
    import numpy as np
    from slide_samples import OPTIONS, level_pixels, run_slide, tissue_pixels, write_slide

    source = write_slide(tmp_path / "in.tif", tissue_pixels(300, 500))
    wishes = {"tile_px": 128, "overlap_px": 32, "batch_size": 4}
    assert OPTIONS.all_tiles
    run_slide(source, tmp_path / "here.tif", load_default(), wishes=wishes)
    run_slide(source, tmp_path / "there.tif", load_default().cuda(), wishes=wishes, device="cuda")
    difference = np.abs(level_pixels(tmp_path / "here.tif").astype(int) - level_pixels(tmp_path / "there.tif"))
    assert difference.max() <= 2
    assert (difference > 0).mean() < 0.01


def test_enlarging_agrees_with_the_cpu_and_memory_is_that_of_a_tile(tmp_path):
    import numpy as np
    from slide_samples import level_pixels, tissue_pixels, write_slide
    from test_upscale_files import upscale_slide

    from pathorestore.pipelines.enlarge import DrawnPieces, enlarged
    from pathorestore.pipelines.iste import ISTE, ISTEConfig

    torch.manual_seed(0)
    network = ISTE.of(ISTEConfig.tiny()).eval()
    for parameter in network.decoder.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    image = torch.rand(1, 3, 90, 120)
    here = network.upscale(image, scale=2.7)
    source = write_slide(tmp_path / "in.tif", tissue_pixels(90, 120))
    upscale_slide(source, tmp_path / "here.tif", network, scale=2.7)
    network.cuda()
    assert (network.upscale(image.cuda(), scale=2.7).cpu() - here).abs().mean() < 1e-4
    # tiles travel, images stay
    assert (enlarged(DrawnPieces(enlarger=network), image, (243, 324), device="cuda") - here).abs().mean() < 1e-4
    peaks = []
    for side in (128, 512):
        torch.cuda.reset_peak_memory_stats()
        enlarged(DrawnPieces(enlarger=network), torch.rand(1, 3, side, side), (2 * side, 2 * side), device="cuda")
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < 1.05 * peaks[0]
    upscale_slide(source, tmp_path / "there.tif", network, scale=2.7, device="cuda")
    difference = np.abs(level_pixels(tmp_path / "here.tif").astype(int) - level_pixels(tmp_path / "there.tif"))
    assert (difference > 1).mean() < 0.01


def test_what_is_drawn_agrees_with_the_cpu_and_memory_is_that_of_a_region():
    from pathorestore.pipelines.enlarge import enlarged
    from pathorestore.pipelines.generate import GeneratedPieces
    from pathorestore.pipelines.histo_diffusion import HistoDiffusion

    system = HistoDiffusion.from_pretrained("histo-diffusion-tiny")
    image = torch.rand(1, 3, 40, 60)
    here = enlarged(GeneratedPieces(system=system, seed=3), image, (120, 180))
    pieces = GeneratedPieces(system=system.cuda(), tile_px=256, overlap_px=128, seed=3)
    assert (enlarged(pieces, image, (120, 180), device="cuda") - here).abs().mean() < 1e-2
    peaks = []
    for side in (256, 512):
        torch.cuda.reset_peak_memory_stats()
        enlarged(pieces, torch.rand(1, 3, side, side), (4 * side, 4 * side), device="cuda")
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[1] < 1.05 * peaks[0]


def test_a_prompted_model_on_the_device_takes_images_of_the_host_and_agrees(tmp_path):
    pytest.importorskip("diffusers", reason="the extra `diffusion`")
    from histo_samples import awake_lpfm

    model, image = awake_lpfm(), torch.rand(1, 3, 48, 48, generator=torch.Generator().manual_seed(0))
    here = [model(image, "denoise the H&E image", coarse_only=coarse) for coarse in (True, False)]
    model = model.cuda()
    there = [model(image, "denoise the H&E image", coarse_only=coarse).cpu() for coarse in (True, False)]
    assert torch.allclose(here[0], there[0], atol=1e-4)
    assert (here[1] - there[1]).abs().mean() < 2e-3
