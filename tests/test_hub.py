"""A saved network comes back bit for bit or not at all."""

import dataclasses
import json
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pathorestore import hub
from pathorestore.hub import Pretrained, WeightsError, load_parts, load_settings, save_parts, weights_sha256
from pathorestore.hub_card import ModelCard
from pathorestore.hub_codec import ConfigError, decode, encode
from pathorestore.models.iste import TextureDecoder
from pathorestore.models.swinir import SwinIR


@dataclasses.dataclass(frozen=True, kw_only=True)
class Level:
    width: int
    scale: float = 1.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlurConfig:
    levels: tuple[Level, ...] = (Level(width=4), Level(width=8, scale=0.5))
    kernel: tuple[int, int] = (3, 3)
    gate: Literal["add", "mul"] = "add"
    stride: Literal[1, 8] = 8
    floor: float | None = None
    trained: bool = False
    names: dict[str, int] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.levels:
            raise ValueError("levels is empty; expected at least one Level")


class Blur(nn.Module, Pretrained):
    def __init__(self, config: BlurConfig) -> None:
        super().__init__()
        self.config = config
        self.conv = nn.Conv2d(3, config.levels[0].width, config.kernel)
        self.norm = nn.BatchNorm2d(config.levels[0].width)

    def forward(self, image: Tensor) -> Tensor:
        return self.norm(self.conv(image))


class Sharpen(Blur):
    pass


configs = st.builds(
    BlurConfig,
    levels=st.lists(st.builds(Level, width=st.integers(1, 9), scale=st.floats(-1e9, 1e9)), min_size=1, max_size=3).map(tuple),
    kernel=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    gate=st.sampled_from(["add", "mul"]),
    floor=st.none() | st.floats(0, 1),
    trained=st.booleans(),
    names=st.dictionaries(st.text(max_size=5), st.integers(), max_size=3),
)


@pytest.fixture
def blur() -> Blur:
    module = Blur(BlurConfig())
    generator = torch.Generator().manual_seed(3)
    for tensor in module.state_dict().values():
        if tensor.is_floating_point():
            tensor.copy_(torch.rand(tensor.shape, generator=generator))
    return module


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@given(config=configs)
def test_a_config_survives_json_exactly(config: BlurConfig) -> None:
    assert decode(BlurConfig, json.loads(json.dumps(encode(config), allow_nan=False))) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"levelz": []}, "unknown levelz"),
        ({"levels": [{"width": 4}]}, r"levels\[0\] does not fit Level: missing scale"),
        ({"levels": [{"width": 4.5, "scale": 1.0}]}, r"levels\[0\]\.width is 4.5 \(float\); expected int"),
        ({"levels": []}, "refused by BlurConfig: levels is empty"),
        ({"kernel": [3, 3, 3]}, "kernel is .* expected a list of 2"),
        ({"kernel": 3}, "kernel is 3 .* expected a list"),
        ({"gate": "sub"}, "expected one of 'add', 'mul'"),
        ({"stride": 8.0}, r"stride is 8.0 \(float\); expected one of 1, 8"),
        ({"stride": True}, r"stride is True \(bool\)"),
        ({"floor": "low"}, r"expected float or .* expected null"),
        ({"trained": 1}, r"trained is 1 \(int\); expected bool"),
        ({"names": {"a": True}}, r"names\['a'\] is True \(bool\); expected int"),
        ({"names": []}, "names is .* expected dict"),
    ],
)
def test_a_config_that_does_not_fit_is_refused_with_its_key(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        decode(BlurConfig, {**encode(BlurConfig()), **change})


def test_a_missing_key_is_an_error_even_where_the_field_has_a_default() -> None:
    stored = encode(BlurConfig())
    del stored["gate"]
    with pytest.raises(ConfigError, match="missing gate"):
        decode(BlurConfig, stored)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), Path(), {1: 2}, b"x"])
def test_a_value_that_json_cannot_give_back_is_refused_when_encoded(value: object) -> None:
    with pytest.raises(TypeError, match=r"config\.floor is"):
        encode(BlurConfig(floor=value))  # type: ignore[arg-type]


def test_saved_weights_come_back_bit_for_bit_with_their_config(blur: Blur, tmp_path: Path) -> None:
    blur.save_pretrained(tmp_path)
    loaded = Blur.from_pretrained(tmp_path)
    assert type(loaded) is Blur
    assert loaded.config == blur.config
    assert not loaded.training
    for name, tensor in blur.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]


def test_half_precision_files_load_as_float32_and_keep_their_counters(blur: Blur, tmp_path: Path) -> None:
    blur.norm.num_batches_tracked.fill_(70_000)  # would be infinite as float16
    blur.save_pretrained(tmp_path, dtype=torch.float16)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored["conv.weight"].dtype == torch.float16
    loaded = Blur.from_pretrained(tmp_path)
    assert loaded.conv.weight.dtype == torch.float32
    assert torch.equal(loaded.conv.weight, blur.conv.weight.half().float())
    assert loaded.norm.num_batches_tracked == 70_000


def test_weights_beyond_half_precision_are_refused_before_anything_is_written(blur: Blur, tmp_path: Path) -> None:
    with torch.no_grad():
        blur.conv.bias[0] = 1e6
    with pytest.raises(WeightsError, match=r"conv\.bias holds values that are not finite as torch\.float16"):
        blur.save_pretrained(tmp_path / "new", dtype=torch.float16)
    assert not (tmp_path / "new").exists()


def test_loading_leaves_the_random_state_of_the_caller_alone(blur: Blur, tmp_path: Path) -> None:
    blur.save_pretrained(tmp_path)
    before = torch.get_rng_state()
    Blur.from_pretrained(tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_tensors_that_share_memory_can_be_saved(tmp_path: Path) -> None:
    module = Blur(BlurConfig(levels=(Level(width=3),)))
    module.norm.weight = module.norm.bias
    module.save_pretrained(tmp_path)
    assert torch.equal(Blur.from_pretrained(tmp_path).norm.weight, module.norm.bias)


def test_an_interrupted_save_leaves_the_old_file_and_no_rest(blur: Blur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blur.save_pretrained(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def break_off(descriptor: int) -> None:
        raise OSError(28, "disk full")

    monkeypatch.setattr("os.fsync", break_off)
    with pytest.raises(OSError, match="disk full"):
        blur.save_pretrained(tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def rewrite(folder: Path, **changes: Tensor | None) -> None:
    path = folder / "model.safetensors"
    state = {**load_file(path), **{name.replace("__", "."): tensor for name, tensor in changes.items()}}
    save_file({name: tensor for name, tensor in state.items() if tensor is not None}, path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"conv__bias": None}, r"does not fit Blur: missing: conv\.bias;"),
        ({"extra__gain": torch.zeros(1)}, r"extra: extra\.gain;"),
        ({"conv__bias": torch.zeros(5)}, r"wrong shape: conv\.bias \(5,\) instead of \(4,\)"),
        ({"conv__bias": torch.tensor([0.0, 1.0, torch.nan, 2.0])}, r"NaN or infinite values in conv\.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused_by_name(blur: Blur, tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    blur.save_pretrained(tmp_path)
    rewrite(tmp_path, **changes)
    with pytest.raises(WeightsError, match=message):
        Blur.from_pretrained(tmp_path)


def test_weights_that_do_not_fit_leave_the_module_untouched(blur: Blur) -> None:
    before = {name: tensor.clone() for name, tensor in blur.state_dict().items()}
    with pytest.raises(WeightsError, match="missing"):
        hub.load_strictly(blur, {"conv.bias": torch.zeros(4)}, source="a test")
    assert all(torch.equal(tensor, before[name]) for name, tensor in blur.state_dict().items())


class _Trap:
    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('unpickled')",)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_posing_as_weights_is_refused_unopened(blur: Blur, tmp_path: Path, *, zipped: bool) -> None:
    blur.save_pretrained(tmp_path)
    torch.save(_Trap(), tmp_path / "model.safetensors", _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsError, match=r"is not a safetensors file \(a (zip archive|Python pickle).*refuse to unpickle"):
        Blur.from_pretrained(tmp_path)


def test_every_truncation_of_a_weights_file_is_a_clear_error(blur: Blur, tmp_path: Path) -> None:
    blur.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    whole = path.read_bytes()
    for length in (0, 1, 8, 9, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError, match=r"truncated or damaged|not a safetensors file"):
            Blur.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"class": "Other"}, "describes a Other; expected a Blur"),
        ({"format_version": 2}, "format_version 2; this version of pathorestore reads 1"),
        ({"note": "x"}, "expected exactly the keys format_version, class, config"),
        ({"config": {}}, r"config\.json: config does not fit BlurConfig: missing levels"),
    ],
)
def test_a_config_file_that_does_not_fit_is_refused(blur: Blur, tmp_path: Path, change: dict[str, Any], message: str) -> None:
    blur.save_pretrained(tmp_path)
    edit_json(tmp_path / "config.json", **change)
    with pytest.raises(ConfigError, match=message):
        Blur.from_pretrained(tmp_path)


def test_a_folder_of_another_class_is_refused(blur: Blur, tmp_path: Path) -> None:
    blur.save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match="describes a Blur; expected a Sharpen: load it with Blur"):
        Sharpen.from_pretrained(tmp_path)


@pytest.mark.parametrize("text", ["", "{", "[]", "\xff"])
def test_a_config_file_that_is_not_an_object_is_refused(blur: Blur, tmp_path: Path, text: str) -> None:
    blur.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"config\.json (is not JSON|holds)"):
        Blur.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_a_missing_file_is_named(blur: Blur, tmp_path: Path, name: str) -> None:
    blur.save_pretrained(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(WeightsError, match=name):
        Blur.from_pretrained(tmp_path)


def test_a_place_that_is_neither_folder_nor_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is no folder"):
        Blur.from_pretrained(tmp_path / "nothing" / "here")


def test_a_revision_of_a_local_folder_is_refused(blur: Blur, tmp_path: Path) -> None:
    blur.save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="local folder, which has no revision"):
        Blur.from_pretrained(tmp_path, revision="v1")


@pytest.mark.parametrize("revision", [None, "", "main", "HEAD"])
def test_a_repository_needs_a_pinned_revision(revision: str | None) -> None:
    with pytest.raises(WeightsError, match="needs a pinned revision"):
        Blur.from_pretrained("someone/blur", revision=revision)


def test_a_repository_is_read_at_its_revision_without_foreign_files(blur: Blur, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blur.save_pretrained(tmp_path)
    asked: dict[str, Any] = {}

    def snapshot_download(repo_id: str, **options: object) -> str:
        asked.update(options, repo_id=repo_id)
        return str(tmp_path)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert Blur.from_pretrained("someone/blur", revision="0a1b2c3").config == blur.config
    assert (asked["repo_id"], asked["revision"]) == ("someone/blur", "0a1b2c3")
    assert not any("bin" in pattern or pattern == "*" for pattern in asked["allow_patterns"])


def test_an_upload_sends_the_saved_files_and_returns_the_commit(blur: Blur, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: dict[str, Any] = {}

    class FakeApi:
        def __init__(self, token: str | None) -> None:
            calls["token"] = token

        def create_repo(self, repo_id: str, **options: object) -> None:
            calls["create"] = (repo_id, options)

        def upload_folder(self, *, repo_id: str, folder_path: str, **options: object) -> Any:
            calls["files"] = sorted(path.name for path in Path(folder_path).iterdir())
            calls["config"] = json.loads((Path(folder_path) / "config.json").read_text())
            return type("Commit", (), {"oid": "abc123"})()

    monkeypatch.setattr("huggingface_hub.HfApi", FakeApi)
    assert blur.push_to_hub("someone/blur", token="t") == "abc123"
    assert calls["create"] == ("someone/blur", {"private": True, "exist_ok": True})
    assert calls["token"] == "t"
    assert calls["files"] == ["README.md", "config.json", "model.safetensors"]
    assert decode(BlurConfig, calls["config"]["config"]) == blur.config


def test_the_weight_hash_follows_bytes_and_names_but_not_other_files(blur: Blur, tmp_path: Path) -> None:
    save_parts(tmp_path, {"a": blur, "b": blur}, system="Pair")
    first = weights_sha256(tmp_path)
    (tmp_path / "README.md").write_text("another card")
    assert weights_sha256(tmp_path) == first
    (tmp_path / "b").rename(tmp_path / "c")
    renamed = weights_sha256(tmp_path)
    rewrite(tmp_path / "a", conv__bias=torch.ones(4))
    assert len({first, renamed, weights_sha256(tmp_path)}) == 3
    assert len(first) == 64


def test_a_folder_without_weights_has_no_hash(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="holds no safetensors file"):
        weights_sha256(tmp_path)


def test_a_system_comes_back_part_by_part(blur: Blur, tmp_path: Path) -> None:
    sharpen = Sharpen(BlurConfig(gate="mul"))
    save_parts(tmp_path, {"coarse": blur, "fine": sharpen}, system="Pair", dtype=torch.float16)
    parts = load_parts(tmp_path, {"coarse": Blur, "fine": Sharpen, "absent": Blur}, system="Pair")
    assert {name: type(part) for name, part in parts.items()} == {"coarse": Blur, "fine": Sharpen}
    assert parts["fine"].config.gate == "mul"
    assert torch.equal(parts["coarse"].conv.weight, blur.conv.weight.half().float())


def test_the_settings_of_a_system_come_back_and_are_as_strict_as_a_config(blur: Blur, tmp_path: Path) -> None:
    save_parts(tmp_path, {"coarse": blur}, system="Pair", settings=Level(width=3, scale=0.25))
    assert load_settings(tmp_path, Level, system="Pair") == Level(width=3, scale=0.25)
    edit_json(tmp_path / "system.json", settings={"width": 3})
    with pytest.raises(ConfigError, match=r"system\.json: settings does not fit Level: missing scale"):
        load_settings(tmp_path, Level, system="Pair")
    save_parts(tmp_path, {"coarse": blur}, system="Pair")
    with pytest.raises(ConfigError, match="settings is None"):
        load_settings(tmp_path, Level, system="Pair")


@pytest.mark.parametrize(
    ("classes", "system", "error"),
    [
        ({"coarse": Blur}, "Other", "describes a Pair; expected a Other"),
        ({"fine": Blur}, "Pair", "a Pair knows fine"),
        ({"coarse": Sharpen}, "Pair", "describes a Blur; expected a Sharpen"),
    ],
)
def test_a_system_of_other_parts_is_refused(
    blur: Blur, tmp_path: Path, classes: dict[str, type[Pretrained]], system: str, error: str
) -> None:
    save_parts(tmp_path, {"coarse": blur}, system="Pair")
    with pytest.raises(ConfigError, match=error):
        load_parts(tmp_path, classes, system=system)


def test_a_system_whose_saving_broke_off_does_not_load(blur: Blur, tmp_path: Path) -> None:
    save_parts(tmp_path, {"coarse": blur}, system="Pair")
    (tmp_path / "system.json").unlink()
    with pytest.raises(WeightsError, match=r"holds no system\.json"):
        load_parts(tmp_path, {"coarse": Blur}, system="Pair")


def test_parts_of_an_older_system_are_not_left_among_the_new(blur: Blur, tmp_path: Path) -> None:
    save_parts(tmp_path, {"coarse": blur, "fine": blur}, system="Pair")
    with pytest.raises(WeightsError, match="no part of this Pair: fine"):
        save_parts(tmp_path, {"coarse": blur}, system="Pair")


def test_a_card_says_what_is_known_and_what_is_not(blur: Blur, tmp_path: Path) -> None:
    card = ModelCard(
        title="blur: a test",
        license="cc-by-4.0",
        data="three | tiles",
        seed="7",
        metrics={"PSNR | val": 30.12345},
        references=("Doe 2020.",),
    )
    blur.save_pretrained(tmp_path, card=card)
    text = (tmp_path / "README.md").read_text()
    _, front, body = text.split("---\n", 2)
    assert yaml.safe_load(front) == {
        "license": "cc-by-4.0",
        "library_name": "pathorestore",
        "pipeline_tag": "image-to-image",
        "tags": ["pathology", "microscopy", "image-restoration"],
    }
    for expected in (
        "# blur: a test",
        "Not for primary diagnosis",
        "three | tiles",
        r"| PSNR \| val | 30.12 |",
        "Doe 2020.",
        "| Blur | 120 |",
    ):
        assert expected in body
    assert "* **command**: not recorded" in body


def test_a_card_without_title_is_refused() -> None:
    with pytest.raises(ValueError, match="title is empty"):
        ModelCard(title=" ")


def of_iste() -> dict[str, Any]:
    return load_parts("iste-tiny", {"encoder": SwinIR, "decoder": TextureDecoder}, system="ISTE")


def size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*.safetensors"))


def test_what_is_shared_with_embedded_weights_is_stored_once_and_comes_back(tmp_path):
    parts = of_iste()
    name, parameter = next(iter(parts["decoder"].named_parameters()))
    with torch.no_grad():
        parameter.mul_(-1)
    save_parts(tmp_path / "whole", parts, system="ISTE", dtype=torch.float16)
    save_parts(tmp_path / "beside", parts, system="ISTE", dtype=torch.float16, beside="iste-tiny")
    assert list(load_file(tmp_path / "beside" / "decoder" / "model.safetensors")) == [name]
    assert load_file(tmp_path / "beside" / "encoder" / "model.safetensors") == {}
    assert size(tmp_path / "beside") < 0.15 * size(tmp_path / "whole")
    for part in parts:
        cls = type(parts[part])
        one, other = (cls.from_pretrained(tmp_path / kind / part).state_dict() for kind in ("whole", "beside"))
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one)
    # in another precision nothing is shared, and the file stands alone
    save_parts(tmp_path / "single", parts, system="ISTE", beside="iste-tiny")
    save_parts(tmp_path / "plain", parts, system="ISTE")
    assert weights_sha256(tmp_path / "single") == weights_sha256(tmp_path / "plain")


def test_the_same_weights_have_the_same_bytes_every_time(tmp_path):
    hashes = set()
    for _ in range(8):
        save_parts(tmp_path / "beside", of_iste(), system="ISTE", dtype=torch.float16, beside="iste-tiny")
        hashes.add(weights_sha256(tmp_path / "beside"))
    assert len(hashes) == 1


def told_beside(tmp_path):
    """A file that shares all its tensors, and what it says of that."""
    save_parts(tmp_path / "beside", of_iste(), system="ISTE", dtype=torch.float16, beside="iste-tiny")
    file = tmp_path / "beside" / "decoder" / "model.safetensors"
    with safe_open(file, framework="pt") as opened:
        ((key, told),) = opened.metadata().items()
    return file, key, json.loads(told)


@pytest.mark.parametrize(
    "changes",
    [{"sha256": "0" * 64}, {"part": "iste-tiny/../iste-tiny/decoder"}, {"part": "another/decoder"}, {"part": "iste-tiny/x"}],
)
def test_weights_that_share_with_what_is_not_here_are_refused(tmp_path, changes):
    file, key, told = told_beside(tmp_path)
    save_file({}, file, metadata={key: json.dumps(told | changes)})
    with pytest.raises(WeightsError, match="another version of pathorestore"):
        TextureDecoder.from_pretrained(file.parent)


@pytest.mark.parametrize("damaged", ["", "[]", "{}", '{"part": "a/b", "sha256": "x", "tensors": 3}'])
def test_weights_that_do_not_say_what_they_share_are_damaged(tmp_path, damaged):
    file, key, _ = told_beside(tmp_path)
    save_file({}, file, metadata={key: damaged})
    with pytest.raises(WeightsError, match="is damaged: it does not say what it shares"):
        TextureDecoder.from_pretrained(file.parent)


def test_tensors_that_were_left_out_of_a_list_are_missed(tmp_path):
    file, key, told = told_beside(tmp_path)
    first, *rest = told["tensors"]
    save_file({}, file, metadata={key: json.dumps(told | {"tensors": rest})})
    with pytest.raises(WeightsError, match=f"missing: {first}"):
        TextureDecoder.from_pretrained(file.parent)


def test_sharing_needs_an_embedded_system(tmp_path):
    with pytest.raises(WeightsError, match=r"beside='nothing' is not embedded; expected one of .*iste-tiny"):
        save_parts(tmp_path / "x", {}, system="ISTE", beside="nothing")
