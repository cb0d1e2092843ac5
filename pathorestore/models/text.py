"""What turns prompts into vectors: a small transformer over bytes, trained with the system, or CLIP's text tower out of a local folder."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, Self, runtime_checkable

import torch
from torch import Tensor, nn

from pathorestore._diffusers import load_transformers
from pathorestore.hub import Pretrained, WeightsError

_PAD, _START, _END = 256, 257, 258
_NEEDS = 'prompts need transformers; pip install "pathorestore[diffusion]"'


class Text(NamedTuple):
    """Prompts as tokens b n d, as many for every prompt, and as one vector each, b d."""

    tokens: Tensor
    pooled: Tensor


@runtime_checkable
class TextEncoder(Protocol):
    """Any callable from prompts to `Text` of width `dim`."""

    dim: int

    def __call__(self, prompts: Sequence[str]) -> Text:
        """Encode a batch."""
        ...


@dataclass(frozen=True, kw_only=True)
class ByteTextConfig:
    """Sizes of a `ByteTextEncoder`. positions: tokens of every prompt, its bytes and two more; what is longer is cut."""

    width: int = 64
    layers: int = 2
    heads: int = 4
    positions: int = 192

    def __post_init__(self) -> None:
        if min(self.layers, self.heads) < 1 or self.positions < 3 or self.width % self.heads:
            raise ValueError(f"heads must divide the width, and there must be layers and 3 positions at least; got {self}")

    @classmethod
    def tiny(cls) -> Self:
        """0.13 M parameters."""
        return cls()

    @classmethod
    def base(cls) -> Self:
        """3.3 M parameters."""
        return cls(width=256, layers=4, heads=8)

    @classmethod
    def paper(cls) -> Self:
        """38 M parameters, as CLIP's smaller text tower; the published code takes that of Stable Diffusion, see `ClipTextEncoder`."""
        return cls(width=512, layers=12, heads=8)

    @classmethod
    def nano(cls) -> Self:
        """For tests."""
        return cls(width=16, layers=1, heads=2, positions=96)


class ByteTextEncoder(nn.Module, Pretrained):
    """A small transformer over UTF-8 bytes: no tokenizer, and no word is unknown. The state at the end of a prompt stands for all of it.

    Torch's own layers: the names of the tensors of transformers' CLIP change with its version.
    """

    def __init__(self, config: ByteTextConfig):
        super().__init__()
        self.config, self.dim = config, config.width
        self.bytes = nn.Embedding(_END + 1, config.width)
        self.places = nn.Parameter(0.02 * torch.randn(config.positions, config.width))
        layer = nn.TransformerEncoderLayer(
            config.width, config.heads, 4 * config.width, dropout=0.0, activation="gelu", batch_first=True, norm_first=True
        )
        self.layers = nn.TransformerEncoder(layer, config.layers, norm=nn.LayerNorm(config.width), enable_nested_tensor=False)
        nn.init.normal_(self.bytes.weight, std=0.02)

    def forward(self, prompts: Sequence[str]) -> Text:
        rows = [[_START, *prompt.encode()[: self.config.positions - 2], _END] for prompt in prompts]
        ids = torch.tensor([row + [_PAD] * (self.config.positions - len(row)) for row in rows], device=self.places.device)
        tokens = self.layers(self.bytes(ids) + self.places)
        ends = torch.tensor([len(row) - 1 for row in rows], device=tokens.device)
        return Text(tokens, tokens[torch.arange(len(rows), device=tokens.device), ends])


class ClipTextEncoder(nn.Module):
    """The text tower of a published CLIP, or that of Stable Diffusion, out of a local folder with its tokenizer; frozen, never downloads.

    Raises ImportError without transformers, WeightsError for a folder that holds none.
    """

    def __init__(self, folder: str | os.PathLike[str]):
        super().__init__()
        root, transformers = Path(folder), load_transformers(_NEEDS)
        tower, words = ((root / name if (root / name).is_dir() else root) for name in ("text_encoder", "tokenizer"))
        if not any((words / name).is_file() for name in ("tokenizer.json", "vocab.json")):
            raise WeightsError(f"{root} holds no tokenizer; expected CLIP's own beside its weights, or a folder of Stable Diffusion")
        try:
            self.model = transformers.CLIPTextModel.from_pretrained(tower, local_files_only=True, use_safetensors=True)
            self._tokenizer = transformers.AutoTokenizer.from_pretrained(words, local_files_only=True)
        except (OSError, ValueError, KeyError, RuntimeError) as error:
            raise WeightsError(
                f"{root} holds no CLIP text tower that transformers can read ({' '.join(str(error).split())[:200]})"
            ) from error
        self.dim = int(self.model.config.hidden_size)
        self.model.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, prompts: Sequence[str]) -> Text:
        longest = self.model.config.max_position_embeddings
        rows = self._tokenizer(list(prompts), padding="max_length", max_length=longest, truncation=True, return_tensors="pt")
        found = self.model(input_ids=rows["input_ids"].to(self.model.device))
        return Text(found.last_hidden_state, found.pooler_output)
