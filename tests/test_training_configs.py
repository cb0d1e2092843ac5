"""The configurations that ship with the package: they parse, and they say what the presets and the papers say."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from pathorestore import (
    DefocusEstimatorConfig,
    ISTEConfig,
    PathologyPromptConfig,
    PDiffusionConfig,
    PFormerConfig,
    SwinIRConfig,
    TextureDecoderConfig,
    TinyEncoderConfig,
)
from pathorestore.cli import main
from pathorestore.models.autoencoder import AutoencoderConfig
from pathorestore.models.controlled import LatentUNetConfig
from pathorestore.models.prompted import FusionConfig, PromptedRestormerConfig, PromptedSwinIRConfig
from pathorestore.models.text import ByteTextConfig
from pathorestore.pipelines.lpfm import LPFMConfig
from pathorestore.training import ScaleSampling
from pathorestore.training.cli import config_names, config_path, with_files

STAGES = {
    "encoder": (TinyEncoderConfig, "encoder"),
    "defocus": (DefocusEstimatorConfig, "defocus"),
    "pathology": (PathologyPromptConfig, "pathology"),
    "pformer": (PFormerConfig, "coarse"),
    "pdiffusion": (PDiffusionConfig, "fine"),
}


def _read(name):
    return yaml.safe_load(Path(config_path(name)).read_text())


def _within(given, preset, where=""):
    """Every value that a configuration gives is the preset's."""
    for key, value in given.items():
        expected = preset[key]
        if isinstance(value, dict):
            _within(value, expected, f"{where}.{key}")
        else:
            assert (tuple(value) if isinstance(value, list) else value) == expected, f"{where}.{key}"


def test_every_stage_has_a_tiny_a_base_and_a_paper_configuration():
    assert set(config_names()) >= {f"{stage}_{preset}" for stage in STAGES for preset in ("tiny", "base", "paper")}


@pytest.mark.parametrize("preset", ["tiny", "base", "paper"])
@pytest.mark.parametrize("stage", STAGES)
def test_the_sizes_in_a_configuration_are_those_of_the_preset(stage, preset):
    config_class, part = STAGES[stage]
    given = _read(f"{stage}_{preset}")["model"]["init_args"][part]["init_args"]["config"]
    expected = asdict(getattr(config_class, preset)())
    if stage == "defocus" and preset != "paper":
        assert given.pop("signed") is False  # what ships is unsigned, the preset as the paper has it
    if stage == "pformer" and preset == "tiny":
        assert given.pop("hint_channels") == 3  # the prompts that ship hold an optics prompt, which the paper has not
    _within(given, expected, f"{stage}_{preset}")


# mop.md, section 7: the paper and, where it is silent, the code that it builds on
PAPER = {
    "defocus_paper": {"lr": 1e-4, "batch": 16, "gamma": 0.95, "epochs": 100},
    "pathology_paper": {"lr": 1e-4, "batch": 16, "gamma": 0.98, "epochs": 500},
    "pformer_paper": {"lr": 1e-4, "batch": 8, "gamma": 0.98, "epochs": 300},
    "pdiffusion_paper": {"lr": 5e-5, "batch": 8, "gamma": None, "epochs": None},
}


@pytest.mark.parametrize("name", PAPER)
def test_the_paper_configurations_train_as_the_paper_says(name):
    config = _read(name)
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    found = {
        "lr": model["optimizer"]["init_args"]["lr"],
        "batch": data["batch_size"],
        "gamma": model["schedule"]["init_args"].get("gamma"),
        "epochs": config["trainer"].get("max_epochs"),
    }
    assert found == PAPER[name]
    assert model["optimizer"]["class_path"] == "torch.optim.Adam"
    assert data["crops"]["crop_px"] == 256


@pytest.mark.parametrize("preset", ["tiny", "base", "paper"])
def test_the_sizes_of_the_upscaler_are_those_of_its_preset(preset):
    given = _read(f"iste_{preset}")["model"]["init_args"]
    expected = asdict(getattr(ISTEConfig, preset)())
    for part in ("encoder", "decoder"):
        config = given[part]["init_args"]["config"]
        _within(config, expected[part], f"iste_{preset}.{part}")
        defaults = asdict((SwinIRConfig if part == "encoder" else TextureDecoderConfig)())
        assert {key for key, value in expected[part].items() if value != defaults[key]} <= set(config)


def test_the_upscaler_of_the_paper_trains_as_its_code_does():
    config = _read("iste_paper")
    model, data = config["model"]["init_args"], config["data"]["init_args"]
    assert ScaleSampling(**{key: tuple(value) if isinstance(value, list) else value for key, value in model["sampling"].items()}) == (
        ScaleSampling()
    )
    assert model["optimizer"] == {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-4}}
    assert model["schedule"]["init_args"] == {"milestones": [500, 800, 900, 950], "gamma": 0.5}
    assert data["crops"]["crop_px"] == ScaleSampling().crop_px == 192
    assert data["epoch_size"] == 460 * 20


@pytest.mark.parametrize(
    ("name", "part", "preset"),
    [
        ("restoration_tiny", "restoration", SwinIRConfig.tiny_restoration()),
        ("restoration_base", "restoration", SwinIRConfig.base_restoration()),
        ("restoration_paper", "restoration", SwinIRConfig.restoration()),
        ("autoencoder_tiny", "autoencoder", AutoencoderConfig.tiny()),
        ("autoencoder_base", "autoencoder", AutoencoderConfig.base()),
        ("latent_unet_base", "unet", LatentUNetConfig.base()),
        ("latent_unet_tiny", "unet", LatentUNetConfig.tiny()),
    ],
)
def test_the_sizes_of_histo_diffusion_are_those_of_its_presets(name, part, preset):
    given = _read(name)["model"]["init_args"][part]["init_args"]["config"]
    _within(given, asdict(preset), name)
    defaults = asdict(type(preset)())
    assert {key for key, value in asdict(preset).items() if value != defaults[key]} <= set(given)


@pytest.mark.parametrize(("name", "steps"), [("restoration_paper", 150_000), ("control_paper", 205_000)])
def test_histo_diffusion_trains_as_the_paper_says(name, steps):
    config = _read(name)
    assert config["trainer"]["max_steps"] == steps
    assert config["data"]["init_args"]["batch_size"] == 16
    assert config["data"]["init_args"]["crops"]["crop_px"] == 512
    assert config["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 1e-4
    assert config["model"]["init_args"]["recipe"]["class_path"].endswith("OneRound.diffbir")


@pytest.mark.parametrize(
    ("name", "net", "preset"),
    [
        ("tiny", "restormer", PromptedRestormerConfig.tiny()),
        ("base", "restormer", PromptedRestormerConfig.base()),
        ("paper", "swinir", PromptedSwinIRConfig.paper()),
    ],
)
def test_the_sizes_of_the_prompted_coarse_network_are_those_of_its_preset(name, net, preset):
    given = _read(f"prompted_coarse_{name}")["model"]["init_args"]
    config, expected = given["coarse"]["init_args"]["config"], asdict(getattr(preset, net))
    assert given["coarse"]["class_path"] == f"pathorestore.{type(preset).__name__.removesuffix('Config')}"
    _within(config[net], expected, name)
    defaults = asdict(type(getattr(preset, net))())
    assert {key for key, value in expected.items() if value != defaults[key]} <= set(config[net])
    if name != "paper":
        assert config["vector_dim"] == preset.vector_dim
        assert asdict(getattr(LPFMConfig, name)().coarse) == expected
        _within(given["text"]["init_args"]["config"], asdict(getattr(ByteTextConfig, name)()), name)
    else:  # the tower of Stable Diffusion is 1024 wide
        assert config["vector_dim"] == replace(FusionConfig.paper(), text_dim=1024).vector_dim


def test_p_diffusion_warms_up_for_ten_thousand_steps_of_a_hundred_thousand():
    config = _read("pdiffusion_paper")
    schedule, steps = config["model"]["init_args"]["schedule"]["init_args"], config["trainer"]["max_steps"]
    rate = config["model"]["init_args"]["optimizer"]["init_args"]["lr"]
    assert steps == 100_000
    assert schedule["warmup"] * steps == pytest.approx(10_000)
    assert schedule["final"] * rate == pytest.approx(2e-5)


def test_a_name_that_is_neither_file_nor_configuration_is_answered_with_the_names(tmp_path):
    own = tmp_path / "mine.yaml"
    own.write_text("{}")
    assert with_files(["fit", "--config", str(own), "--config=pformer_tiny"])[2:] == [str(own), f"--config={config_path('pformer_tiny')}"]
    with pytest.raises(ValueError, match="pformer_tiny"):
        config_path("pformer_huge")


@pytest.mark.parametrize(
    ("option", "answer"),
    [
        ("--data.manifst=x.csv", "SharpImages has no option 'manifst'; did you mean 'manifest'?"),
        ("--model.optimiser=torch.optim.Adam", "PFormerStage has no option 'optimiser'; did you mean 'optimizer'?"),
    ],
)
def test_a_misspelt_option_is_answered_with_the_nearest_one(option, answer, capsys):
    assert main(["fit", "--config", "pformer_tiny", option]) == 2
    assert answer in capsys.readouterr().err
