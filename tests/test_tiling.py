"""Tiles and restorers made of them."""

from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from pathorestore.degradations.acquisition import gaussian_blur
from pathorestore.diffusion.resshift import ResShift
from pathorestore.functional.noise import NoiseField
from pathorestore.image import pad_to
from pathorestore.models.defocus import DefocusEstimator, DefocusEstimatorConfig
from pathorestore.models.encoders import Embedding, TinyEncoder, TinyEncoderConfig
from pathorestore.models.pdiffusion import PDiffusion, PDiffusionConfig
from pathorestore.models.pformer import PFormer, PFormerConfig
from pathorestore.models.prompts import EdgePrompt, EdgePromptConfig, PathologyPrompt, PathologyPromptConfig, Prompter
from pathorestore.pipelines.mop import MoPRestorer
from pathorestore.pipelines.refine import DiffusionRefiner, FineSettings, KeepCoarse
from pathorestore.pipelines.tiled import TiledRestorer
from pathorestore.tiling import Accumulator, TilePlan


@st.composite
def plans(draw):
    tile = draw(st.integers(8, 48))
    overlap = draw(st.integers(0, tile // 2))
    height, width, halo = draw(st.integers(tile, 5 * tile)), draw(st.integers(tile, 3 * tile)), draw(st.integers(0, overlap // 2))
    return TilePlan(height, width, tile, overlap, halo)


@given(plan=plans())
def test_integer_weights_are_an_exact_partition_of_unity(plan):
    total = torch.zeros(plan.height_px, plan.width_px, dtype=torch.int64)
    for index in range(len(plan)):
        assert plan.weight(index).min() >= 0
        plan.cut(total[None, None], index)[0, 0].add_(plan.weight(index))
    assert torch.equal(total, torch.full_like(total, 1 << 20))


@given(plan=plans(), seed=st.integers(0, 5))
def test_tiles_of_an_8_bit_image_blend_back_to_the_same_bits_in_any_order(plan, seed):
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, 256, (1, 3, plan.height_px, plan.width_px), generator=generator) / 255
    blend = Accumulator(plan, batch=1, channels=3)
    for index in torch.randperm(len(plan), generator=generator).tolist():
        blend.add(index, plan.cut(image, index))
    assert torch.equal(blend.image(), image)


@given(plan=plans(), seed=st.integers(0, 5))
def test_the_blend_of_different_tiles_does_not_depend_on_their_order(plan, seed):
    generator = torch.Generator().manual_seed(seed)
    tiles = torch.randn(len(plan), 1, 3, plan.tile_px, plan.tile_px, generator=generator)
    images = []
    for order in (range(len(plan)), torch.randperm(len(plan), generator=generator).tolist()):
        blend = Accumulator(plan, batch=1, channels=3)
        for index in order:
            blend.add(index, tiles[index])
        images.append(blend.image())
    assert torch.equal(*images)


def test_a_seam_between_unequal_tiles_is_a_ramp_and_not_a_step():
    plan = TilePlan(64, 112, 64, 16)
    blend = Accumulator(plan, batch=1, channels=1)
    blend.add(0, torch.zeros(1, 1, 64, 64))
    blend.add(1, torch.ones(1, 1, 64, 64))
    row = blend.image()[0, 0, 30]
    assert torch.equal(row[:48], torch.zeros(48))
    assert torch.equal(row[64:], torch.ones(48))
    assert row.diff().min() >= 0
    assert row.diff().max() < 0.12  # a raised cosine over 16 px climbs at most pi / 32 a pixel


def test_tiles_that_are_not_finite_or_of_another_size_are_refused():
    blend = Accumulator(TilePlan(8, 8, 8, 0), batch=1, channels=3)
    with pytest.raises(ValueError, match="NaN"):
        blend.add(0, torch.full((1, 3, 8, 8), float("nan")))
    with pytest.raises(ValueError, match="8 px on a side"):
        blend.add(0, torch.zeros(1, 3, 4, 8))


@pytest.mark.parametrize(
    ("args", "says"), [((64, 64, 32, 17), "half of tile_px"), ((16, 64, 32, 4), "smaller than tile_px"), ((64, 64, 32, 8, 5), "halo_px=5")]
)
def test_impossible_plans_are_refused(args, says):
    with pytest.raises(ValueError, match=says):
        TilePlan(*args)


class _NoContext(NamedTuple):
    nothing: torch.Tensor


class _Local:
    """A restorer whose every output pixel depends on the 5 x 5 pixels around it."""

    tile_px, multiple_px = 32, 1

    def __init__(self):
        torch.manual_seed(0)
        self.blur = nn.Conv2d(3, 3, 5, padding=2, padding_mode="replicate").requires_grad_(False)
        self.seen = []

    def prepare(self, degraded):
        self.seen.append(tuple(degraded.shape[-2:]))
        return _NoContext(degraded.new_zeros(len(degraded), 1))

    @property
    def stages(self):
        return (lambda current, degraded, context, noise: 0.5 + self.blur(degraded),)

    def restore(self, image, *, seed=0):
        return self.stages[0](image, image, None, None).clamp(0, 1)


@settings(max_examples=15)
@given(h=st.integers(1, 90), w=st.integers(1, 90), overlap=st.integers(4, 16))
def test_a_local_restorer_gives_the_same_in_tiles_as_whole(h, w, overlap):
    """Its 5 x 5 pixels reach two px far, which is the halo: where tiles meet, no pixel that misses a neighbour has any weight."""
    local, image = _Local(), torch.rand(1, 3, h, w, generator=torch.Generator().manual_seed(h * 100 + w))
    tiled = TiledRestorer(local, tile_px=32, overlap_px=overlap, halo_px=2).restore(image)
    assert tiled.shape == image.shape
    assert set(local.seen) == {(32, 32)}
    sides = [max(32, -(-side // 8) * 8) for side in (h, w)]
    whole = local.restore(pad_to(image, *sides))[..., :h, :w]
    assert torch.allclose(tiled, whole, atol=1e-6)


def test_without_a_halo_the_rims_of_tiles_show():
    local, image = _Local(), torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    assert (TiledRestorer(local, tile_px=32, overlap_px=16).restore(image) - local.restore(image)).abs().max() > 1e-3


def test_an_identity_restorer_returns_the_same_bits_whatever_the_size():
    class Identity(_Local):
        @property
        def stages(self):
            return (lambda current, degraded, context, noise: current,)

    for h, w in ((1, 1), (31, 17), (1, 200), (100, 77)):
        image = torch.randint(0, 256, (2, 3, h, w)) / 255
        assert torch.equal(TiledRestorer(Identity(), tile_px=32, overlap_px=8).restore(image), image)


@pytest.fixture(scope="module")
def mop():
    """An untrained two-stage restorer whose every part does something."""
    torch.manual_seed(0)
    encoder, defocus = TinyEncoder(TinyEncoderConfig.tiny()), DefocusEstimator(DefocusEstimatorConfig.tiny())
    prompter = Prompter(encoder, defocus, PathologyPrompt(PathologyPromptConfig.tiny()), EdgePrompt(EdgePromptConfig.tiny()))
    fine = PDiffusion(PDiffusionConfig.tiny())
    for module in (fine.fuse_edge, fine.cross_down.attention.out, fine.cross_up.attention.out, prompter.pathology.out_proj):
        nn.init.normal_(module.weight, std=0.2)
    nn.init.normal_(fine.unet.out[2].weight, std=0.1)
    return MoPRestorer(
        prompter,
        PFormer(PFormerConfig.tiny()),
        DiffusionRefiner(fine, FineSettings(process=ResShift(kappa=1.0, min_noise=0.1), guard_px=2.0)),
    ).eval()


def _tissue(height, width):
    coarse = torch.rand(1, 3, height // 4 + 1, width // 4 + 1, generator=torch.Generator().manual_seed(1))
    return nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")


def test_the_result_is_bitwise_the_same_for_any_tile_order_and_batch_size(mop):
    image = _tissue(150, 200)
    results = [
        TiledRestorer(mop, tile_px=128, overlap_px=32, **options).restore(image, seed=3)
        for options in ({}, {"batch_size": 3}, {"order": lambda count: range(count - 1, -1, -1)})
    ]
    forgetful = TiledRestorer(mop, tile_px=128, overlap_px=32)
    forgetful.context_bytes = 0
    results.append(forgetful.restore(image, seed=3))
    assert all(torch.equal(result, results[0]) for result in results[1:])
    assert not torch.equal(TiledRestorer(mop, tile_px=128, overlap_px=32).restore(image, seed=4), results[0])


def test_tiles_in_a_batch_give_what_they_give_alone_up_to_rounding(mop, monkeypatch):
    """What an accelerator does, forced here: contexts and noise must follow their tiles."""
    image = _tissue(150, 200)
    alone = TiledRestorer(mop, tile_px=128, overlap_px=32).restore(image, seed=3)
    monkeypatch.setattr(TiledRestorer, "_groups", lambda self, order: [order[start : start + 3] for start in range(0, len(order), 3)])
    batched = TiledRestorer(mop, tile_px=128, overlap_px=32, order=lambda count: range(count - 1, -1, -1)).restore(image, seed=3)
    assert (batched - alone).abs().max() < 1e-4


@pytest.mark.parametrize("workers", [1, 3])
def test_any_number_of_workers_finishing_in_any_order_makes_the_same_bits(mop, workers):
    image, plan, coarse = _tissue(152, 200), TilePlan(152, 200, 128, 32), mop.coarse_only()
    blend = Accumulator(plan, batch=1, channels=3)

    @torch.no_grad()
    def work(index):
        tile = plan.cut(image, index)
        return index, coarse.stages[0](tile, tile, coarse.prepare(tile), NoiseField(0, (plan.origins_px[index],)))

    with ThreadPoolExecutor(workers) as pool:
        for done in as_completed([pool.submit(work, index) for index in range(len(plan))]):
            blend.add(*done.result())
    assert torch.equal(blend.image().clamp(0, 1), TiledRestorer(coarse, tile_px=128, overlap_px=32).restore(image))


def test_an_image_is_restored_alike_alone_and_in_a_batch(mop):
    images = torch.cat([_tissue(128, 128), _tissue(128, 128).flip(2)])
    tiled = TiledRestorer(mop, tile_px=128, overlap_px=0)
    assert torch.equal(tiled.restore(images)[1:], tiled.restore(images[1:]))
    assert torch.allclose(mop.restore(images)[1:], mop.restore(images[1:]), atol=1e-5)


def test_one_tile_is_the_whole_image(mop):
    image = _tissue(128, 128)
    assert torch.allclose(TiledRestorer(mop, tile_px=128, overlap_px=32).restore(image, seed=1), mop.restore(image, seed=1), atol=1e-6)


def test_no_part_ever_sees_more_than_a_tile(mop):
    largest = []

    def note(_, args):
        largest.extend(arg.shape[-2] * arg.shape[-1] for arg in args if isinstance(arg, torch.Tensor) and arg.ndim == 4)

    hooks = [module.register_forward_pre_hook(note) for module in mop.modules()]
    TiledRestorer(mop, tile_px=128, overlap_px=32).restore(_tissue(200, 150))
    for hook in hooks:
        hook.remove()
    assert max(largest) == 128 * 128


def test_progress_counts_every_tile_of_every_stage_once(mop):
    calls = []
    TiledRestorer(mop, tile_px=128, overlap_px=32, progress=lambda done, total: calls.append((done, total))).restore(_tissue(150, 128))
    assert calls == [(n, 4) for n in range(1, 5)]


def test_coarse_only_and_fewer_steps_are_restorers_too(mop):
    image = _tissue(64, 64)
    coarse = mop.coarse_only()
    assert isinstance(coarse.fine, KeepCoarse)
    assert coarse.restore(image).shape == mop.with_steps(1).restore(image).shape == image.shape
    assert not torch.equal(coarse.restore(image), mop.restore(image))
    with pytest.raises(ValueError, match="between 1 and the 4"):
        mop.with_steps(9)
    with pytest.raises(ValueError, match="no diffusion stage"):
        coarse.with_steps(1)


def test_the_guard_keeps_the_coarse_images_low_frequencies_and_zero_guards_nothing(mop):
    image, noise = _tissue(128, 128), NoiseField.whole(0, 1)
    prompts = mop.prepare(image)
    coarse = image * 0.9
    with torch.no_grad():
        free, guarded = (
            DiffusionRefiner(mop.fine.denoiser, FineSettings(process=mop.fine.settings.process, guard_px=guard_px))(
                coarse, image, prompts, noise=noise
            )
            for guard_px in (0.0, 2.0)
        )
    assert torch.allclose(guarded, free + gaussian_blur(coarse - free, sigma_px=2.0), atol=1e-6)
    free_error, guarded_error = (gaussian_blur(one - coarse, sigma_px=8.0).abs().mean() for one in (free, guarded))
    assert guarded_error < 0.1 * free_error
    with pytest.raises(ValueError, match="guard_px"):
        FineSettings(process=ResShift(), guard_px=-1.0)


def test_the_strength_takes_that_part_of_the_fine_stages_change(mop):
    image, noise = _tissue(128, 128), NoiseField.whole(0, 1)
    prompts, coarse = mop.prepare(image), image * 0.9
    with torch.no_grad():
        none, half, all_of_it = (
            DiffusionRefiner(mop.fine.denoiser, FineSettings(process=mop.fine.settings.process, strength=strength))(
                coarse, image, prompts, noise=noise
            )
            for strength in (0.0, 0.5, 1.0)
        )
    assert torch.equal(none, coarse)
    assert torch.allclose(half, (coarse + all_of_it) / 2, atol=1e-6)
    assert not torch.allclose(all_of_it, coarse, atol=1e-2)
    with pytest.raises(ValueError, match="strength"):
        FineSettings(process=ResShift(), strength=1.5)


@pytest.mark.parametrize(("defocus_um", "share"), [(0.0, 0.0), (-1.0, 0.25), (1.0, 0.25), (3.2, 0.8), (-9.0, 0.8)])
def test_the_nearer_to_focus_the_less_the_fine_stage_changes(mop, defocus_um, share):
    image, noise = _tissue(128, 128), NoiseField.whole(0, 1)
    prompts, coarse = mop.prepare(image)._replace(defocus_um=torch.tensor([defocus_um])), image * 0.9
    process = mop.fine.settings.process
    with torch.no_grad():
        free, near = (
            DiffusionRefiner(mop.fine.denoiser, settings)(coarse, image, prompts, noise=noise)
            for settings in (FineSettings(process=process), FineSettings(process=process, strength=0.8, full_at_um=3.2))
        )
    assert torch.allclose(near, coarse + share * (free - coarse), atol=1e-6)
    with pytest.raises(ValueError, match="full_at_um"):
        FineSettings(process=process, full_at_um=-1.0)


def test_the_whole_system_is_differentiable_and_repeatable(mop):
    image = _tissue(128, 128).requires_grad_()
    mop(image, noise=NoiseField.whole(0, 1)).square().mean().backward()
    assert image.grad.abs().sum() > 0
    assert torch.equal(mop.restore(image.detach(), seed=5), mop.restore(image.detach(), seed=5))


def test_a_saved_system_restores_the_same_bits(mop, tmp_path):
    mop.save_pretrained(tmp_path / "model")
    loaded, image = MoPRestorer.from_pretrained(tmp_path / "model"), _tissue(70, 90)
    assert torch.equal(loaded.restore(image, seed=2), mop.restore(image, seed=2))
    mop.coarse_only().save_pretrained(tmp_path / "coarse")
    assert isinstance(MoPRestorer.from_pretrained(tmp_path / "coarse").fine, KeepCoarse)


def test_a_system_with_another_encoder_is_saved_without_it_and_asks_for_it(mop, tmp_path):
    class Constant(nn.Module):
        dim = 192

        def forward(self, image):
            return Embedding(image.new_ones(len(image), 192), image.new_ones(len(image), 4, 192))

    prompter = Prompter(Constant(), mop.prompter.defocus, mop.prompter.pathology, mop.prompter.edge)
    system = MoPRestorer(prompter, mop.coarse, mop.fine).eval()
    system.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="encoder="):
        MoPRestorer.from_pretrained(tmp_path)
    image = _tissue(64, 64)
    assert torch.equal(MoPRestorer.from_pretrained(tmp_path, encoder=Constant()).restore(image), system.restore(image))


@pytest.mark.parametrize("preset", ["tiny", "base", "paper"])
def test_the_presets_of_one_size_fit_together(preset):
    with torch.device("meta"):
        encoder = TinyEncoder(getattr(TinyEncoderConfig, preset)())
        defocus = DefocusEstimator(getattr(DefocusEstimatorConfig, preset)())
        pathology = PathologyPrompt(getattr(PathologyPromptConfig, preset)())
        edge = EdgePrompt(getattr(EdgePromptConfig, preset)())
        fine = PDiffusion(getattr(PDiffusionConfig, preset)())
        coarse = PFormer(getattr(PFormerConfig, preset)())
        system = MoPRestorer(Prompter(encoder, defocus, pathology, edge), coarse, DiffusionRefiner(fine, FineSettings(process=ResShift())))
    assert fine.config.prompt_dim == system.prompter.dim
    assert fine.config.edge_channels == edge.config.channels


def test_frozen_prompts_stay_in_evaluation_mode_and_only_the_edge_prompt_trains(mop):
    mop.train()
    assert mop.prompter.edge.training
    assert not any(part.training for part in (mop.prompter.encoder, mop.prompter.defocus, mop.prompter.pathology))
    mop.eval()


def test_pushing_uploads_the_whole_saved_system(mop, monkeypatch):
    seen = {}

    def upload(folder, repo_id, *, token, private):
        seen.update(files={str(path.relative_to(folder)) for path in Path(folder).rglob("*.*")}, repo_id=repo_id, private=private)
        return "0" * 40

    monkeypatch.setattr("pathorestore.pipelines.mop.upload", upload)
    assert mop.push_to_hub("someone/mop") == "0" * 40
    assert (seen["repo_id"], seen["private"]) == ("someone/mop", True)
    parts = {"encoder", "defocus", "pathology", "edge", "coarse", "fine"}
    assert {"README.md", "system.json", *(f"{part}/model.safetensors" for part in parts)} <= seen["files"]


@pytest.mark.parametrize(
    ("options", "says"),
    [({"tile_px": 100}, "multiple of 128"), ({"overlap_px": 200}, "half of tile_px"), ({"batch_size": 0}, "at least 1")],
)
def test_impossible_tilings_are_refused(mop, options, says):
    with pytest.raises(ValueError, match=says):
        TiledRestorer(mop, **options)
