"""Estimator, encoders and prompts."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from pathorestore.functional.edges import canny, minmax_stretch
from pathorestore.models.defocus import DefocusEstimator, DefocusEstimatorConfig
from pathorestore.models.encoders import Embedding, PathologyEncoder, ProjectionEncoder, TimmEncoder, TinyEncoder, TinyEncoderConfig
from pathorestore.models.prompts import EdgePrompt, EdgePromptConfig, PathologyPrompt, PathologyPromptConfig, Prompter


def _estimator(**change):
    torch.manual_seed(0)
    return DefocusEstimator(replace(DefocusEstimatorConfig.tiny(), **change)).eval()


def test_the_paper_estimator_is_resnet34_with_two_scalar_heads():
    with torch.device("meta"):
        estimator = DefocusEstimator(DefocusEstimatorConfig.paper())
        small = DefocusEstimator(replace(DefocusEstimatorConfig.paper(), blocks=(2, 2, 2, 2)))
    assert sum(p.numel() for p in estimator.parameters()) == 21_285_698
    assert sum(p.numel() for p in small.parameters()) == 11_177_538


def test_stride_8_gives_the_prompt_its_published_grid():
    assert _estimator().features(torch.rand(1, 3, 256, 256)).shape == (1, 128, 32, 32)
    assert _estimator(output_stride=32).features(torch.rand(1, 3, 256, 256)).shape == (1, 128, 8, 8)


def test_stock_stride_and_padding_equal_torchvisions_resnet():
    from torchvision.models import resnet18

    reference = resnet18(weights=None).eval()
    estimator = _estimator(blocks=(2, 2, 2, 2), widths=(64, 128, 256, 512), output_stride=32, padding_mode="zeros", norm="imagenet")
    state = {key: value for key, value in reference.state_dict().items() if not key.startswith("fc.")}
    missing = estimator.load_state_dict(state, strict=False)
    assert missing.unexpected_keys == []
    assert set(missing.missing_keys) == {"fc.weight", "fc.bias", "fc2.weight", "fc2.bias"}
    image = torch.rand(1, 3, 64, 64)
    mean, std = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    reference.avgpool = reference.fc = nn.Identity()
    assert torch.allclose(estimator.features(image).flatten(1), reference((image - mean) / std), atol=1e-4)


def test_the_mean_of_the_distance_map_is_the_estimate():
    estimator = _estimator().double()
    image = torch.rand(2, 3, 64, 96, dtype=torch.float64)
    assert torch.allclose(estimator.distance_map(image).mean(dim=(1, 2, 3)), estimator(image).defocus_um, atol=1e-12)
    heat = estimator.heat_map(image)
    assert heat.shape == (2, 1, 64, 96)
    assert heat.min() >= 0


@pytest.mark.parametrize("norm", ["minmax", "percentile", "imagenet"])
def test_normalisations_run_and_minmax_ignores_brightness_and_contrast(norm):
    estimator, image = _estimator(norm=norm), torch.rand(1, 3, 64, 64)
    plain, dimmed = (estimator(x).defocus_um for x in (image, 0.2 + 0.5 * image))
    assert torch.allclose(plain, dimmed, atol=1e-4) == (norm != "imagenet")


def test_a_sigmoid_head_keeps_contrast_transfer_in_range():
    image = torch.rand(1, 3, 64, 64)
    assert torch.equal(_estimator(ctf_activation="sigmoid")(image).ctf, _estimator()(image).ctf.sigmoid())


@pytest.mark.parametrize(
    "change",
    [
        {"blocks": (1, 1, 1)},
        {"widths": (0, 1, 1, 1)},
        {"output_stride": 16},
        {"norm": "none"},
        {"padding_mode": "reflect"},
        {"ctf_activation": "tanh"},
    ],
)
def test_impossible_estimators_are_refused(change):
    with pytest.raises(ValueError, match="got"):
        replace(DefocusEstimatorConfig.tiny(), **change)


def test_the_tiny_encoder_gives_one_token_per_16_px_and_their_mean():
    encoder = TinyEncoder(TinyEncoderConfig.tiny()).eval()
    embedding = encoder(torch.rand(2, 3, 64, 96))
    assert isinstance(encoder, PathologyEncoder)
    assert embedding.tokens.shape == (2, 4 * 6, 192)
    assert torch.allclose(embedding.cls, embedding.tokens.mean(dim=1))


def test_a_timm_vit_becomes_an_encoder_with_its_own_input_size(tmp_path):
    encoder = TimmEncoder.create("vit_tiny_patch16_224", depth=1)
    embedding = encoder(torch.rand(1, 3, 256, 256))
    assert (embedding.cls.shape, embedding.tokens.shape, encoder.dim) == ((1, 192), (1, 196, 192), 192)
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder.train().model.training
    torch.save(encoder.model.state_dict(), tmp_path / "vit.pth")
    again = TimmEncoder.create("vit_tiny_patch16_224", depth=1, checkpoint=str(tmp_path / "vit.pth"))
    image = torch.rand(1, 3, 300, 200)
    assert torch.equal(again(image).cls, encoder(image).cls)


def test_centre_cropping_drops_the_rim():
    encoder, image = TimmEncoder.create("vit_tiny_patch16_224", depth=1, fit="centercrop224"), torch.rand(1, 3, 256, 256)
    rim = image.clone()
    rim[..., :16, :] = 0
    assert torch.equal(encoder(image).cls, encoder(rim).cls)


def test_a_projection_tower_yields_a_vector_and_no_tokens():
    tower = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten())
    encoder = ProjectionEncoder(tower, dim=12, side_px=32)
    embedding = encoder(torch.rand(3, 3, 64, 64))
    assert (embedding.cls.shape, embedding.tokens.shape) == ((3, 12), (3, 0, 12))


def _restorer(mode="tokens", *, opened=True):
    torch.manual_seed(2)
    prompt = PathologyPrompt(PathologyPromptConfig(encoder_dim=24, defocus_dim=16, width=32, heads=4, mode=mode)).double()
    if opened:
        nn.init.normal_(prompt.out_proj.weight, std=0.2)
    return prompt


def _embedding(batch=4):
    generator = torch.Generator().manual_seed(3)
    draw = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((batch, 24), (batch, 9, 24), (batch, 16, 12, 10))]
    return Embedding(draw[0], draw[1]), draw[2]


@pytest.mark.parametrize("mode", ["tokens", "vector", "paper_gap"])
def test_images_of_a_batch_never_see_each_other(mode):
    """The released script attends across the batch; here sample 0 is untouched when sample 3 changes."""
    prompt, (embedding, defocus) = _restorer(mode), _embedding()
    whole = prompt(embedding, defocus)
    cls, tokens, features = embedding.cls.clone(), embedding.tokens.clone(), defocus.clone()
    cls[3], tokens[3], features[3] = 0, 1, 2
    changed = prompt(Embedding(cls, tokens), features)
    assert torch.allclose(changed.cls[:3], whole.cls[:3], atol=1e-12)
    assert torch.allclose(changed.tokens[:3], whole.tokens[:3], atol=1e-12)
    assert (changed.cls[3] - whole.cls[3]).abs().max() > 1e-3


@pytest.mark.parametrize("mode", ["tokens", "vector", "paper_gap"])
def test_defocus_acts_on_a_batch_of_one(mode):
    """In the released script its influence on one image is exactly zero."""
    prompt, (embedding, defocus) = _restorer(mode), _embedding(1)
    assert (prompt(embedding, defocus).cls - prompt(embedding, defocus.roll(3, dims=1)).cls).abs().max() > 1e-6


def test_where_the_defocus_is_matters_except_to_the_pooled_mode():
    embedding, defocus = _embedding(1)
    turned = defocus.flip(2)
    assert (_restorer("tokens")(embedding, defocus).cls - _restorer("tokens")(embedding, turned).cls).abs().max() > 1e-9
    assert torch.allclose(_restorer("paper_gap")(embedding, defocus).cls, _restorer("paper_gap")(embedding, turned).cls, atol=1e-12)


def test_an_untrained_prompt_restorer_is_the_identity():
    prompt, (embedding, defocus) = _restorer(opened=False), _embedding()
    restored = prompt(embedding, defocus)
    assert torch.equal(restored.cls, embedding.cls)
    assert torch.equal(restored.tokens, embedding.tokens)


def test_paper_prompt_restorer_size():
    with torch.device("meta"):
        prompt = PathologyPrompt(PathologyPromptConfig.paper())
    assert sum(p.numel() for p in prompt.parameters()) / 1e6 == pytest.approx(9.98, abs=0.01)


def test_canny_is_opencvs_and_a_constant_image_has_no_edges(nuclei_image):
    import cv2

    pixels = (minmax_stretch(nuclei_image) * 255).to(torch.uint8)[0].permute(1, 2, 0).numpy()
    expected = cv2.Canny(np.ascontiguousarray(pixels), 100, 200)
    edges = canny(nuclei_image)
    assert np.array_equal(edges[0, 0].numpy() * 255, expected)
    assert 0.01 < float(edges.mean()) < 0.5
    assert float(canny(torch.full((1, 3, 32, 32), 0.7)).sum()) == 0


def test_edges_of_an_image_do_not_depend_on_its_neighbours_in_the_batch(nuclei_image):
    batch = torch.cat([nuclei_image, nuclei_image * 0.1, nuclei_image.flip(3)])
    assert torch.equal(canny(batch)[2:], canny(nuclei_image.flip(3)))


@pytest.mark.parametrize(("factor", "side"), [(1, 32), (4, 8)])
def test_the_edge_prompt_vanishes_where_there_are_no_edges(factor, side):
    edge = EdgePrompt(EdgePromptConfig(defocus_dim=16, channels=5, factor=factor))
    nn.init.zeros_(edge.edge_conv.bias)
    prompt = edge(torch.zeros(2, 1, 32, 32), torch.randn(2, 16, 4, 4))
    assert prompt.shape == (2, 5, side, side)
    assert float(prompt.detach().abs().sum()) == 0


def test_the_edge_prompt_is_edges_times_confidence():
    edge = EdgePrompt(EdgePromptConfig(defocus_dim=16, channels=5)).double()
    edges, defocus = torch.rand(1, 1, 32, 32, dtype=torch.float64), torch.randn(1, 16, 4, 4, dtype=torch.float64)
    confidence = nn.functional.interpolate(edge.defocus_conv(defocus).sigmoid(), scale_factor=2, mode="bilinear", align_corners=False)
    assert torch.allclose(edge(edges, defocus), edge.edge_conv(nn.functional.pixel_unshuffle(edges, 4)) * confidence, atol=1e-12)


def test_an_unweighted_edge_prompt_is_the_convolved_edges_whatever_the_defocus():
    edge = EdgePrompt(EdgePromptConfig(defocus_dim=16, channels=5, weighted=False))
    edges = torch.rand(1, 1, 32, 32)
    assert torch.equal(edge(edges, torch.randn(1, 16, 4, 4)), edge.edge_conv(nn.functional.pixel_unshuffle(edges, 4)))
    assert {name.split(".")[0] for name in edge.state_dict()} == {"edge_conv"}


def _prompter():
    torch.manual_seed(5)
    parts = (
        TinyEncoder(TinyEncoderConfig.tiny()),
        _estimator(),
        PathologyPrompt(PathologyPromptConfig.tiny()),
        EdgePrompt(EdgePromptConfig.tiny()),
    )
    return Prompter(*parts).eval()


def test_the_prompter_makes_all_prompts_of_an_image(nuclei_image):
    prompter = _prompter()
    prompts = prompter(nuclei_image)
    assert prompts.pathology.shape == (1, 192)
    assert prompts.edge.shape == (1, 16, 32, 32)
    assert prompts.defocus_um.shape == prompts.ctf.shape == (1,)
    assert prompts.optics.shape == (1, 0, 128, 128)
    assert torch.equal(prompts.defocus, prompter.defocus.features(nuclei_image).mean(dim=(2, 3)))
    assert torch.equal(prompts.degraded_pathology, prompter.encoder(nuclei_image).cls)


@pytest.mark.parametrize(
    ("pathology", "edge", "says"),
    [({"encoder_dim": 100}, {}, "encoder_dim=100"), ({}, {"defocus_dim": 64}, "edge prompt expects defocus_dim=64")],
)
def test_parts_that_do_not_fit_together_are_refused_by_name(pathology, edge, says):
    encoder, defocus = TinyEncoder(TinyEncoderConfig.tiny()), _estimator()
    prompt = PathologyPrompt(replace(PathologyPromptConfig.tiny(), **pathology))
    edges = EdgePrompt(replace(EdgePromptConfig.tiny(), **edge))
    with pytest.raises(ValueError, match=says):
        Prompter(encoder, defocus, prompt, edges)


def test_heads_that_do_not_divide_the_width_are_refused():
    with pytest.raises(ValueError, match="divisible by heads"):
        PathologyPromptConfig(width=10, heads=3)
