"""A user's copy of a DiffBIR file becomes the state of our parts, by names written out from the layout of its code."""

from dataclasses import replace

import pytest
import torch

from pathorestore._torchvision import ensure_torchvision
from pathorestore.hub import WeightsError, load_strictly
from pathorestore.models.converters import control_name, load_diffbir_control, load_diffbir_restoration
from pathorestore.models.swinir import SwinIR, SwinIRConfig

ensure_torchvision()
pytest.importorskip("diffusers", reason="the extra `diffusion`")

from pathorestore.models.controlled import ControlNet, ControlNetConfig  # noqa: E402

SWIN = SwinIRConfig(embed=12, blocks=(2,), heads=2, window=2, features=8, unshuffle=2, upsampler="nearest+conv")


def both(names):
    return [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]


RESIDUAL = both(["in_layers.0", "in_layers.2", "emb_layers.1", "out_layers.0", "out_layers.3"])
ATTENTION = [
    *both(["norm", "proj_in", "proj_out"]),
    *both(f"transformer_blocks.0.{name}" for name in ("norm1", "norm2", "norm3", "ff.net.0.proj", "ff.net.2")),
    *both(f"transformer_blocks.0.attn{number}.to_out.0" for number in (1, 2)),
    *(f"transformer_blocks.0.attn{number}.to_{kind}.weight" for number in (1, 2) for kind in "qkv"),
]


def layout(*, attended, widened, halved, residual):
    """Names of a control branch; blocks by number: with attention, with a skip convolution, halving, residual."""
    names = both(["input_blocks.0.0", "time_embed.0", "time_embed.2", "middle_block_out.0"])
    names += both(f"zero_convs.{number}.0" for number in sorted({0, *halved, *residual}))
    names += both(f"input_blocks.{number}.0.op" for number in halved)
    names += both(f"input_blocks.{number}.0.skip_connection" for number in widened)
    names += [f"input_blocks.{number}.0.{name}" for number in residual for name in RESIDUAL]
    names += [f"input_blocks.{number}.1.{name}" for number in attended for name in ATTENTION]
    names += [f"middle_block.{number}.{name}" for number in (0, 2) for name in RESIDUAL]
    return [*names, *(f"middle_block.1.{name}" for name in ATTENTION)]


# Stable Diffusion 2.1: twelve blocks, three of which halve; attention on three levels of two layers
PAPER = layout(attended=(1, 2, 4, 5, 7, 8), widened=(4, 7), halved=(3, 6, 9), residual=(1, 2, 4, 5, 7, 8, 10, 11))
NANO = layout(attended=(3,), widened=(3,), halved=(2,), residual=(1, 3))


def test_every_tensor_of_the_published_layout_has_one_place():
    with torch.device("meta"):
        ours = set(ControlNet(ControlNetConfig.paper()).model.state_dict())
    found = [control_name(name, ControlNetConfig.paper()) for name in PAPER]
    assert len(set(found)) == len(found)
    assert ours - set(found) == {"controlnet_cond_embedding.weight"}
    assert set(found) <= ours


@pytest.fixture
def stored():
    """A branch of random weights, and the same by published names."""
    torch.manual_seed(0)
    branch = ControlNet(ControlNetConfig.nano()).eval()
    for parameter in branch.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    own = branch.model.state_dict()
    file = {name: own[control_name(name, branch.config)] for name in NANO}
    file["input_blocks.0.0.weight"] = torch.cat([own["conv_in.weight"], own["controlnet_cond_embedding.weight"]], dim=1)
    return branch, file


@torch.no_grad()
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_stored_branch_predicts_as_it_did(stored, wrapped, tmp_path, generator):
    branch, file = stored
    whole = {"state_dict": {f"control_model.{name}": value for name, value in file.items()} | {"model.foreign": torch.ones(1)}}
    torch.save(whole if wrapped else file, tmp_path / "it.pth")
    checkpoint = load_diffbir_control(tmp_path / "it.pth", config=branch.config)
    again = ControlNet(branch.config).eval()
    load_strictly(again, checkpoint.state, source="the converter")
    state, condition = (torch.randn(1, 4, 8, 8, generator=generator) for _ in range(2))
    context = torch.randn(1, 3, 16, generator=generator)
    inputs = (state, torch.tensor([9]), condition, context)
    for theirs, ours in zip(branch(*inputs).skips, again(*inputs).skips, strict=True):
        assert torch.equal(theirs, ours)
    assert "Apache-2.0" in checkpoint.licence


def test_other_files_are_refused(stored, tmp_path):
    branch, file = stored
    torch.save(file, tmp_path / "it.pth")
    with pytest.raises(WeightsError, match=r"of 4 \+ 8 channels"):
        load_diffbir_control(tmp_path / "it.pth", config=replace(branch.config, condition_channels=8))
    torch.save({name: value for name, value in file.items() if "zero_convs.1" not in name}, tmp_path / "it.pth")
    with pytest.raises(WeightsError, match=r"missing: model\.controlnet_down_blocks\.1"):
        load_diffbir_control(tmp_path / "it.pth", config=branch.config)
    torch.save({"a": torch.ones(1)}, tmp_path / "it.pth")
    with pytest.raises(WeightsError, match="holds the keys a; expected a control branch"):
        load_diffbir_control(tmp_path / "it.pth", config=branch.config)


@torch.no_grad()
@pytest.mark.parametrize("prefix", ["", "module.", "preprocess_model."])
def test_a_stored_restoration_module_restores_as_it_did(prefix, tmp_path, generator):
    network = SwinIR(SWIN).eval()
    file = {f"{prefix}{name}": value for name, value in network.state_dict().items()}
    file[f"{prefix}layers.0.residual_group.blocks.1.attn_mask"] = torch.zeros(1, 4, 4)
    torch.save({"state_dict": file}, tmp_path / "it.ckpt")
    again = SwinIR(SWIN).eval()
    load_strictly(again, load_diffbir_restoration(tmp_path / "it.ckpt", config=SWIN).state, source="the converter")
    image = torch.rand(1, 3, 8, 8, generator=generator)
    assert torch.equal(again(image), network(image))
