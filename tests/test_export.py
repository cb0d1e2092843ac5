"""From a checkpoint to weights on disk: what was trained comes back to the bit, and nothing else is accepted."""

import io
import json
from dataclasses import replace

import pytest
import pytorch_lightning as pl
import torch
import yaml
from small_stage import crops, trainer
from torch import nn
from torch.utils.data import DataLoader

from pathorestore.diffusion.resshift import ResShift
from pathorestore.hub import WeightsError
from pathorestore.models.defocus import DefocusEstimator, DefocusEstimatorConfig
from pathorestore.models.encoders import Embedding, TinyEncoder, TinyEncoderConfig
from pathorestore.models.implicit_decoders import ImplicitDecoderConfig, LIIFDecoder
from pathorestore.models.iste import Search, TextureDecoder, TextureDecoderConfig
from pathorestore.models.optics_prompt import OpticsPrompt, OpticsPromptConfig
from pathorestore.models.pdiffusion import PDiffusion, PDiffusionConfig
from pathorestore.models.pformer import PFormer, PFormerConfig, Restormer, RestormerConfig
from pathorestore.models.prompts import EdgePrompt, EdgePromptConfig, PathologyPrompt, PathologyPromptConfig, Prompter
from pathorestore.models.swinir import SwinIR, SwinIRConfig
from pathorestore.pipelines.iste import ISTE
from pathorestore.pipelines.mop import MoPRestorer
from pathorestore.pipelines.refine import DiffusionRefiner, FineSettings, KeepCoarse
from pathorestore.training import export as export_module
from pathorestore.training.average import ExponentialAverage
from pathorestore.training.card import training_card
from pathorestore.training.export import describe, export
from pathorestore.training.record import TrainingRecord

LIIF = ImplicitDecoderConfig(features=8, hidden=(8,))
IMAGE = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class StrangeEncoder(nn.Module):
    """A foundation model as a stage holds it: frozen, and none of our parts."""

    dim = 192

    def __init__(self):
        super().__init__()
        self.project = nn.Linear(3, 192)

    def forward(self, image):
        cls = self.project(image.mean(dim=(2, 3)))
        return Embedding(cls, cls[:, None])


class PartsStage(pl.LightningModule):
    """Shrinks the weights of its trained parts by 4 % in every step."""

    def __init__(self, parts, *, trained, settings=None):
        super().__init__()
        self.modules_by_name = nn.ModuleDict(parts)
        self.modules_by_name.requires_grad_(False)
        self.trained, self._settings = trained, settings
        for name in trained:
            self.modules_by_name[name].requires_grad_(True)

    def parts(self):
        return {name: part for name, part in self.modules_by_name.items() if not isinstance(part, StrangeEncoder)}

    def settings(self):
        return self._settings

    def training_step(self, batch, batch_idx):
        return sum(0.02 * parameter.square().sum() for parameter in self.parameters() if parameter.requires_grad)

    def validation_step(self, batch, batch_idx):
        self.log("val_gain", torch.tensor(1.5), batch_size=1)

    def on_save_checkpoint(self, checkpoint):
        checkpoint["pathorestore"] = describe(self)

    def configure_optimizers(self):
        return torch.optim.SGD([parameter for parameter in self.parameters() if parameter.requires_grad], lr=1.0)

    def restorer(self):
        parts = dict(self.modules_by_name)
        optics = {"optics": parts["optics"]} if "optics" in parts else {}
        prompter = Prompter(parts["encoder"], parts["defocus"], parts["pathology"], parts["edge"], **optics)
        fine = DiffusionRefiner(parts["fine"], self._settings) if "fine" in parts else KeepCoarse()
        return MoPRestorer(prompter, parts["coarse"], fine).eval()


def _prompts():
    return {
        "encoder": TinyEncoder(TinyEncoderConfig.tiny()),
        "defocus": DefocusEstimator(DefocusEstimatorConfig.tiny()),
        "pathology": PathologyPrompt(PathologyPromptConfig.tiny()),
        "edge": EdgePrompt(EdgePromptConfig.tiny()),
    }


def _fine():
    fine = PDiffusion(replace(PDiffusionConfig.tiny(), unet=replace(PDiffusionConfig.tiny().unet, mult=(1,))))
    with torch.no_grad():  # its last layers begin at zero, and would stay there
        for parameter in fine.parameters():
            parameter += 0.02 * torch.randn_like(parameter)
    return fine


SETTINGS = FineSettings(process=ResShift(steps=3, kappa=0.3, min_noise=0.1), guard_px=1.0)


def _stage(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        parts = _prompts()
        if name == "encoder":
            return PartsStage({"encoder": parts["encoder"]}, trained=("encoder",))
        if name == "pathology":
            return PartsStage({key: parts[key] for key in ("encoder", "defocus", "pathology")}, trained=("pathology",))
        if name == "restormer":
            return PartsStage(parts | {"coarse": Restormer(replace(RestormerConfig.tiny(), blocks=(1, 1, 1, 1)))}, trained=("coarse",))
        if name == "strange":
            parts["encoder"] = StrangeEncoder()
        if name == "optics":
            prompt = OpticsPrompt(OpticsPromptConfig(nodes_um=(1.0,), pad_px=8))
            coarse = PFormer(replace(PFormerConfig.tiny(), hint_channels=prompt.channels))
            return PartsStage(parts | {"optics": prompt, "coarse": coarse}, trained=("coarse",))
        parts["coarse"] = PFormer(PFormerConfig.tiny())
        if name == "fine":
            return PartsStage(parts | {"fine": _fine()}, trained=("fine", "edge"), settings=SETTINGS)
        return PartsStage(parts, trained=("coarse",))


def _train(stage, folder, *, average=True, steps=3):
    """Train and write folder/checkpoints/last.ckpt; returns the average."""
    kept = ExponentialAverage(0.5)
    running = trainer(folder, callbacks=[TrainingRecord(), *([kept] if average else [])], max_steps=steps, val_check_interval=steps)
    running.fit(stage, DataLoader(crops(), batch_size=2), DataLoader(crops(2), batch_size=2))
    running.save_checkpoint(folder / "checkpoints" / "last.ckpt")
    return kept


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A trained coarse stage: folder, stage with live weights, average. Nobody changes it."""
    folder = tmp_path_factory.mktemp("coarse")
    stage = _stage("coarse")
    return folder, stage, _train(stage, folder)


@pytest.mark.parametrize("name", ["coarse", "fine", "optics"])
def test_an_exported_restorer_gives_the_averaged_stages_output_to_the_bit(tmp_path, name):
    stage = _stage(name)
    live = stage.restorer().restore(IMAGE)
    average = _train(stage, tmp_path)
    exported = export(tmp_path / "checkpoints" / "last.ckpt", tmp_path / "out")
    assert (exported.kind, exported.averaged, exported.folder) == ("system", True, tmp_path / "out")
    assert set(exported.parts) == set(stage.parts())
    restored = MoPRestorer.from_pretrained(tmp_path / "out").restore(IMAGE, seed=3)
    unaveraged = stage.restorer().restore(IMAGE, seed=3)
    average.swap(stage)
    assert torch.equal(restored, stage.restorer().restore(IMAGE, seed=3))
    assert not torch.equal(restored, unaveraged)
    assert not torch.equal(restored, live)


@pytest.mark.parametrize("decoder", [TextureDecoder(TextureDecoderConfig(features=8, texture=6, hidden=(8,), heads=2)), LIIFDecoder(LIIF)])
def test_an_exported_upscaler_draws_as_the_averaged_stage_does_to_the_bit(tmp_path, decoder):
    encoder = SwinIR(SwinIRConfig(embed=12, blocks=(1,), heads=2, window=4, features=8, drop_path=0.0))
    stage = PartsStage({"encoder": encoder, "decoder": decoder}, trained=("encoder", "decoder"), settings=Search(max_keys=50))
    average = _train(stage, tmp_path)
    exported = export(tmp_path / "checkpoints" / "last.ckpt", tmp_path / "out")
    assert (exported.kind, exported.parts) == ("system", ("encoder", "decoder"))
    loaded = ISTE.from_pretrained(tmp_path / "out")
    assert loaded.search == Search(max_keys=50)
    drawn = loaded.upscale(IMAGE, scale=2.5)
    live = ISTE(encoder, decoder, search=loaded.search).eval()
    assert not torch.equal(drawn, live.upscale(IMAGE, scale=2.5))
    average.swap(stage)
    assert torch.equal(drawn, live.upscale(IMAGE, scale=2.5))


def test_the_settings_of_the_fine_stage_travel_along(tmp_path):
    _train(_stage("fine"), tmp_path, steps=1)
    export(tmp_path / "checkpoints" / "last.ckpt", tmp_path / "out")
    assert MoPRestorer.from_pretrained(tmp_path / "out").fine.settings == SETTINGS


def test_without_the_average_the_live_weights_are_exported(trained, tmp_path):
    folder, stage, _ = trained
    exported = export(folder / "checkpoints" / "last.ckpt", tmp_path / "out", average=False)
    assert not exported.averaged
    assert torch.equal(MoPRestorer.from_pretrained(tmp_path / "out").restore(IMAGE), stage.restorer().restore(IMAGE))
    assert "not averaged" in (tmp_path / "out" / "README.md").read_text()


def test_a_checkpoint_that_has_no_average_is_exported_as_it_is(tmp_path):
    stage = _stage("encoder")
    _train(stage, tmp_path, average=False)
    assert not export(tmp_path / "checkpoints" / "last.ckpt", tmp_path / "out").averaged
    again = TinyEncoder.from_pretrained(tmp_path / "out" / "encoder")
    assert torch.equal(again(IMAGE).cls, stage.parts()["encoder"].eval()(IMAGE).cls)


@pytest.mark.parametrize(("name", "part", "cls"), [("pathology", "pathology", PathologyPrompt), ("restormer", "coarse", Restormer)])
def test_what_is_no_restorer_is_exported_as_a_folder_of_its_trained_parts(tmp_path, name, part, cls):
    stage = _stage(name)
    average = _train(stage, tmp_path, steps=1)
    exported = export(tmp_path / "checkpoints" / "last.ckpt", tmp_path / "parts")
    assert (exported.kind, exported.parts) == ("parts", (part,))
    assert [item.name for item in (tmp_path / "parts").iterdir()] == [part]
    average.swap(stage)
    expected = stage.parts()[part].state_dict()
    loaded = cls.from_pretrained(tmp_path / "parts" / part).state_dict()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[key], tensor) for key, tensor in expected.items())


def test_a_foreign_encoder_is_left_out_and_handed_in_again(tmp_path):
    stage = _stage("strange")
    average = _train(stage, tmp_path, steps=1)
    exported = export(tmp_path / "checkpoints" / "last.ckpt", tmp_path / "out")
    assert exported.kind == "system"
    assert "encoder" not in exported.parts
    assert "pass the one it was trained with" in (tmp_path / "out" / "README.md").read_text()
    with pytest.raises(ValueError, match="holds no encoder"):
        MoPRestorer.from_pretrained(tmp_path / "out")
    average.swap(stage)
    restored = MoPRestorer.from_pretrained(tmp_path / "out", encoder=stage.modules_by_name["encoder"])
    assert torch.equal(restored.restore(IMAGE), stage.restorer().restore(IMAGE))


def test_half_precision_halves_the_files_and_stays_close(trained, tmp_path):
    checkpoint = trained[0] / "checkpoints" / "last.ckpt"
    for dtype in ("fp32", "fp16"):
        export(checkpoint, tmp_path / dtype, dtype=dtype)
    sizes = [(tmp_path / dtype / "coarse" / "model.safetensors").stat().st_size for dtype in ("fp32", "fp16")]
    assert sizes[1] < 0.6 * sizes[0]
    full, half = (MoPRestorer.from_pretrained(tmp_path / dtype).restore(IMAGE) for dtype in ("fp32", "fp16"))
    assert 0 < (full - half).abs().max() < 0.02


def test_the_card_tells_how_the_weights_came_about(trained, tmp_path):
    folder = trained[0]
    export(folder / "checkpoints" / "last.ckpt", tmp_path / "my-model")
    text = (tmp_path / "my-model" / "README.md").read_text()
    record = json.loads((folder / "training_record.json").read_text())
    for expected in (
        "# my-model",
        "coarse as trained by PartsStage",
        "exponential moving average",
        "3 steps of 2 images (6 images seen)",
        record["machine"],
        "GiB",
        f"torch {torch.__version__}",
        "| val_gain (step 3) | 1.5 |",
    ):
        assert expected in text
    assert "* **data**: not recorded" in text  # no manifest was there


def test_the_figures_of_a_validation_right_after_the_checkpoint_count_and_later_ones_do_not(small_checkpoint, tmp_path):
    _edit(small_checkpoint, lambda stored: stored["callbacks"]["TrainingRecord"].update(validation={}, validation_step=None))
    record = tmp_path / "run" / "training_record.json"
    export(small_checkpoint, tmp_path / "right-after")
    assert "| val_gain (step 1) | 1.5 |" in (tmp_path / "right-after" / "encoder" / "README.md").read_text()
    for later in (json.dumps(json.loads(record.read_text()) | {"steps": 2, "validation_step": 2}), "not JSON", "[]"):
        record.write_text(later)
        export(small_checkpoint, tmp_path / "later", overwrite=True)
        card = (tmp_path / "later" / "encoder" / "README.md").read_text()
        assert "## Metrics\n\nnot recorded" in card
        assert "val_gain" not in card  # by name: the figure itself may also stand in the peak memory


def test_a_card_without_a_record_says_that_nothing_is_recorded():
    card = training_card({}, title="x", trained=("coarse",), averaged=True)
    assert card.duration == card.hardware == card.code == card.command == card.seed == card.data == ""


@pytest.mark.parametrize("place", ["checkpoints/training.yaml", "config.yaml", "logs/version_3/training.yaml"])
def test_the_runs_configuration_is_copied_from_where_it_lies(tmp_path, place):
    _train(_stage("encoder"), tmp_path / "run", steps=1)
    checkpoint = tmp_path / "run" / "checkpoints" / "last.ckpt"
    _edit(checkpoint, lambda stored: stored["callbacks"]["TrainingRecord"].update(logs="logs/version_3"))
    config = tmp_path / "run" / place
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_text("model:\n  class_path: x\ntrainer:\n  max_steps: 3\n")
    export(checkpoint, tmp_path / "out")
    assert (tmp_path / "out" / "training.yaml").read_bytes() == config.read_bytes()
    assert yaml.safe_load(config.read_text())["trainer"] == {"max_steps": 3}
    assert "training.yaml" in (tmp_path / "out" / "encoder" / "README.md").read_text()


def test_the_configuration_of_something_else_is_not_copied(tmp_path):
    _train(_stage("encoder"), tmp_path / "run", steps=1)
    (tmp_path / "run" / "config.yaml").write_text("database: x\n")
    export(tmp_path / "run" / "checkpoints" / "last.ckpt", tmp_path / "out")
    assert not (tmp_path / "out" / "training.yaml").exists()


def _edit(checkpoint, change):
    stored = torch.load(checkpoint, weights_only=True)
    change(stored)
    torch.save(stored, checkpoint)


@pytest.fixture
def small_checkpoint(tmp_path):
    """A checkpoint of the encoder stage that a test may break."""
    _train(_stage("encoder"), tmp_path / "run", steps=1)
    return tmp_path / "run" / "checkpoints" / "last.ckpt"


def _refused(checkpoint, to, *, match, error=ValueError, **options):
    with pytest.raises(error, match=match) as caught:
        export(checkpoint, to, **options)
    assert "\n" not in str(caught.value)
    assert not any(item.name.startswith(".pathorestore") for item in to.parent.iterdir())


def test_files_that_are_no_checkpoints_of_ours_are_refused_in_one_line(small_checkpoint, tmp_path):
    whole = small_checkpoint.read_bytes()
    other = io.BytesIO()
    torch.save({"state_dict": {}}, other)
    contents = {
        b"": "no checkpoint",
        b"this is text": "no checkpoint",
        whole[: len(whole) // 2]: "truncated or damaged",
        whole[:-100]: "truncated or damaged",
        other.getvalue(): "does not say which parts it holds",
    }
    for number, (content, match) in enumerate(contents.items()):
        path = tmp_path / f"{number}.ckpt"
        path.write_bytes(content)
        _refused(path, tmp_path / "out", match=match)
    _refused(tmp_path / "absent.ckpt", tmp_path / "out", match="is no file")
    _refused(tmp_path / "run", tmp_path / "out", match="is a folder; name a checkpoint file")
    assert not (tmp_path / "out").exists()


class _Touch:
    """Unpickling it would leave a trace."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


def test_a_checkpoint_is_never_unpickled(small_checkpoint, tmp_path):
    stored = torch.load(small_checkpoint, weights_only=True)
    torch.save(stored | {"extra": _Touch(tmp_path / "trace")}, tmp_path / "evil.ckpt")
    _refused(tmp_path / "evil.ckpt", tmp_path / "out", match="only unpickling could restore")
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda s: s["pathorestore"]["parts"]["encoder"].update({"class": "os.system"}), "as a os.system, which this version"),
        (lambda s: s["pathorestore"]["parts"]["encoder"]["config"].update(depth=3), "unknown depth"),
        (lambda s: s["pathorestore"].update(format_version=2), "a way that this version"),
        (lambda s: s["pathorestore"].pop("trained"), "a way that this version"),
        (lambda s: s["pathorestore"].update(trained=["coarse"]), "does not hold coarse"),
        (lambda s: s["state_dict"].pop("modules_by_name.encoder.norm.weight"), "averages weights that it does not hold"),
        (lambda s: s["callbacks"]["ExponentialAverage"]["average"]["modules_by_name.encoder.norm.weight"].fill_(float("nan")), "NaN"),
        (lambda s: s["callbacks"]["ExponentialAverage"]["average"].update({"modules_by_name.encoder.norm.weight": torch.ones(3)}), "shape"),
    ],
)
def test_checkpoints_that_do_not_fit_are_refused_naming_the_fault(small_checkpoint, tmp_path, change, match):
    _edit(small_checkpoint, change)
    _refused(small_checkpoint, tmp_path / "out", match=match)


def test_missing_weights_are_named(small_checkpoint, tmp_path):
    _edit(small_checkpoint, lambda stored: stored["state_dict"].pop("modules_by_name.encoder.norm.weight"))
    _refused(small_checkpoint, tmp_path / "out", match=r"missing: norm\.weight", error=WeightsError, average=False)


def test_a_part_outside_its_stage_is_refused_when_the_checkpoint_is_written():
    stage = _stage("encoder")
    stage.parts = lambda: {"encoder": TinyEncoder(TinyEncoderConfig.tiny())}
    with pytest.raises(ValueError, match="'encoder' is no submodule of PartsStage"):
        describe(stage)


def test_the_description_is_plain_json_and_names_every_tensor_of_every_part():
    stage = _stage("fine")
    described = describe(stage)
    assert json.loads(json.dumps(described)) == described
    names = set(stage.state_dict())
    for name, entry in described["parts"].items():
        assert {entry["prefix"] + key for key in stage.parts()[name].state_dict()} <= names


def test_an_existing_target_stays_unless_it_may_be_overwritten(small_checkpoint, tmp_path):
    out = tmp_path / "out"
    export(small_checkpoint, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    _refused(small_checkpoint, out, match="exists; name another folder")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    export(small_checkpoint, out, overwrite=True, average=False)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} != before
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out", "run"]


def test_a_folder_with_other_things_in_it_is_never_overwritten(small_checkpoint, tmp_path):
    out = tmp_path / "out"
    export(small_checkpoint, out)
    (out / "encoder" / "thesis.docx").write_text("years of work")
    _refused(small_checkpoint, out, match="holds encoder, which export did not write", overwrite=True)
    (tmp_path / "file").write_text("x")
    _refused(small_checkpoint, tmp_path / "file", match="which export did not write", overwrite=True)
    assert (out / "encoder" / "thesis.docx").read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    assert export(small_checkpoint, tmp_path / "empty").kind == "parts"


@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt()])
def test_an_export_that_breaks_off_leaves_what_was_there(small_checkpoint, tmp_path, monkeypatch, error):
    out = tmp_path / "out"
    export(small_checkpoint, out)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}

    def broken(self, folder, **options):
        raise error

    monkeypatch.setattr(TinyEncoder, "save_pretrained", broken)
    with pytest.raises(type(error)):
        export(small_checkpoint, out, overwrite=True)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before
    assert sorted(item.name for item in tmp_path.iterdir()) == ["out", "run"]


def test_a_replacement_that_cannot_take_its_place_brings_the_old_one_back(tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    (out / "README.md").write_text("old")

    def fail(self, target):
        if self.suffix == ".part":
            raise OSError("no")
        return rename(self, target)

    path_class = type(out)
    rename = path_class.rename
    monkeypatch.setattr(path_class, "rename", fail)
    with pytest.raises(OSError, match="no"), export_module._appearing(out):
        pass
    assert (out / "README.md").read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["out"]


def test_an_unknown_precision_is_refused(small_checkpoint, tmp_path):
    _refused(small_checkpoint, tmp_path / "out", match="dtype must be fp32 or fp16", dtype="int8")


def test_exporting_leaves_the_random_state_as_it_was(small_checkpoint, tmp_path):
    before = torch.get_rng_state()
    export(small_checkpoint, tmp_path / "out")
    assert torch.equal(torch.get_rng_state(), before)
