"""CLIP-IQA: how good does an image look, as the nearer of two texts, with or without a learned prompt.

Zero-shot: Wang, Chan and Loy, AAAI 2023, the pair "Good photo." and "Bad photo."; fine-tuned (CLIP-IQA+): learned context vectors around
the class words. CLIP is transformers' own: the user's copy in a folder, whose weights are never copied, or a small one of ours.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from pathorestore._diffusers import load_transformers
from pathorestore.hub import Pretrained, WeightsError, locate, weights_sha256
from pathorestore.metrics.availability import Availability
from pathorestore.models.encoders import CLIP

Kind = Literal["box", "gauss"]
PAIR = ("Good photo.", "Bad photo.")
_NEEDS = 'CLIP-IQA needs transformers; pip install "pathorestore[clip]"'
_BYTE_START, _BYTE_END = 256, 257
_AT_ONCE = 64  # windows; more cost memory and save no time


@dataclass(frozen=True, kw_only=True)
class QualityPromptConfig:
    """A pair of prompts. width: of CLIP's token embedding. context: learned vectors; 0 is the plain pair of zero-shot.

    good, bad: token ids of the class words. start, end: ids around a text. clip_sha256: of the weights in the folder of the CLIP that these
    ids and vectors belong to; empty for a CLIP that is saved beside them.
    """

    width: int
    context: int = 16
    good: tuple[int, ...] = tuple(PAIR[0].encode())
    bad: tuple[int, ...] = tuple(PAIR[1].encode())
    start: int = _BYTE_START
    end: int = _BYTE_END
    clip_sha256: str = ""

    def __post_init__(self) -> None:
        if self.width < 1 or self.context < 0 or not self.good or not self.bad:
            raise ValueError(f"width must be at least 1, context at least 0, and both texts hold a token; got {self}")
        if self.end in (*self.good, *self.bad):
            raise ValueError(f"the class words hold the end token {self.end}; give the ids of the words alone")

    @classmethod
    def tiny(cls) -> "QualityPromptConfig":
        """For `SmallClipConfig.tiny`: texts as bytes."""
        return cls(width=32)


class QualityPrompt(nn.Module, Pretrained):
    """The texts "good" and "bad" with shared context vectors, half of them before the class words, half behind; N(0, 0.02^2) at first."""

    def __init__(self, config: QualityPromptConfig):
        super().__init__()
        self.config = config
        self.context = nn.Parameter(0.02 * torch.randn(config.context, config.width))
        rows = [self._row(words) for words in (config.good, config.bad)]
        longest = max(map(len, rows))
        # behind the end of a text the causal mask hides whatever stands there
        rows = [row + [(config.end, -1)] * (longest - len(row)) for row in rows]
        self.ids: Tensor
        self.slots: Tensor
        self.register_buffer("ids", torch.tensor([[number for number, _ in row] for row in rows]), persistent=False)
        self.register_buffer("slots", torch.tensor([[slot for _, slot in row] for row in rows]), persistent=False)

    def forward(self, model: nn.Module) -> Tensor:
        """CLIP's projected text features of both texts, 2 d, not normalised."""

        def with_context(_module: nn.Module, _inputs: object, embedded: Tensor) -> Tensor:
            learned = self.context[self.slots.clamp_min(0)].to(embedded.dtype)
            return torch.where((self.slots >= 0)[..., None], learned, embedded)

        if not self.config.context:
            return _pooled(cast(Any, model).get_text_features(input_ids=self.ids))
        # all else of the text tower stays transformers' own, whatever its version
        with cast(Any, model).text_model.embeddings.token_embedding.register_forward_hook(with_context):
            return _pooled(cast(Any, model).get_text_features(input_ids=self.ids))

    def _row(self, words: tuple[int, ...]) -> list[tuple[int, int]]:
        """Pairs (token id, number of the context vector that takes its place or -1)."""
        config, half = self.config, self.config.context // 2
        learned = [(words[0], slot) for slot in range(config.context)]
        return [(config.start, -1), *learned[:half], *((word, -1) for word in words), *learned[half:], (config.end, -1)]


@dataclass(frozen=True, kw_only=True)
class SmallClipConfig:
    """Sizes of a `SmallClip`. window_px: what is looked at at once; patch_px: of the vision transformer. positions: tokens of a text."""

    window_px: int = 96
    patch_px: int = 8
    width: int = 64
    layers: int = 4
    heads: int = 4
    text_width: int = 32
    text_layers: int = 2
    text_heads: int = 2
    positions: int = 32
    dim: int = 32

    def __post_init__(self) -> None:
        if self.window_px % self.patch_px or self.width % self.heads or self.text_width % self.text_heads:
            raise ValueError(f"patches must fill the window, and heads the widths; got {self}")

    @classmethod
    def tiny(cls) -> "SmallClipConfig":
        """0.26 M parameters."""
        return cls()


class SmallClip(nn.Module, Pretrained):
    """transformers' CLIPModel at a small size and with random weights, to be trained for the one purpose; texts are bytes."""

    clip_sha256 = ""

    def __init__(self, config: SmallClipConfig):
        super().__init__()
        self.config = config
        text = {
            "hidden_size": config.text_width,
            "intermediate_size": 4 * config.text_width,
            "num_hidden_layers": config.text_layers,
            "num_attention_heads": config.text_heads,
            "max_position_embeddings": config.positions,
            "projection_dim": config.dim,
            "vocab_size": _BYTE_END + 1,
            "bos_token_id": _BYTE_START,
            "eos_token_id": _BYTE_END,
            "pad_token_id": _BYTE_END,
        }
        vision = {
            "hidden_size": config.width,
            "intermediate_size": 4 * config.width,
            "num_hidden_layers": config.layers,
            "num_attention_heads": config.heads,
            "image_size": config.window_px,
            "patch_size": config.patch_px,
            "projection_dim": config.dim,
        }
        transformers = load_transformers(_NEEDS)
        sizes = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=config.dim)
        self.model = transformers.CLIPModel(sizes)

    def prompt_config(self, *, context: int = 16) -> QualityPromptConfig:
        """Prompts for this CLIP."""
        return QualityPromptConfig(width=self.config.text_width, context=context)


class FolderClip(nn.Module):
    """A published CLIP out of a local folder, frozen: config.json, safetensors and the tokenizer's files, as transformers saves them.

    Vision transformers only. Raises ImportError without transformers, WeightsError for a folder that holds no such CLIP; never downloads.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        super().__init__()
        self.folder = Path(folder)
        self.clip_sha256 = weights_sha256(self.folder)
        transformers = load_transformers(_NEEDS)
        try:
            self.model = transformers.CLIPModel.from_pretrained(self.folder, local_files_only=True, use_safetensors=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise WeightsError(f"{self.folder} holds no CLIP that transformers can read ({_line(error)}); save one there") from error
        self.model.eval().requires_grad_(False)

    def prompt_config(self, *, context: int = 16) -> QualityPromptConfig:
        """Prompts for this CLIP; its tokenizer is asked here, and never again. Raises WeightsError where the folder has none."""
        if not any((self.folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            # transformers would make an empty one
            raise WeightsError(f"{self.folder} holds no tokenizer; save CLIP's own beside its weights")
        tokenizer = load_transformers(_NEEDS).AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
        rows = [tokenizer(text)["input_ids"] for text in PAIR]
        known = self.model.config.text_config.vocab_size
        if max(map(max, rows)) >= known or min(map(len, rows)) < 3:
            raise WeightsError(
                f"{self.folder}: the tokenizer gives {rows}, the CLIP knows ids below {known}; save CLIP's own tokenizer there"
            )
        return QualityPromptConfig(
            width=self.model.config.text_config.hidden_size,
            context=context,
            good=tuple(rows[0][1:-1]),
            bad=tuple(rows[1][1:-1]),
            start=rows[0][0],
            end=rows[0][-1],
            clip_sha256=self.clip_sha256,
        )


class ClipIqa(nn.Module):
    """A score b in (0, 1) for images b 3 h w in [0, 1], higher is better: softmax(e^tau [cos(f, t_good), cos(f, t_bad)])[0].

    Images are never resized, as that would change their sharpness: the mean is taken over a grid of windows of CLIP's own size in the
    middle of the image. A side shorter than a window is cut to whole patches, and the position embedding interpolated.
    """

    higher_is_better = True

    def __init__(self, clip: SmallClip | FolderClip, prompt: QualityPrompt):
        super().__init__()
        if prompt.config.clip_sha256 != clip.clip_sha256:
            raise ValueError(
                f"the prompt belongs to the CLIP with sha256 {prompt.config.clip_sha256 or 'that is saved beside it'}, this one has "
                f"{clip.clip_sha256 or 'none'}; load the CLIP that it was trained with"
            )
        self.clip, self.prompt = clip, prompt
        vision = clip.model.config.vision_config
        self.window_px, self.patch_px = int(vision.image_size), int(vision.patch_size)
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(CLIP[0])[:, None, None], persistent=False)
        self.register_buffer("std", torch.tensor(CLIP[1])[:, None, None], persistent=False)

    @classmethod
    def create(cls, clip: SmallClip | FolderClip, *, context: int = 16) -> "ClipIqa":
        """With a fresh prompt; context=0 is the zero-shot score."""
        return cls(clip, QualityPrompt(clip.prompt_config(context=context)))

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], *, clip_folder: str | os.PathLike[str] | None = None) -> "ClipIqa":
        """Out of the folder that `save_pretrained` or `pathorestore export` wrote, frozen. clip_folder: of a CLIP that is not saved there.

        Raises WeightsError for a missing part and for another CLIP than the prompt was trained with.
        """
        home = locate(folder)
        prompt = QualityPrompt.from_pretrained(home / "prompt")
        if not prompt.config.clip_sha256:
            return cls(SmallClip.from_pretrained(home / "clip"), prompt).eval().requires_grad_(False)
        if clip_folder is None:
            raise WeightsError(
                f"{home} holds a prompt for a CLIP of its user's; name that CLIP's folder, sha256 {prompt.config.clip_sha256}"
            )
        return cls(FolderClip(clip_folder), prompt).eval().requires_grad_(False)

    def save_pretrained(self, folder: str | os.PathLike[str], *, dtype: torch.dtype | None = None) -> None:
        """Write prompt/ and, unless it is a user's own, clip/; each as `Pretrained.save_pretrained` does."""
        self.prompt.save_pretrained(Path(folder) / "prompt", dtype=dtype)
        if isinstance(self.clip, SmallClip):
            self.clip.save_pretrained(Path(folder) / "clip", dtype=dtype)

    def forward(self, image: Tensor) -> Tensor:
        windows = self.windows(image)
        text = F.normalize(self.prompt(self.clip.model), dim=1)
        seen = torch.cat([self._features(part) for part in torch.tensor_split(windows, tuple(range(_AT_ONCE, len(windows), _AT_ONCE)))])
        logits = self.clip.model.logit_scale.exp() * F.normalize(seen, dim=1) @ text.T
        return logits.softmax(dim=1)[:, 0].reshape(len(image), -1).mean(dim=1)

    def windows(self, image: Tensor) -> Tensor:
        """The windows (b n) 3 s s that are looked at, row by row. Raises ValueError for an image smaller than a patch."""
        sides, counts = [], []
        for length in image.shape[-2:]:
            sides.append(min(self.window_px, length // self.patch_px * self.patch_px))
            counts.append(length // sides[-1] if sides[-1] else 0)
        if image.ndim != 4 or image.shape[1] != 3 or 0 in counts:
            raise ValueError(f"got images {tuple(image.shape)}; expected b 3 h w of at least {self.patch_px} px a side")
        top, left = ((length - side * count) // 2 for length, side, count in zip(image.shape[-2:], sides, counts, strict=True))
        middle = image[..., top : top + sides[0] * counts[0], left : left + sides[1] * counts[1]]
        return rearrange(middle, "b c (rows h) (columns w) -> (b rows columns) c h w", h=sides[0], w=sides[1])

    def _features(self, windows: Tensor) -> Tensor:
        pixels = ((windows - self.mean) / self.std).to(self.clip.model.dtype)
        return _pooled(self.clip.model.get_image_features(pixel_values=pixels, interpolate_pos_encoding=True))


def clip_iqa_available(
    kind: Kind, *, folder: str | os.PathLike[str] | None = None, clip_folder: str | os.PathLike[str] | None = None
) -> Availability:
    """Whether `load_clip_iqa` with the same arguments will load; the reason names what is missing."""
    try:
        load_clip_iqa(kind, folder=folder, clip_folder=clip_folder)
    except (ImportError, ValueError, OSError) as error:
        return Availability(False, str(error))
    return Availability(True)


def load_clip_iqa(
    kind: Kind, *, folder: str | os.PathLike[str] | None = None, clip_folder: str | os.PathLike[str] | None = None
) -> ClipIqa:
    """The head trained on "box" or "gauss" blur, frozen: images b 3 h w in [0, 1] -> scores b in (0, 1), higher is sharper.

    folder: holds the parts of a head; None takes the embedded clip-iqa-tiny. clip_folder: of the CLIP that a head of yours belongs to.
    Raises ImportError without transformers, and ValueError for weights that are missing or do not fit.
    """
    if kind not in ("box", "gauss"):
        raise ValueError(f"kind must be 'box' or 'gauss', got {kind!r}")
    home = Path(folder) if folder is not None else Path(__file__).parent.parent / "weights" / "clip-iqa-tiny" / kind
    return ClipIqa.from_pretrained(home, clip_folder=clip_folder)


def _pooled(features: Any) -> Tensor:
    """Projected features, which transformers hands out bare up to version 4 and within an output from version 5 on."""
    return features if isinstance(features, Tensor) else features.pooler_output


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
