"""The command with a real system behind it: small, untrained, saved to a folder and loaded from it."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from pathorestore import cli
from pathorestore.diffusion.resshift import ResShift
from pathorestore.models.defocus import DefocusEstimator, DefocusEstimatorConfig
from pathorestore.models.encoders import TinyEncoder, TinyEncoderConfig
from pathorestore.models.pdiffusion import PDiffusion, PDiffusionConfig
from pathorestore.models.pformer import PFormer, PFormerConfig
from pathorestore.models.prompts import EdgePrompt, EdgePromptConfig, PathologyPrompt, PathologyPromptConfig, Prompter
from pathorestore.pipelines.image_file import read_image_file
from pathorestore.pipelines.info import installation
from pathorestore.pipelines.mop import MoPRestorer
from pathorestore.pipelines.provenance import read_provenance
from pathorestore.pipelines.refine import DiffusionRefiner, FineSettings


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A folder with an untrained tiny MoP."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        prompter = Prompter(
            TinyEncoder(TinyEncoderConfig.tiny()),
            DefocusEstimator(DefocusEstimatorConfig.tiny()),
            PathologyPrompt(PathologyPromptConfig.tiny()),
            EdgePrompt(EdgePromptConfig.tiny()),
        )
        fine = PDiffusion(PDiffusionConfig.tiny())
        torch.nn.init.normal_(fine.unet.out[2].weight, std=0.1)  # as it begins, it returns the coarse image
        system = MoPRestorer(prompter, PFormer(PFormerConfig.tiny()), DiffusionRefiner(fine, FineSettings(process=ResShift())))
    folder = tmp_path_factory.mktemp("models") / "untrained"
    system.save_pretrained(folder, dtype=torch.float16)
    return folder


@pytest.fixture
def image(tmp_path) -> Path:
    """A small image on disk."""
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)).save(tmp_path / "a.png")
    return tmp_path / "a.png"


def restore(image: Path, name: str, model: Path, *words: str) -> int:
    return cli.main(
        ["restore", str(image), "-o", str(image.parent / name), "--model", str(model), "--tile", "128", "--overlap", "16", *words]
    )


def test_the_record_says_what_was_done_and_the_same_words_give_the_same_pixels(image, model):
    assert restore(image, "two.png", model, "--steps", "1", "--seed", "3") == 0
    assert restore(image, "again.png", model, "--steps", "1", "--seed", "3") == 0
    assert restore(image, "other.png", model, "--steps", "1", "--seed", "4") == 0
    assert restore(image, "coarse.png", model, "--coarse-only") == 0
    two, again, other, coarse = (read_image_file(image.parent / f"{name}.png").image for name in ("two", "again", "other", "coarse"))
    assert torch.equal(two, again)
    assert not torch.equal(two, other)
    assert not torch.equal(two, coarse)
    record = read_provenance(image.parent / "two.png")
    assert (record.model_id, record.seed, len(record.weights_sha256)) == ("untrained", 3, 64)
    assert dict(record.parameters) == {
        "coarse_only": False,
        "device": "cpu",
        "overlap_px": 16,
        "precision": "fp32",
        "steps": 1,
        "tile_px": 128,
    }
    assert read_provenance(image.parent / "coarse.png").parameters["steps"] == 0


def test_a_tile_that_the_model_cannot_take_is_wrong_usage_and_the_next_is_named(image, model, capsys):
    assert restore(image, "out.png", model, "--tile", "192") == 2
    assert "--tile 192 must be a multiple of 128 for this model; try --tile 256" in capsys.readouterr().err
    assert restore(image, "out.png", model, "--tile", "64", "--coarse-only") == 0


def test_more_steps_than_the_model_knows_is_wrong_usage(image, model, capsys):
    assert restore(image, "out.png", model, "--steps", "5") == 2
    assert "steps must be between 1 and the 4" in capsys.readouterr().err


@pytest.mark.parametrize("damage", ["pickle", "missing key", "extra key", "unknown config key", "no system.json"])
def test_weights_that_are_not_what_they_should_be_are_one_line_and_exit_code_2(image, model, tmp_path, capsys, damage):
    broken = tmp_path / "broken"
    shutil.copytree(model, broken)
    weights, config = broken / "coarse" / "model.safetensors", broken / "coarse" / "config.json"
    state = {name: tensor.clone() for name, tensor in load_file(weights).items()}  # the file is mapped, and is written over below
    match damage:
        case "pickle":
            torch.save(state, weights)
        case "missing key":
            save_file(dict(list(state.items())[1:]), weights)
        case "extra key":
            save_file({**state, "surplus": torch.zeros(1)}, weights)
        case "unknown config key":
            told = json.loads(config.read_text())
            told["config"]["surplus"] = 1
            config.write_text(json.dumps(told))
        case _:
            (broken / "system.json").unlink()
    assert restore(image, "out.png", broken, "--coarse-only") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("pathorestore: error: ")
    assert len(err.splitlines()) == 1
    assert str(broken) in err
    assert not (tmp_path / "out.png").exists()


def test_info_knows_the_model(model):
    (found,) = installation(model.parent).models
    assert (found.name, found.licence) == ("untrained", "apache-2.0")
    assert set(found.parts) == {"encoder", "defocus", "pathology", "edge", "coarse", "fine"}
    assert len(found.weights_sha256) == 64
