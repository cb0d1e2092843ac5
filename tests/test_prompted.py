"""Prompts on their way to the networks: text encoders, what is told, and FiLM that adds nothing at first."""

import shutil
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torchmetrics.functional.image import structural_similarity_index_measure

from pathorestore.data.batches import PairBatch, SharpBatch
from pathorestore.data.task_prompts import render
from pathorestore.data.tasks import Example, Task, builtin_tasks, named
from pathorestore.degradations.composed import Theta
from pathorestore.hub import WeightsError
from pathorestore.losses import supervised_contrast
from pathorestore.metrics.fidelity import psnr
from pathorestore.models.autoencoder import AutoencoderConfig, LatentAutoencoder
from pathorestore.models.contrastive import ContrastiveEncoder, ContrastiveEncoderConfig
from pathorestore.models.controlled import LatentUNet, LatentUNetConfig
from pathorestore.models.pformer import RestormerConfig
from pathorestore.models.prompted import (
    FusionConfig,
    PromptedRestormer,
    PromptedRestormerConfig,
    PromptedSwinIR,
    PromptedSwinIRConfig,
    PromptFusion,
    told,
)
from pathorestore.models.swinir import SwinIRConfig
from pathorestore.models.text import ByteTextConfig, ByteTextEncoder, ClipTextEncoder, TextEncoder
from pathorestore.pipelines.controlled import SamplingSettings
from pathorestore.pipelines.histo_diffusion import HistoDiffusion, HistoDiffusionConfig
from pathorestore.pipelines.lpfm import LPFM, LPFMConfig
from pathorestore.training import (
    Curriculum,
    PromptedCoarseStage,
    PromptedControlStage,
    prompted_on_published,
    prompted_system,
    trained_unet,
)
from pathorestore.training.export import describe, export

transformers = pytest.importorskip("transformers")
pytest.importorskip("diffusers")

SWINIR = SwinIRConfig(
    embed=12, blocks=(2, 2), heads=2, window=2, features=8, unshuffle=2, upsampler="nearest+conv", drop_path=0.0, skip=True
)
FUSION = FusionConfig.nano()


@pytest.fixture
def parts():
    torch.manual_seed(0)
    coarse = PromptedSwinIR(PromptedSwinIRConfig(swinir=SWINIR, vector_dim=FUSION.vector_dim))
    text, encoder = ByteTextEncoder(ByteTextConfig.nano()), ContrastiveEncoder(ContrastiveEncoderConfig.nano())
    return coarse.eval(), text.eval(), encoder.eval(), PromptFusion(FUSION).eval()


def batch(keys=(5, 6, 7), size=32):
    sharp = torch.rand(len(keys), 3, size, size, generator=torch.Generator().manual_seed(1))
    return SharpBatch(sharp, torch.tensor(keys), torch.zeros(len(keys), dtype=torch.long))


def stage_of(parts, **changes):
    coarse, text, encoder, _ = parts
    stage = PromptedCoarseStage(coarse, text, encoder, **changes)
    stage.log = lambda *_, **__: None
    return stage


def opened(coarse):
    """Weights that make the FiLM matter."""
    with torch.no_grad():
        for parameter in coarse.film.parameters():
            parameter.normal_(std=0.1)
        last = coarse.net.output if isinstance(coarse, PromptedRestormer) else coarse.net.conv_last
        last.weight.normal_(std=0.1)
    return coarse


def test_texts_are_encoded_one_by_one_and_byte_by_byte(parts):
    encoder = parts[1]
    assert isinstance(encoder, TextEncoder)
    together = encoder(["denoise", "entrauschen: ä", ""])
    assert together.tokens.shape == (3, 96, 16)
    for index, prompt in enumerate(["denoise", "entrauschen: ä", ""]):
        alone = encoder([prompt])
        assert torch.allclose(alone.tokens, together.tokens[index : index + 1], atol=1e-6)
        assert torch.allclose(alone.pooled, together.pooled[index : index + 1], atol=1e-6)
    assert not torch.allclose(together.pooled[0], together.pooled[1], atol=1e-3)
    # what is longer is cut
    assert torch.equal(encoder(["x" * 94]).pooled, encoder(["x" * 95]).pooled)
    assert not torch.equal(encoder(["x" * 93]).pooled, encoder(["x" * 94]).pooled)


def test_a_text_encoder_comes_back(parts, tmp_path):
    parts[1].save_pretrained(tmp_path)
    assert torch.equal(ByteTextEncoder.from_pretrained(tmp_path)(["deblur"]).pooled, parts[1](["deblur"]).pooled)


def text_tower(tmp_path, *, layout="stable-diffusion"):
    """The folder of a text tower of CLIP, 16 wide, that knows two letters."""
    places = (tmp_path / "text_encoder", tmp_path / "tokenizer") if layout == "stable-diffusion" else (tmp_path, tmp_path)
    config = transformers.CLIPTextConfig(
        vocab_size=8,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=9,
        bos_token_id=0,
        eos_token_id=1,
    )
    transformers.CLIPTextModel(config).save_pretrained(places[0])
    words = ["<|startoftext|>", "<|endoftext|>", "a</w>", "b</w>", "a", "b"]
    places[1].mkdir(exist_ok=True)
    (places[1] / "vocab.json").write_text("{" + ", ".join(f'"{word}": {number}' for number, word in enumerate(words)) + "}")
    (places[1] / "merges.txt").write_text("#version: 0.2\n")
    (places[1] / "tokenizer_config.json").write_text('{"tokenizer_class": "CLIPTokenizer"}')
    return tmp_path


@pytest.mark.parametrize("layout", ["clip", "stable-diffusion"])
def test_the_text_tower_of_a_folder_is_read(tmp_path, layout):
    tower = ClipTextEncoder(text_tower(tmp_path, layout=layout))
    text = tower(["a b", "a"])
    assert text.tokens.shape == (2, 9, 16)
    assert text.pooled.shape == (2, tower.dim)
    assert not torch.allclose(text.pooled[0], text.pooled[1])
    assert not any(parameter.requires_grad for parameter in tower.parameters())


def test_a_folder_without_a_text_tower_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="holds no tokenizer"):
        ClipTextEncoder(tmp_path)
    (tmp_path / "vocab.json").write_text("{}")
    with pytest.raises(WeightsError, match="holds no CLIP text tower"):
        ClipTextEncoder(tmp_path)


def test_untrained_film_is_the_plain_network(parts):
    coarse, image = parts[0], torch.rand(2, 3, 17, 24)
    with torch.no_grad():
        coarse.net.conv_last.weight.normal_(std=0.1)
        plain = coarse.net(image)
        assert torch.equal(coarse(image, torch.randn(2, FUSION.vector_dim)), plain)
        assert not torch.allclose(opened(coarse)(image, torch.randn(2, FUSION.vector_dim)), coarse.net(image), atol=1e-4)


def test_film_scales_and_shifts_what_each_group_gives(parts):
    net, image = parts[0].net, torch.rand(2, 3, 16, 16)
    film = [torch.randn(2, 24) for _ in range(2)]
    seen = []
    for group in net.layers:
        group.register_forward_hook(lambda _m, given, made: seen.append((given[0], made)))
    net(image, film=film)
    gamma, beta = film[0][:, None, None].chunk(2, dim=-1)
    assert torch.allclose(seen[1][0], (1 + gamma) * seen[0][1] + beta, atol=1e-6)


@pytest.fixture
def restormer():
    torch.manual_seed(0)
    sizes = RestormerConfig(dim=8, blocks=(1, 1, 1, 1), refinement=1, heads=(1, 1, 1, 1), gamma=1.0)
    made = PromptedRestormer(PromptedRestormerConfig(restormer=sizes, vector_dim=FUSION.vector_dim)).eval()
    torch.nn.init.normal_(made.net.output.weight, std=0.1)
    return made


def test_a_restormer_is_plain_at_first_and_listens_once_its_film_is_opened(restormer):
    image, vector = torch.rand(2, 3, 17, 24), torch.randn(2, FUSION.vector_dim)
    with torch.no_grad():
        assert torch.equal(restormer(image, vector), restormer.net(image))
        assert not torch.allclose(opened(restormer)(image, vector), restormer.net(image), atol=1e-4)


def test_film_scales_and_shifts_what_each_level_of_a_restormer_gives(restormer):
    net, image = restormer.net, torch.rand(2, 3, 16, 16)
    levels = ("encoder_level1", "encoder_level2", "encoder_level3", "latent")
    levels += ("decoder_level3", "decoder_level2", "decoder_level1", "refinement")
    widths = [getattr(net, level)[0].ffn.project_in.in_channels for level in levels]
    assert list(restormer.config.restormer.level_widths) == widths
    film = [torch.randn(2, 2 * width) for width in widths]
    seen = {}
    for level in levels:
        getattr(net, level)[-1].register_forward_hook(lambda _m, _g, made, level=level: seen.update({level: made}))
    net.output.register_forward_hook(lambda _m, given, _made: seen.update(output=given[0]))
    net.down1_2.register_forward_hook(lambda _m, given, _made: seen.update(down=given[0]))
    net(image, film=film)
    for place, level, then in ((0, "encoder_level1", "down"), (-1, "refinement", "output")):
        gamma, beta = film[place][..., None, None].chunk(2, dim=1)
        assert torch.allclose(seen[then], (1 + gamma) * seen[level] + beta, atol=1e-6)


def test_what_is_told_is_text_and_what_the_encoder_saw(parts):
    text, impression = parts[1](["denoise", "deblur"]), parts[2](torch.rand(2, 3, 32, 32))
    vector = told(text, impression, degradation_dim=8)
    assert vector.shape == (2, FUSION.vector_dim)
    assert torch.equal(vector, torch.cat([text.pooled, impression.theta, impression.degradation, torch.ones(2, 1)], dim=1))
    alone = told(text, None, degradation_dim=8)
    assert torch.equal(alone[:, :16], text.pooled)
    assert not alone[:, 16:].any()
    half = told(text, impression, degradation_dim=8, known=torch.tensor([True, False]))
    assert torch.equal(half[0], vector[0])
    assert torch.equal(half[1], alone[1])


def test_without_an_impression_the_prompt_alone_guides(parts):
    """Whatever the encoder is, and also for a part of a batch."""
    _, text, encoder, fusion = parts
    image, words = torch.rand(2, 3, 48, 32), text(["denoise", "deblur"])
    impression = fusion.averaged(encoder(image), image)
    assert impression.tokens.shape == (2, 4, 16)
    full, bare = fusion(words, impression), fusion(words)
    assert full.context.shape == bare.context.shape == (2, 96 + 4, 16)
    nobody = fusion(words, impression, known=torch.tensor([False, False]))
    assert torch.equal(nobody.context, bare.context)
    assert torch.equal(nobody.vector, bare.vector)
    half = fusion(words, impression, known=torch.tensor([False, True]))
    assert torch.equal(half.context[0], bare.context[0])
    assert torch.equal(half.context[1], full.context[1])


def test_tokens_are_averaged_where_they_lie(parts):
    _, _, encoder, fusion = parts
    image = torch.rand(1, 3, 64, 32)
    impression = encoder(image)
    rows = impression.tokens[0].view(4, 2, 16)
    assert torch.allclose(fusion.averaged(impression, image).tokens[0, 0], rows[:2, 0].mean(0), atol=1e-6)
    assert torch.allclose(fusion.averaged(impression, image).tokens[0, 1], rows[:2, 1].mean(0), atol=1e-6)


def test_a_batch_draws_tasks_prompts_and_examples_by_the_keys_of_its_images(parts):
    stage, curriculum = stage_of(parts), Curriculum()
    whole = curriculum.drawn(stage, batch(keys=tuple(range(40))))
    part = curriculum.drawn(stage, SharpBatch(*(field[5:7] for field in batch(keys=tuple(range(40))))))
    assert whole.prompts[5:7] == part.prompts
    assert torch.equal(whole.given[5:7], part.given)
    assert torch.equal(whole.wanted[5:7], part.wanted)
    assert len(set(whole.prompts)) > 10
    assert 0 < (~whole.known).sum() < 15
    assert whole.others[5:7] == part.others
    assert whole.others != whole.prompts


def test_prompts_and_further_ones_bear_the_number_of_their_task(parts):
    names = ["denoise", "stain_pas"]
    asked = Curriculum(only=names).drawn(stage_of(parts), batch(keys=tuple(range(40))))
    words = {name: named(builtin_tasks(), name).templates for name in names}
    for prompt, number in zip((*asked.prompts, *asked.others), asked.tasks, strict=True):
        if not prompt:
            assert number == -1
        else:
            assert any(prompt.split(";")[0] == way.format(source="H&E", target="PAS", scale=0) for way in words[names[number]])
    assert set(asked.tasks) == {-1, 0, 1}


def test_a_curriculum_of_some_tasks_draws_these_alone(parts):
    drawn = Curriculum(only=["denoise"]).drawn(stage_of(parts), batch(keys=tuple(range(30))))
    assert {prompt.split(";")[0] for prompt in drawn.prompts} <= {
        "",
        *(render(named(builtin_tasks(), "denoise"), way=way) for way in range(3)),
    }
    with pytest.raises(ValueError, match="no task 'paint'"):
        Curriculum(only=["paint"])
    with pytest.raises(ValueError, match="none of stain_af makes examples"):
        Curriculum(only=["stain_af"])


def test_photographed_pairs_are_examples_of_the_task_that_was_named(parts):
    pairs = PairBatch(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32), torch.zeros(2), torch.zeros(2), torch.tensor([1, 2]))
    asked = Curriculum(pairs_task="stain_af").drawn(stage_of(parts), pairs)
    assert torch.equal(asked.given, pairs.degraded)
    assert torch.equal(asked.wanted, pairs.clean)
    assert all(not prompt or "autofluorescence" in prompt for prompt in asked.prompts)


def test_the_first_stage_learns_from_its_examples(parts):
    opened(parts[0])
    stage = stage_of(parts, curriculum=Curriculum(only=["denoise", "stain_pas"]))
    asked = stage.curriculum.drawn(stage, batch())
    loss = stage.training_step(batch(), 0)
    loss.backward()
    made = stage.restored(asked)
    likeness = structural_similarity_index_measure(made, asked.wanted, data_range=1.0)
    with torch.no_grad():
        pooled = F.normalize(parts[1]([*asked.prompts, *asked.others]).pooled, dim=1)
    apart = supervised_contrast(pooled, torch.tensor(asked.tasks), temperature=0.1)
    error, before = ((image - asked.wanted).abs().mean((1, 2, 3)) for image in (made, asked.given))
    expected = (error * 0.05 / (before + 0.02)).mean() + 0.1 * (1 - likeness) + 0.02 * apart
    assert torch.allclose(loss, expected, atol=1e-6)
    assert all(parameter.grad is None for parameter in stage.contrastive.parameters())
    assert parts[1].bytes.weight.grad.abs().sum() > 0
    assert describe(stage)["parts"].keys() == {"coarse", "text", "contrastive"}
    assert describe(stage)["trained"] == ["text", "coarse"]


def test_validation_scores_each_task_by_its_gain(parts, monkeypatch):
    stage, scored = stage_of(parts, curriculum=Curriculum(only=["denoise"])), {}
    asked = stage.curriculum.asked(stage, batch(), named(builtin_tasks(), "denoise"))
    assert set(asked.prompts) == {"denoise the H&E image"}
    made = (asked.wanted + 0.03).clamp(0, 1)
    monkeypatch.setattr(stage, "restored", lambda _: made)
    monkeypatch.setattr(stage, "score", lambda name, values, **_: scored.update({name: values}))
    stage.evaluate(batch())
    assert set(scored) == {"gain_denoise"}
    assert torch.allclose(scored["gain_denoise"], psnr(made, asked.wanted).clamp(max=60) - psnr(asked.given, asked.wanted).clamp(max=60))


def test_photographed_pairs_are_judged_by_their_own_task_alone(parts, system, monkeypatch):
    pairs = PairBatch(torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32), torch.zeros(2), torch.zeros(2), torch.tensor([1, 2]))
    for stage in (
        stage_of(parts, curriculum=Curriculum(pairs_task="stain_af")),
        second_stage(system, curriculum=Curriculum(pairs_task="stain_af")),
    ):
        scored = []
        monkeypatch.setattr(stage, "score", lambda name, values, scored=scored, **_: scored.append(name))
        with torch.no_grad():
            stage.evaluate(pairs)
        assert set(scored) - {"mse"} == {"gain_stain_af"}
        assert set(scored) <= set(stage.figures)


def test_a_second_stage_of_a_task_of_ones_own_makes_its_images(system, monkeypatch):
    def inverted(image, generator):
        return Example(1 - image, image, Theta.from_normalised(torch.zeros(1, 5)))

    mine = Task(name="invert", templates=("invert the colours of the {source} image",), example=inverted)
    stage = second_stage(system, curriculum=Curriculum([*builtin_tasks(), mine], only=["sr", "invert"]))
    assert [task.name for task in stage.watched] == ["sr", "invert"]
    monkeypatch.setattr(stage, "score", lambda *_, **__: None)
    with torch.no_grad():
        stage.evaluate(batch())
        made = stage.pictures(batch())["made"]
    assert made.shape == (3, 3, 32, 32)
    with pytest.raises(ValueError, match="no task 'stain_af'; expected one of sr, invert"):
        second_stage(system, curriculum=stage.curriculum, watched=["stain_af"])


def test_a_new_task_is_trained_without_a_change_to_any_model(parts):
    def inverted(image, generator):
        return Example(1 - image, image, Theta.from_normalised(torch.zeros(1, 5)))

    mine = Task(name="invert", templates=("invert the colours of the {source} image",), example=inverted)
    stage = stage_of(parts, curriculum=Curriculum([*builtin_tasks(), mine], only=["invert"]))
    asked = stage.curriculum.drawn(stage, batch())
    assert torch.allclose(asked.given, 1 - asked.wanted)
    assert stage.training_step(batch(), 0).isfinite()


@pytest.fixture
def system():
    torch.manual_seed(0)
    return LPFM.of(LPFMConfig.nano())


def second_stage(system, **changes):
    stage = PromptedControlStage(system, **changes)
    stage.log = lambda *_, **__: None
    return stage


def test_the_second_stage_predicts_the_noise_in_what_is_wanted(system):
    """Written out: what is known, how it is told, and what is to be found."""
    stage = second_stage(system, curriculum=Curriculum(only=["stain_pas"]))
    asked = stage.curriculum.drawn(stage, batch())
    process, autoencoder = system.settings.process, system.sampler.autoencoder
    t = torch.tensor([10, 400, 900])

    def normal(salt):
        return torch.stack([torch.randn((4, 8, 8), generator=own) for own in stage.streams(batch().key, salt=salt)])

    with torch.no_grad():
        latent = autoencoder.encode(asked.wanted, noise=normal(23))
        impression = system.fusion.averaged(system.contrastive(asked.given), asked.given)
        guidance = system.fusion(system.text(asked.prompts), impression, known=asked.known)
        condition = autoencoder.encode(system.coarse(asked.given, guidance.vector))
        state = process.noised(latent, t, normal(22))
        found = system.sampler.denoiser(state, t, condition, context=guidance.context, vector=guidance.vector)
        expected = (found - process.target(latent, normal(22), t)).square().mean((1, 2, 3))
        assert torch.allclose(stage._errors(batch(), asked, t), expected, atol=1e-6)


@pytest.mark.parametrize("learns", ["all", "control"])
def test_the_second_stage_trains_what_it_says_alone(system, learns):
    stage = second_stage(system, learns=learns)
    for parameter in system.sampler.denoiser.control.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    stage.training_step(batch(), 0).backward()
    denoiser = system.sampler.denoiser
    moved = {"control": denoiser.control, "fusion": system.fusion, "unet": denoiser.unet}
    assert set(stage.trained) == set(moved) - (set() if learns == "all" else {"unet"})
    for name, module in moved.items():
        assert any(parameter.grad is not None for parameter in module.parameters()) == (name in stage.trained)
    for module in (system.text, system.coarse, system.contrastive, system.sampler.autoencoder):
        assert all(parameter.grad is None for parameter in module.parameters())
    stage.train()
    stage.on_train_epoch_start()
    assert not system.coarse.training
    assert denoiser.control.training
    told_of = describe(stage)
    assert told_of["parts"].keys() == {"text", "contrastive", "fusion", "coarse", "autoencoder", "unet", "control"}


def test_inlets_learn_to_listen_and_the_rest_stays_shared_with_where_it_came_from(system):
    stage = second_stage(system, learns="inlets")
    denoiser = system.sampler.denoiser
    before = {name: value.clone() for name, value in denoiser.state_dict().items()}
    optimizer = torch.optim.SGD([parameter for parameter in stage.parameters() if parameter.requires_grad], lr=1.0)
    for _ in range(3):  # behind zero convolutions nothing is felt at first
        optimizer.zero_grad()
        stage.training_step(batch(), 0).backward()
        optimizer.step()
    moved = {name for name, value in denoiser.state_dict().items() if not torch.equal(value, before[name])}
    kept = [name for name in before if name not in moved]
    assert any("unet.model" in name and ".attn2." in name for name in moved)
    assert any("unet.model.class_embedding" in name for name in moved)
    assert any("control.model.controlnet_" in name for name in moved)
    assert all(".attn2." in name or ".class_embedding." in name or "controlnet_" in name for name in moved)
    assert any(".resnets." in name for name in kept)
    assert any(".attn1." in name for name in kept)


def test_a_tower_of_clip_stays_as_it_is_and_where_it_is(parts, tmp_path):
    coarse, _, encoder, _ = parts
    stage = PromptedCoarseStage(coarse, ClipTextEncoder(text_tower(tmp_path)), encoder)
    stage.log = lambda *_, **__: None
    stage.training_step(batch(), 0).backward()
    assert stage.trained == ("coarse",)
    assert all(parameter.grad is None for parameter in stage.text.parameters())
    assert any(parameter.grad is not None for parameter in coarse.film.parameters())
    assert stage.parts().keys() == {"coarse", "contrastive"}


def test_a_system_starts_on_stable_diffusion(parts, tmp_path):
    """Its folder gives autoencoder, U-Net and text tower; the branch is a copy of the U-Net, and adds nothing."""
    torch.manual_seed(4)
    unet, autoencoder = LatentUNet(LatentUNetConfig.nano()), LatentAutoencoder(AutoencoderConfig.nano())
    unet.model.save_pretrained(tmp_path / "sd" / "unet")
    autoencoder.model.save_pretrained(tmp_path / "sd" / "vae")
    save_file({"null_context": unet.null_context}, tmp_path / "sd" / "null_context.safetensors")
    text_tower(tmp_path / "sd")
    coarse, _, encoder, _ = parts
    for name, part in (("coarse", coarse), ("contrastive", encoder)):
        part.save_pretrained(tmp_path / "parts" / name)
    begun = prompted_on_published(tmp_path / "parts", published=tmp_path / "sd", settings=SamplingSettings(tile_px=32, min_px=32))
    assert isinstance(begun.text, ClipTextEncoder)
    assert (begun.fusion.config.text_dim, begun.fusion.config.context_dim) == (16, 16)
    state, t, condition = torch.randn(1, 4, 8, 8), torch.tensor([7]), torch.randn(1, 4, 8, 8)
    with torch.no_grad():
        guidance = begun.fusion(begun.text(["a b"]))
        made = begun.sampler.denoiser(state, t, condition, **guidance._asdict())
        assert torch.equal(made, unet.eval()(state, t, context=guidance.context))
        # as the published code has it: the words as the tower gives them, and nothing else
        alone = PromptFusion(replace(begun.fusion.config, grid=0))(begun.text(["a b"]), begun.contrastive(torch.rand(1, 3, 32, 32)))
        assert torch.allclose(alone.context, begun.text(["a b"]).tokens, atol=1e-6)
    assert "text" not in begun.parts()
    stage = PromptedControlStage(begun, learns="control")
    assert stage.trained == ("control", "fusion")
    with pytest.raises(ValueError, match="learns='contrl' is unknown; expected one of all, control, inlets"):
        PromptedControlStage(begun, learns="contrl")
    # what it trains is a system, but for the tower
    described = {"pathorestore": describe(stage), "state_dict": stage.state_dict(), "callbacks": {}}
    torch.save(described | {"global_step": 1, "epoch": 0}, tmp_path / "last.ckpt")
    exported = export(tmp_path / "last.ckpt", tmp_path / "out")
    assert exported.kind == "system"
    assert "pass the one it was trained with to from_pretrained as text=" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(ValueError, match="there is no text encoder"):
        LPFM.from_pretrained(tmp_path / "out")
    back = LPFM.from_pretrained(tmp_path / "out", text=ClipTextEncoder(tmp_path / "sd"))
    assert torch.equal(back.fusion(back.text(["a"])).vector, begun.eval().fusion(begun.text(["a"])).vector)


def test_a_system_starts_from_the_parts_of_the_stages_before(system, tmp_path):
    """U-Net and branch, which never were told anything, do what they did."""
    diffusion = HistoDiffusion.of(HistoDiffusionConfig.nano())
    diffusion.save_pretrained(tmp_path / "diffusion")
    for name in ("coarse", "text", "contrastive"):
        system.parts()[name].save_pretrained(tmp_path / "parts" / name)
    begun = prompted_system(tmp_path / "parts", diffusion=tmp_path / "diffusion", fusion=FUSION)
    state, t, condition = torch.randn(2, 4, 8, 8), torch.tensor([3, 500]), torch.randn(2, 4, 8, 8)
    context, vector = torch.randn(2, 5, 16), torch.randn(2, FUSION.vector_dim)
    with torch.no_grad():
        told_something = begun.sampler.denoiser(state, t, condition, context=context, vector=vector)
        assert torch.equal(told_something, diffusion.sampler.denoiser(state, t, condition, context=context))
    assert torch.equal(begun.text(["a"]).pooled, system.text.eval()(["a"]).pooled)
    assert prompted_system(tmp_path / "parts", diffusion=tmp_path / "diffusion", fusion=FUSION, hint=True).sampler.sees_given
    shutil.rmtree(tmp_path / "parts" / "coarse")
    PromptedRestormer(PromptedRestormerConfig(vector_dim=FUSION.vector_dim)).save_pretrained(tmp_path / "parts" / "coarse")
    other = prompted_system(tmp_path / "parts", diffusion=tmp_path / "diffusion", fusion=FUSION)
    assert isinstance(other.coarse, PromptedRestormer)
    with pytest.raises(FileNotFoundError, match=r"holds no trained coarse; train it first .*prompted_coarse_tiny"):
        prompted_system(tmp_path / "diffusion", diffusion=tmp_path / "diffusion", fusion=FUSION)


def test_parts_of_an_embedded_system_are_named_by_it_and_a_local_folder_goes_before(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert trained_unet("histo-diffusion-tiny").config == LatentUNetConfig.tiny()
    (tmp_path / "histo-diffusion-tiny").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no trained unet"):
        trained_unet("histo-diffusion-tiny")
