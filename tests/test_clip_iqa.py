"""CLIP-IQA: its formula is the paper's, its text branch is CLIP's own, and what is learned is what was meant to be."""

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pathorestore._torchvision import ensure_torchvision
from pathorestore.data.iqa import Blur
from pathorestore.data.sharp_crops import image_files, read_rgb
from pathorestore.evaluation.cases import central
from pathorestore.hub import ConfigError, WeightsError
from pathorestore.image import from_uint8, to_uint8
from pathorestore.metrics.accumulators.blind_score import BlindScore
from pathorestore.models import clip_iqa
from pathorestore.models.clip_iqa import (
    ClipIqa,
    FolderClip,
    QualityPrompt,
    QualityPromptConfig,
    SmallClip,
    SmallClipConfig,
    clip_iqa_available,
    load_clip_iqa,
)

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))
import clip_iqa_levels

ensure_torchvision()
transformers = pytest.importorskip("transformers", reason="the extra `clip`")
SMALL = SmallClipConfig(window_px=32, width=32, layers=2, text_width=16, dim=16)
KINDS = ("box", "gauss")


def _seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make()


@pytest.fixture(scope="module")
def clip():
    return _seeded(lambda: SmallClip(SMALL)).eval()


@pytest.fixture(scope="module")
def head(clip):
    return _seeded(lambda: ClipIqa.create(clip)).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def windows():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A CLIP as a user may have it: transformers' own files, with a tokenizer of few words."""
    folder = tmp_path_factory.mktemp("clip")
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 40}
    text |= {"vocab_size": 12, "bos_token_id": 10, "eos_token_id": 11, "pad_token_id": 11}
    vision = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
        "patch_size": 8,
    }
    config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8)
    _seeded(lambda: transformers.CLIPModel(config)).save_pretrained(folder)
    letters = {name: number for number, name in enumerate(["good</w>", "bad</w>", "photo</w>", ".</w>"])}
    vocabulary = letters | {f"filler{number}": number for number in range(4, 10)} | {"<|startoftext|>": 10, "<|endoftext|>": 11}
    merges = ["#version: 0.2", "g o", "go o", "goo d</w>", "b a", "ba d</w>", "p h", "ph o", "pho t", "phot o</w>"]
    parts = ("g", "o", "b", "a", "p", "h", "t", "go", "goo", "ba", "ph", "pho", "phot", "d</w>", "o</w>")
    vocabulary |= {part: 12 + number for number, part in enumerate(parts)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("\n".join(merges) + "\n")
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "CLIPTokenizer"}))
    return folder


def _features(output):
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def test_the_zero_shot_score_is_the_softmax_of_the_cosines_to_both_texts(clip, windows):
    ids = [[256, *text.encode(), 257] for text in ("Good photo.", "Bad photo.")]
    texts = torch.cat([_features(clip.model.get_text_features(input_ids=torch.tensor([row]))) for row in ids])
    mean, std = (torch.tensor(values)[:, None, None] for values in clip_iqa.CLIP)
    images = _features(clip.model.get_image_features(pixel_values=(windows - mean) / std))
    cosines = (images[:, None] * texts).sum(2) / (images.norm(dim=1)[:, None] * texts.norm(dim=1))
    good, bad = (cosines * clip.model.logit_scale.exp()).exp().unbind(1)
    with torch.no_grad():
        scores = ClipIqa.create(clip, context=0)(windows)
    torch.testing.assert_close(scores, (good / (good + bad)).detach(), rtol=1e-5, atol=1e-6)


@given(words=st.lists(st.integers(0, 255), min_size=16, max_size=16))
def test_context_equal_to_token_embeddings_gives_the_very_text_feature_of_clip(clip, words):
    prompt = QualityPrompt(clip.prompt_config())
    with torch.no_grad():
        prompt.context.copy_(clip.model.text_model.embeddings.token_embedding(torch.tensor(words)))
        learned = prompt(clip.model)
        for row, text in enumerate(("Good photo.", "Bad photo.")):
            ids = [256, *words[:8], *text.encode(), *words[8:], 257]
            theirs = _features(clip.model.get_text_features(input_ids=torch.tensor([ids])))[0]
            torch.testing.assert_close(learned[row], theirs, rtol=1e-5, atol=1e-6)


def test_context_vectors_begin_small_and_are_shared_by_both_texts(clip):
    prompt = _seeded(lambda: QualityPrompt(QualityPromptConfig(width=512, context=16)))
    assert prompt.context.shape == (16, 512)
    assert prompt.context.std().item() == pytest.approx(0.02, rel=0.05)
    slots = [[slot for slot in row if slot >= 0] for row in prompt.slots.tolist()]
    assert slots == [list(range(16))] * 2
    assert prompt.slots[0].tolist()[1 + 8 : 1 + 8 + len("Good photo.")] == [-1] * len("Good photo.")


def test_text_features_leave_no_hook_behind(clip):
    prompt = QualityPrompt(clip.prompt_config())
    before = _features(clip.model.get_text_features(input_ids=prompt.ids))
    prompt(clip.model)
    assert torch.equal(before, _features(clip.model.get_text_features(input_ids=prompt.ids)))


@given(height=st.integers(8, 100), width=st.integers(8, 100))
def test_any_size_gives_one_score_between_zero_and_one(head, height, width):
    image = torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(height * 101 + width))
    scores = head(image)
    assert scores.shape == (2,)
    assert ((scores > 0) & (scores < 1)).all()


def test_the_score_of_a_large_image_is_the_mean_over_the_windows_in_its_middle(head):
    image = torch.rand(2, 3, 71, 105, generator=torch.Generator().manual_seed(0))
    top, left = (71 - 64) // 2, (105 - 96) // 2
    parts = [head(image[..., top + y : top + y + 32, left + x : left + x + 32]) for y in (0, 32) for x in (0, 32, 64)]
    torch.testing.assert_close(head(image), torch.stack(parts).mean(0), rtol=1e-5, atol=1e-6)


def test_the_score_of_an_image_does_not_depend_on_its_batch(head, windows):
    torch.testing.assert_close(head(windows), torch.cat([head(one[None]) for one in windows]), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 3, 7, 32), (1, 1, 32, 32), (3, 32, 32)])
def test_what_is_no_image_of_at_least_a_patch_is_refused(head, shape):
    with pytest.raises(ValueError, match="expected b 3 h w"):
        head(torch.rand(shape))


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_saved_head_comes_back_to_the_bit(head, windows, tmp_path, dtype):
    head.save_pretrained(tmp_path / "one", dtype=dtype)
    loaded = ClipIqa.from_pretrained(tmp_path / "one")
    loaded.save_pretrained(tmp_path / "two", dtype=dtype)
    if dtype is None:
        assert torch.equal(loaded(windows), head(windows))
    assert torch.equal(loaded(windows), ClipIqa.from_pretrained(tmp_path / "two")(windows))
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_the_zero_shot_score_is_saved_and_loaded_like_any_other(clip, windows, tmp_path):
    zero_shot = ClipIqa.create(clip, context=0)
    zero_shot.save_pretrained(tmp_path)
    assert torch.equal(ClipIqa.from_pretrained(tmp_path)(windows), zero_shot(windows).detach())


def test_a_config_that_does_not_fit_is_refused(head, tmp_path):
    head.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "clip" / "config.json").read_text())
    stored["config"]["colour"] = "blue"
    (tmp_path / "clip" / "config.json").write_text(json.dumps(stored))
    with pytest.raises(ConfigError, match="colour"):
        ClipIqa.from_pretrained(tmp_path)
    stored["config"].pop("colour")
    (tmp_path / "clip" / "config.json").write_text(json.dumps(stored | {"config": stored["config"] | {"width": 64}}))
    with pytest.raises(WeightsError, match="wrong shape"):
        ClipIqa.from_pretrained(tmp_path)


@pytest.mark.parametrize("wrong", [{"context": -1}, {"good": ()}, {"bad": (257,)}])
def test_prompts_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong)) if "bad" not in wrong else "end token"):
        replace(QualityPromptConfig.tiny(), **wrong)


def test_sizes_that_do_not_fit_each_other_are_refused():
    with pytest.raises(ValueError, match="fill the window"):
        SmallClipConfig(window_px=100)


def test_a_clip_of_the_user_is_frozen_its_words_tokenised_once_and_its_weights_never_copied(clip_folder, windows, tmp_path):
    clip = FolderClip(clip_folder)
    made = ClipIqa.create(clip).eval()
    assert made.prompt.config.good == (0, 2, 3)
    assert made.prompt.config.bad == (1, 2, 3)
    assert (made.prompt.config.start, made.prompt.config.end) == (10, 11)
    assert [name for name, parameter in made.named_parameters() if parameter.requires_grad] == ["prompt.context"]
    made.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.rglob("*") if path.is_file()} == {"README.md", "config.json", "model.safetensors"}
    assert (tmp_path / "prompt" / "model.safetensors").stat().st_size < 16 * 16 * 4 + 200
    loaded = ClipIqa.from_pretrained(tmp_path, clip_folder=clip_folder)
    assert torch.equal(loaded(windows), made(windows).detach())


def test_a_prompt_goes_with_no_other_clip_than_its_own(clip_folder, clip, tmp_path):
    ClipIqa.create(FolderClip(clip_folder)).save_pretrained(tmp_path / "head")
    with pytest.raises(WeightsError, match="name that CLIP's folder"):
        ClipIqa.from_pretrained(tmp_path / "head")
    other = tmp_path / "other"
    _seeded(lambda: transformers.CLIPModel(FolderClip(clip_folder).model.config)).half().save_pretrained(other)
    with pytest.raises(ValueError, match="load the CLIP that it was trained with"):
        ClipIqa.from_pretrained(tmp_path / "head", clip_folder=other)
    with pytest.raises(ValueError, match="load the CLIP that it was trained with"):
        ClipIqa(clip, QualityPrompt.from_pretrained(tmp_path / "head" / "prompt"))


def test_a_folder_without_a_clip_or_without_a_tokenizer_is_refused(clip_folder, head, tmp_path):
    with pytest.raises(WeightsError, match="holds no safetensors"):
        FolderClip(tmp_path)
    FolderClip(clip_folder).model.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="holds no tokenizer"):
        FolderClip(tmp_path).prompt_config()


def test_what_is_missing_makes_the_score_unavailable_and_says_what_to_do(monkeypatch, tmp_path):
    missing = clip_iqa_available("box", folder=tmp_path / "nowhere")
    assert not missing.ok
    assert "nowhere" in missing.reason
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    without = clip_iqa_available("gauss")
    assert not without.ok
    assert 'pip install "pathorestore[clip]"' in without.reason
    with pytest.raises(ValueError, match="'box' or 'gauss'"):
        load_clip_iqa("motion")


@pytest.mark.parametrize("kind", KINDS)
def test_the_embedded_heads_rank_the_blur_of_an_image_that_they_never_saw(kind, nuclei_image):
    head = load_clip_iqa(kind)
    assert clip_iqa_available(kind).ok
    pixels = (nuclei_image[0].permute(1, 2, 0) * 255).round().byte().numpy()
    scores = torch.cat([head(from_uint8(Blur(kind=kind, k=k)(pixels))) for k in (0, 2, 5, 10)])
    assert (scores.diff() < 0).all()
    assert head.higher_is_better


@pytest.mark.real_data
@pytest.mark.skipif("PATHORESTORE_DATA" not in os.environ, reason="PATHORESTORE_DATA is not set")
@pytest.mark.parametrize("kind", KINDS)
def test_the_embedded_heads_rank_the_blur_within_every_real_image(kind):
    files = image_files(Path(os.environ["PATHORESTORE_DATA"]))
    images = [to_uint8(central(from_uint8(read_rgb(path)), 384)) for path in files]
    scores = clip_iqa_levels.score_table(load_clip_iqa(kind), images, clip_iqa_levels.blurred(kind))
    assert clip_iqa_levels.agreement(scores)["spearman_within_worst"] >= 0.95


def test_the_agreement_is_scipys_rank_correlation():
    from scipy.stats import spearmanr

    scores = np.random.default_rng(0).integers(0, 6, (3, 11)) / 5
    found, sharpness = clip_iqa_levels.agreement(scores), -np.arange(11)
    within = [spearmanr(row, sharpness).statistic for row in scores]
    assert found["spearman"] == pytest.approx(spearmanr(scores.ravel(), np.tile(sharpness, 3)).statistic)
    assert (found["spearman_within_mean"], found["spearman_within_worst"]) == (pytest.approx(np.mean(within)), pytest.approx(min(within)))


def test_agreement_is_one_for_scores_that_follow_sharpness_and_minus_one_for_the_reverse():
    scores = np.linspace(1, 0, 11)[None].repeat(3, axis=0)
    found = clip_iqa_levels.agreement(scores)
    assert (found["spearman"], found["spearman_within_worst"]) == (pytest.approx(1), pytest.approx(1))
    assert clip_iqa_levels.agreement(1 - scores)["spearman"] == pytest.approx(-1)
    shifted = clip_iqa_levels.agreement(scores + np.array([[0.0], [5.0], [10.0]]))
    assert shifted["spearman_within_mean"] == pytest.approx(1)
    assert shifted["spearman"] < 0.5


def test_the_blind_score_is_the_mean_over_images_however_they_come_in_batches(head, windows):
    metric = BlindScore(score=head)
    metric.update(windows[:1])
    metric.update(windows[1:])
    torch.testing.assert_close(metric.compute(), head(windows).mean())
    assert metric.higher_is_better
    assert BlindScore(score=head, higher_is_better=False).higher_is_better is False
    with pytest.raises(ValueError, match="one number an image"):
        BlindScore(score=lambda image: image).update(windows)


def test_the_weights_of_a_user_are_not_trained(clip_folder):
    from pathorestore.training.iqa_stage import ClipIqaStage

    with pytest.raises(ValueError, match="take tune='prompt'"):
        ClipIqaStage(FolderClip(clip_folder), tune="all")
    assert ClipIqaStage(FolderClip(clip_folder)).parts().keys() == {"prompt"}
