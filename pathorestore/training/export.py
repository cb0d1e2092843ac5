"""From a training checkpoint to weights that inference and the next stage load: rebuilt part by part, unpickling nothing."""

import json
import pickle
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, cast, get_type_hints

import torch
from torch import Tensor, nn

from pathorestore.atomic import make_folder, write_atomic
from pathorestore.hub import Pretrained, load_strictly
from pathorestore.hub_codec import decode, encode
from pathorestore.models.autoencoder import LatentAutoencoder
from pathorestore.models.classifier import Classifier
from pathorestore.models.clip_iqa import QualityPrompt, SmallClip
from pathorestore.models.contrastive import ContrastiveEncoder
from pathorestore.models.controlled import ControlNet, LatentUNet
from pathorestore.models.defocus import DefocusEstimator
from pathorestore.models.encoders import TinyEncoder
from pathorestore.models.implicit_decoders import LIIFDecoder, LTEDecoder
from pathorestore.models.iste import Search, TextureDecoder
from pathorestore.models.optics_prompt import NoOptics, OpticsPrompt
from pathorestore.models.pdiffusion import PDiffusion
from pathorestore.models.pformer import PFormer, Restormer
from pathorestore.models.prompted import PromptedRestormer, PromptedSwinIR, PromptFusion
from pathorestore.models.prompts import EdgePrompt, PathologyPrompt, Prompter
from pathorestore.models.swinir import SwinIR
from pathorestore.models.text import ByteTextEncoder, TextEncoder
from pathorestore.pipelines.controlled import ControlledSampler, SamplingSettings
from pathorestore.pipelines.histo_diffusion import HistoDiffusion
from pathorestore.pipelines.iste import ISTE
from pathorestore.pipelines.lpfm import LPFM
from pathorestore.pipelines.mop import MoPRestorer
from pathorestore.pipelines.refine import DiffusionRefiner, FineSettings, KeepCoarse, Refiner
from pathorestore.training.card import training_card
from pathorestore.training.record import RECORD_NAME
from pathorestore.version import __version__

KEY = "pathorestore"  # where a checkpoint keeps what `describe` says
_FORMAT = 1
_CLASSES: dict[str, type[Pretrained]] = {
    "TinyEncoder": TinyEncoder,
    "ContrastiveEncoder": ContrastiveEncoder,
    "DefocusEstimator": DefocusEstimator,
    "PathologyPrompt": PathologyPrompt,
    "EdgePrompt": EdgePrompt,
    "OpticsPrompt": OpticsPrompt,
    "PFormer": PFormer,
    "Restormer": Restormer,
    "PDiffusion": PDiffusion,
    "Classifier": Classifier,
    "SmallClip": SmallClip,
    "QualityPrompt": QualityPrompt,
    "SwinIR": SwinIR,
    "PromptedSwinIR": PromptedSwinIR,
    "PromptedRestormer": PromptedRestormer,
    "PromptFusion": PromptFusion,
    "ByteTextEncoder": ByteTextEncoder,
    "TextureDecoder": TextureDecoder,
    "LIIFDecoder": LIIFDecoder,
    "LTEDecoder": LTEDecoder,
    "LatentAutoencoder": LatentAutoencoder,
    "LatentUNet": LatentUNet,
    "ControlNet": ControlNet,
}
_DTYPES = {"fp32": torch.float32, "fp16": torch.float16}
# a restorer, but for the encoder: a foundation model's weights are no part of a checkpoint's stage
_SYSTEM = {"defocus", "pathology", "edge", "coarse"}
_UPSCALER = {"encoder", "decoder"}
_PROMPTED = {"fusion", "coarse", "autoencoder", "unet", "control"}
_GENERATIVE_UPSCALER = {"restoration", "autoencoder", "unet", "control"}
_LEAF_FILES, _TOP_FILES = {"README.md", "config.json", "model.safetensors"}, {"README.md", "system.json", "training.yaml"}


class DescribedStage(Protocol):
    """What `describe` asks of a stage, besides being a torch module."""

    trained: tuple[str, ...]

    def parts(self) -> dict[str, Pretrained]:
        """All parts of the system that it holds, by name."""
        ...

    def settings(self) -> FineSettings | Search | SamplingSettings | None:
        """What the system is beside its parts, if anything."""
        ...


@dataclass(frozen=True, kw_only=True)
class Exported:
    """What `export` wrote. kind: "system" loads as a `MoPRestorer` or an `ISTE`, "parts" is a folder of them. averaged: are the weights?"""

    folder: Path
    kind: Literal["system", "parts"]
    parts: tuple[str, ...]
    averaged: bool


def describe(stage: DescribedStage) -> dict[str, Any]:
    """What a checkpoint must say, as plain JSON values, for `export` to rebuild the stage's parts: classes, configs, names of tensors.

    A stage puts it under checkpoint["pathorestore"] in `on_save_checkpoint`. Raises ValueError for a part that is no module of the stage.
    """
    names = {id(module): name for name, module in cast(nn.Module, stage).named_modules()}
    parts = {}
    for name, part in stage.parts().items():
        if id(part) not in names:
            raise ValueError(f"part {name!r} is no submodule of {type(stage).__name__}, so its weights are not in the checkpoint")
        parts[name] = {"class": type(part).__name__, "config": encode(part.config), "prefix": f"{names[id(part)]}."}
    return {
        "format_version": _FORMAT,
        "version": __version__,
        "stage": type(stage).__name__,
        "trained": list(stage.trained),
        "parts": parts,
        "settings": encode(stage.settings(), where="settings"),
    }


def export(
    checkpoint: Path, to: Path, *, dtype: Literal["fp32", "fp16"] = "fp32", average: bool = True, overwrite: bool = False
) -> Exported:
    """Write the weights of a training checkpoint to the folder `to`, with a model card and the run's configuration as training.yaml.

    A checkpoint that holds a whole restorer gives a folder that `MoPRestorer.from_pretrained` and `pathorestore restore --model` take,
    frozen parts included, one of an upscaler what `ISTE.from_pretrained` and `pathorestore upscale --model` take; any other gives one
    sub-folder per trained part. All serve the next stage as its folder of parts.
    dtype: of the stored weights. average: take the moving average where the checkpoint has one. overwrite: replace what was exported to
    `to` before; the folder appears whole or not at all.
    Raises ValueError, in one line, for a file that is no whole checkpoint of a stage, a target that exists or weights that do not fit.
    """
    if dtype not in _DTYPES:
        raise ValueError(f"dtype must be {' or '.join(_DTYPES)}, got {dtype!r}")
    checkpoint, to = Path(checkpoint), Path(to).resolve()
    _check_target(to, overwrite=overwrite)
    stored = _read(checkpoint)
    content = _Content(checkpoint, stored, average=average)
    record = _record(checkpoint, stored)
    config = _config_file(checkpoint, record)
    notes = [*content.notes, *(["The whole configuration is in training.yaml."] if config else [])]
    card = training_card(record, title=to.name, trained=content.trained, averaged=content.averaged, notes=notes)
    with _appearing(to) as folder:
        if content.is_system:
            content.system().save_pretrained(folder, card=card, dtype=_DTYPES[dtype])
        else:
            for name in content.trained:
                content.part(name).save_pretrained(folder / name, card=card, dtype=_DTYPES[dtype])
        if config:
            write_atomic(folder / "training.yaml", config.read_bytes())
    parts = tuple(content.described["parts"]) if content.is_system else content.trained
    return Exported(folder=to, kind="system" if content.is_system else "parts", parts=parts, averaged=content.averaged)


class _Content:
    """The parts that a checkpoint holds, rebuilt as they are asked for."""

    def __init__(self, checkpoint: Path, stored: Mapping[str, Any], *, average: bool):
        self.source = checkpoint
        self.described = _description(stored, checkpoint)
        kept = stored.get("callbacks", {}).get("ExponentialAverage", {}).get("average", {}) if average else {}
        foreign = [name for name in kept if name not in stored["state_dict"]]
        if foreign:
            raise ValueError(f"{checkpoint} averages weights that it does not hold, such as {foreign[0]}; expected those of one stage")
        self.averaged = bool(kept)
        self._state: dict[str, Tensor] = {**stored["state_dict"], **kept}

    @property
    def trained(self) -> tuple[str, ...]:
        """Names of the parts that the stage trains."""
        return tuple(self.described["trained"])

    @property
    def is_system(self) -> bool:
        """Whether the parts make up a system; a plain Restormer, trained for comparison, is none."""
        return self._is_restorer or self._is_upscaler or self._is_generative_upscaler or self._is_prompted

    @property
    def _is_restorer(self) -> bool:
        parts = self.described["parts"]
        return set(parts) >= _SYSTEM and parts["coarse"]["class"] == "PFormer"

    @property
    def _is_upscaler(self) -> bool:
        return set(self.described["parts"]) == _UPSCALER

    @property
    def _is_generative_upscaler(self) -> bool:
        return set(self.described["parts"]) == _GENERATIVE_UPSCALER

    @property
    def _is_prompted(self) -> bool:
        return set(self.described["parts"]) >= _PROMPTED

    @property
    def notes(self) -> tuple[str, ...]:
        """What the model card should say besides."""
        if self._is_prompted and "text" not in self.described["parts"]:
            return ("Its text encoder is not part of these weights: pass the one it was trained with to from_pretrained as text=.",)
        if not self._is_restorer or "encoder" in self.described["parts"]:
            return ()
        return ("Its pathology encoder is not part of these weights: pass the one it was trained with to from_pretrained as encoder=.",)

    def part(self, name: str) -> Any:
        """A part by its name, with its weights, in evaluation mode."""
        entry = self.described["parts"][name]
        cls = _CLASSES.get(entry["class"])
        if cls is None:
            raise ValueError(
                f"{self.source} holds {name} as a {entry['class']}, which this version of pathorestore ({__version__}) cannot rebuild; "
                f"it was written by version {self.described['version']} and knows {', '.join(_CLASSES)}"
            )
        config = decode(get_type_hints(cls.__init__)["config"], entry["config"], where=f"{self.source}: {name}")
        state = {key.removeprefix(entry["prefix"]): tensor for key, tensor in self._state.items() if key.startswith(entry["prefix"])}
        with torch.random.fork_rng(devices=[]):  # the initial values drawn here are overwritten below
            part = cast(Any, cls)(config)
        load_strictly(part, state, source=f"{self.source}: {name}")
        return part.eval()

    def system(self) -> MoPRestorer | ISTE | HistoDiffusion | LPFM:
        """The restorer or upscaler that the parts make up."""
        if self._is_prompted:
            sampling = decode(SamplingSettings, self.described["settings"], where=f"{self.source}: settings")
            parts = {name: self.part(name) for name in self.described["parts"]}
            text = None if "text" in parts else cast(TextEncoder, _HandedIn(parts["fusion"].config.text_dim))
            return LPFM.from_parts(parts, sampling, text=text).eval()
        if self._is_generative_upscaler:
            sampling = decode(SamplingSettings, self.described["settings"], where=f"{self.source}: settings")
            sampler = ControlledSampler(self.part("autoencoder"), self.part("unet"), self.part("control"), sampling)
            return HistoDiffusion(self.part("restoration"), sampler).eval()
        if self._is_upscaler:
            stored = self.described["settings"]
            search = None if stored is None else decode(Search, stored, where=f"{self.source}: settings")
            return ISTE(self.part("encoder"), self.part("decoder"), search=search).eval()
        names = self.described["parts"]
        pathology = self.part("pathology")
        encoder = self.part("encoder") if "encoder" in names else _HandedIn(pathology.config.encoder_dim)
        optics = self.part("optics") if "optics" in names else NoOptics()
        prompter = Prompter(encoder, self.part("defocus"), pathology, self.part("edge"), optics)
        fine: Refiner = KeepCoarse()
        if "fine" in names:
            settings = decode(FineSettings, self.described["settings"], where=f"{self.source}: settings")
            fine = DiffusionRefiner(self.part("fine"), settings)
        return MoPRestorer(prompter, self.part("coarse"), fine)


class _HandedIn(nn.Module):
    """The place of an encoder, of images or of text, whose weights are not saved."""

    def __init__(self, dim: int):
        super().__init__()
        self.dim = dim

    def forward(self, given: object) -> Any:
        raise NotImplementedError("this encoder is handed in when the system is loaded")


def _read(checkpoint: Path) -> dict[str, Any]:
    """The checkpoint's content. mmap: the optimiser's state, which is not looked at, is not read either."""
    if not checkpoint.is_file():
        kind = "a folder; name a checkpoint file in it" if checkpoint.is_dir() else "no file; expected a checkpoint"
        raise ValueError(f"{checkpoint} is {kind}, such as checkpoints/last.ckpt")
    try:
        stored = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError as error:
        raise ValueError(f"{checkpoint} is no checkpoint, or holds objects that only unpickling could restore, which is refused") from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        raise ValueError(
            f"{checkpoint} is no checkpoint, or a truncated or damaged one; expected a whole one, such as RUN/checkpoints/last.ckpt"
        ) from error
    if not isinstance(stored, dict) or KEY not in stored or "state_dict" not in stored:
        raise ValueError(f"{checkpoint} does not say which parts it holds; expected a checkpoint that pathorestore fit wrote")
    return stored


def _description(stored: Mapping[str, Any], checkpoint: Path) -> dict[str, Any]:
    described = stored[KEY]
    expected = {"format_version", "version", "stage", "trained", "parts", "settings"}
    if not isinstance(described, dict) or set(described) != expected or described["format_version"] != _FORMAT:
        raise ValueError(f"{checkpoint} describes its parts in a way that this version of pathorestore ({__version__}) does not know")
    missing = [name for name in described["trained"] if name not in described["parts"]]
    if missing:
        raise ValueError(f"{checkpoint} does not hold {', '.join(missing)}, which its {described['stage']} trains")
    return described


def _record(checkpoint: Path, stored: Mapping[str, Any]) -> dict[str, Any]:
    """What `TrainingRecord` noted up to the checkpoint, or up to the validation right after it, as the log folder has it."""
    record: dict[str, Any] = stored.get("callbacks", {}).get("TrainingRecord", {})
    file = checkpoint.parent.parent / record.get("logs", "") / RECORD_NAME
    try:
        later = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return record
    # the same keys and the same step: the same run, a little further on
    same = isinstance(later, dict) and later.keys() == record.keys() and later["steps"] == record["steps"]
    return later if same else record


def _config_file(checkpoint: Path, record: Mapping[str, Any]) -> Path | None:
    """The run's whole configuration: in its log folder, beside the checkpoint or one folder up."""
    run = checkpoint.parent.parent
    folders = [run / record["logs"]] if record.get("logs") else []
    places = [folder / name for folder in (*folders, checkpoint.parent, run) for name in ("training.yaml", "config.yaml")]
    # a configuration of something else may have the same name
    return next((place for place in places if place.is_file() and b"\ntrainer:" in b"\n" + place.read_bytes()), None)


def _check_target(to: Path, *, overwrite: bool) -> None:
    """Raise ValueError unless `to` is free, or may be replaced and holds nothing but what `export` writes."""
    if not to.exists() or (to.is_dir() and not any(to.iterdir())):
        return
    if not overwrite:
        raise ValueError(f"{to} exists; name another folder, or overwrite it (--overwrite)")
    others = [to.name] if not to.is_dir() else [item.name for item in to.iterdir() if not _is_ours(item)]
    if others:
        raise ValueError(
            f"{to} holds {', '.join(sorted(others)[:3])}, which export did not write; name another folder or empty it yourself"
        )


def _is_ours(item: Path) -> bool:
    if item.is_dir() and not item.is_symlink():
        return {file.name for file in item.iterdir()} <= _LEAF_FILES
    return item.name in _TOP_FILES


@contextmanager
def _appearing(to: Path) -> Iterator[Path]:
    """A temporary neighbour that takes the place of `to` once it is complete; on any failure, what stood there stays."""
    make_folder(to.parent)
    fresh, old = (to.parent / f".pathorestore-{uuid.uuid4().hex}.{kind}" for kind in ("part", "old"))
    fresh.mkdir()
    try:
        yield fresh
        if to.exists():
            to.rename(old)
        fresh.rename(to)
    finally:
        if not to.exists() and old.exists():
            old.rename(to)
        for leftover in (fresh, old):
            shutil.rmtree(leftover, ignore_errors=True)
