"""A user's copy of a published checkpoint becomes our state dict, or a clear refusal."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from pathorestore.hub import WeightsError, check_fit, load_strictly
from pathorestore.models.converters import (
    HEADS,
    ROUTER,
    load_resnet34_checkpoint,
    load_resshift_checkpoint,
    load_restormer_checkpoint,
    pformer_from_restormer,
)
from pathorestore.models.defocus import DefocusEstimator, DefocusEstimatorConfig
from pathorestore.models.pformer import PFormer, PFormerConfig, Restormer, RestormerConfig
from pathorestore.models.unet import UNet, UNetConfig

SIZES: dict[str, Any] = {"dim": 8, "blocks": (1, 1, 1, 1), "refinement": 1, "heads": (1, 2, 4, 8)}


@pytest.fixture
def restormer() -> Restormer:
    network = Restormer(RestormerConfig(**SIZES)).double()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    return network


def published(network: torch.nn.Module, path: Path, **extra: Tensor) -> Path:
    torch.save({"params": {**network.state_dict(), **extra}}, path)
    return path


@pytest.mark.parametrize("experts", [1, 3])
def test_a_warm_started_pformer_computes_what_the_restormer_does_for_any_prompt(
    restormer: Restormer, tmp_path: Path, generator: torch.Generator, experts: int
) -> None:
    path = published(restormer, tmp_path / "single_image_defocus_deblurring.pth")
    checkpoint = load_restormer_checkpoint(path, config=restormer.config)
    pformer = PFormer(PFormerConfig(**SIZES, gate="mul", experts=experts, prompt_dim=6)).double()
    load_strictly(pformer, pformer_from_restormer(checkpoint.state, experts=experts), source="the converter", fresh=ROUTER)
    image = torch.rand(2, 3, 19, 24, generator=generator, dtype=torch.float64)
    expected = restormer(image)
    for _ in range(2):
        prompt = 5 * torch.randn(2, 6, generator=generator, dtype=torch.float64)
        assert torch.allclose(pformer(image, prompt), expected, atol=1e-10, rtol=0)
    with torch.no_grad():
        pformer.latent[0].ffn.experts += 0.1
    assert not torch.allclose(pformer(image, prompt), expected, atol=1e-6)


def test_the_paper_sized_layout_is_accepted_by_name_and_shape(tmp_path: Path) -> None:
    # the published file holds 494 tensors of 26,126,644 values; a latent block has int(2.66 * 384) = 1021 hidden channels
    with torch.device("meta"):
        layout = Restormer(RestormerConfig.paper()).state_dict()
    assert len(layout) == 494
    assert sum(tensor.numel() for tensor in layout.values()) == 26_126_644
    assert layout["latent.7.ffn.dwconv.weight"].shape == (2042, 1, 3, 3)
    state = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in layout.items()}
    torch.save({"params": state}, tmp_path / "r.pth")
    assert load_restormer_checkpoint(tmp_path / "r.pth").state.keys() == layout.keys()


def test_each_licence_is_returned_with_the_weights(restormer: Restormer, tmp_path: Path) -> None:
    path = published(restormer, tmp_path / "r.pth")
    assert "non-commercial" in load_restormer_checkpoint(path, config=restormer.config).licence
    torch.save({"input_blocks.0.0.weight": torch.zeros(1)}, tmp_path / "s.pth")
    assert "NTU S-Lab License 1.0" in load_resshift_checkpoint(tmp_path / "s.pth").licence


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": {}}, "holds the keys state_dict; expected a Restormer file with the key params"),
        ({"params": {"a": 1}}, "holds a among its tensors; expected a state dict, tensors only"),
        ({"params": {"skip_conv.weight": torch.zeros(1)}}, "dual-pixel variant"),
        (
            {"params": {"output.weight": torch.zeros(3, 96, 1, 1)}},
            r"missing: patch_embed\.proj\.weight.*wrong shape: output\.weight \(3, 96, 1, 1\)",
        ),
        ([1, 2], "holds a list; expected a dict of tensors"),
        ({"params": Path("x")}, "refuse to unpickle more than tensors"),
    ],
)
def test_a_file_that_is_no_restormer_is_refused(tmp_path: Path, content: object, message: str) -> None:
    torch.save(content, tmp_path / "r.pth")
    with pytest.raises(WeightsError, match=message):
        load_restormer_checkpoint(tmp_path / "r.pth")


def test_a_damaged_or_missing_file_is_refused(restormer: Restormer, tmp_path: Path) -> None:
    path = published(restormer, tmp_path / "r.pth")
    whole = path.read_bytes()
    for length in (0, 3, len(whole) // 2):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"r\.pth"):
            load_restormer_checkpoint(path)
    with pytest.raises(WeightsError, match="is missing"):
        load_restormer_checkpoint(tmp_path / "none.pth")


def test_a_conversion_without_experts_or_without_a_restormer_is_refused(restormer: Restormer) -> None:
    with pytest.raises(ValueError, match="experts must be at least 1, got 0"):
        pformer_from_restormer(restormer.state_dict(), experts=0)
    with pytest.raises(ValueError, match=r"holds no ffn\.dwconv\.weight"):
        pformer_from_restormer({"output.weight": torch.zeros(1)}, experts=3)


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("wrapped", [True, False])
def test_a_resshift_file_is_read_with_any_wrapping_and_without_its_index_buffers(tmp_path: Path, prefix: str, *, wrapped: bool) -> None:
    weights = {"input_blocks.0.0.weight": torch.ones(2), "input_blocks.1.1.blocks.0.attn.qkv.weight": torch.ones(3)}
    buffers = {
        "input_blocks.1.1.blocks.0.attn.relative_position_index": torch.ones(4, dtype=torch.int64),
        "input_blocks.1.1.blocks.1.attn_mask": torch.ones(5),
    }
    state = {prefix + name: tensor for name, tensor in {**weights, **buffers}.items()}
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "s.pth")
    read = load_resshift_checkpoint(tmp_path / "s.pth").state
    assert read.keys() == weights.keys()
    assert all(torch.equal(read[name], tensor) for name, tensor in weights.items())


def test_a_resshift_file_of_the_paper_size_fits_our_unet_by_name_and_shape(tmp_path: Path) -> None:
    with torch.device("meta"):
        network = UNet(UNetConfig.paper())
    state = {f"module.{name}": torch.zeros(()).expand(tensor.shape) for name, tensor in network.state_dict().items()}
    swin_layers = [
        *(f"input_blocks.{block}.1" for block in (1, 4, 7, 10)),
        "middle_block.1",
        *(f"output_blocks.{block}.1" for block in (0, 3, 6, 9)),
    ]
    masked = [name for name in swin_layers if name not in ("input_blocks.10.1", "middle_block.1", "output_blocks.0.1")]
    index = {f"module.{name}.blocks.{j}.attn.relative_position_index": torch.zeros(64, 64) for name in swin_layers for j in (0, 1)}
    masks = {f"module.{name}.blocks.1.attn_mask": torch.zeros(1, 64, 64) for name in masked}
    # a published file holds 564 tensors, 24 of them indices and masks (masks only where windows shift: not at 8 x 8)
    assert len({**state, **index, **masks}) == 564
    torch.save({**state, **index, **masks}, tmp_path / "s.pth")
    check_fit(network, load_resshift_checkpoint(tmp_path / "s.pth").state, source="s.pth")


def test_a_file_that_is_no_resshift_unet_is_refused(tmp_path: Path) -> None:
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "s.pth")
    with pytest.raises(WeightsError, match=r"holds the keys conv\.weight; expected a ResShift U-Net"):
        load_resshift_checkpoint(tmp_path / "s.pth")


def resnet34_layout() -> dict[str, tuple[int, ...]]:
    """Names and shapes of torchvision's resnet34 (He et al. 2016, table 1), without batch counters, as its published file has them."""
    shapes: dict[str, tuple[int, ...]] = {"conv1.weight": (64, 3, 7, 7), "fc.weight": (1000, 512), "fc.bias": (1000,)}

    def norm(name: str, channels: int) -> None:
        shapes.update({f"{name}.{part}": (channels,) for part in ("weight", "bias", "running_mean", "running_var")})

    norm("bn1", 64)
    entering = 64
    for stage, (blocks, width) in enumerate(zip((3, 4, 6, 3), (64, 128, 256, 512), strict=True), start=1):
        for block in range(blocks):
            name = f"layer{stage}.{block}"
            shapes[f"{name}.conv1.weight"] = (width, entering, 3, 3)
            shapes[f"{name}.conv2.weight"] = (width, width, 3, 3)
            norm(f"{name}.bn1", width)
            norm(f"{name}.bn2", width)
            if entering != width:
                shapes[f"{name}.downsample.0.weight"] = (width, entering, 1, 1)
                norm(f"{name}.downsample.1", width)
            entering = width
    return shapes


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_resnet34_file_fills_the_trunk_of_the_estimator_and_leaves_its_heads(tmp_path: Path, suffix: str) -> None:
    state = {name: torch.full(shape, 0.25) for name, shape in resnet34_layout().items()}
    path = tmp_path / f"resnet34{suffix}"
    if suffix == ".pth":
        torch.save(state, path)
    else:
        save_file(state, path)
    trunk = load_resnet34_checkpoint(path).state
    assert "fc.weight" not in trunk
    estimator = DefocusEstimator(DefocusEstimatorConfig.paper())
    heads = estimator.fc.weight.clone()
    load_strictly(estimator, trunk, source=str(path), fresh=HEADS)
    assert torch.equal(estimator.fc.weight, heads)
    assert torch.equal(estimator.layer4[2].conv2.weight, torch.full((512, 512, 3, 3), 0.25))


def test_a_resnet18_file_is_refused(tmp_path: Path) -> None:
    state = {name: torch.zeros(shape) for name, shape in resnet34_layout().items() if not name.startswith(("layer3.4", "layer3.5"))}
    torch.save(state, tmp_path / "resnet.pth")
    with pytest.raises(WeightsError, match=r"does not fit DefocusEstimator: missing: layer3\.4\.conv1\.weight"):
        load_resnet34_checkpoint(tmp_path / "resnet.pth")
