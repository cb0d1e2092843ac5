"""MoP: image -> prompts -> coarse -> fine (Mixture of Prompts, arXiv 2503.12399, fig. 2)."""

import os
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Self, cast

import torch
from torch import Tensor, nn

from pathorestore.diffusion.resshift import ResShift
from pathorestore.functional.noise import NoiseField
from pathorestore.hub import ModelCard, Pretrained, load_parts, load_settings, locate, model_name, save_parts, upload, weights_sha256
from pathorestore.image import check_image, pad_to, round_up
from pathorestore.models.defocus import DefocusEstimator
from pathorestore.models.encoders import PathologyEncoder, TinyEncoder
from pathorestore.models.latent import WorkingSpace
from pathorestore.models.optics_prompt import NoOptics, OpticsPrompt
from pathorestore.models.pdiffusion import PDiffusion
from pathorestore.models.pformer import MULTIPLE_PX, PFormer
from pathorestore.models.prompts import EdgePrompt, PathologyPrompt, Prompter, Prompts
from pathorestore.pipelines.light import keep_light
from pathorestore.pipelines.refine import DiffusionRefiner, FineSettings, KeepCoarse, Refiner

_SYSTEM = "MoPRestorer"
_PARTS: dict[str, type[Pretrained]] = {
    "encoder": TinyEncoder,
    "defocus": DefocusEstimator,
    "pathology": PathologyPrompt,
    "edge": EdgePrompt,
    "optics": OpticsPrompt,
    "coarse": PFormer,
    "fine": PDiffusion,
}


class MoPRestorer(nn.Module):
    """The two-stage restorer. prompter: makes the prompts; coarse: a P-former; fine: `DiffusionRefiner` or `KeepCoarse`.

    `forward` is differentiable and takes sides that are multiples of `multiple_px`; `restore` takes any image and checks it.
    """

    tile_px = 256

    def __init__(self, prompter: Prompter, coarse: PFormer, fine: Refiner, *, model_id: str = "custom", weights_hash: str = "none"):
        super().__init__()
        if coarse.config.prompt_dim not in (0, prompter.dim):
            raise ValueError(f"the prompter gives prompts of width {prompter.dim} but the coarse stage expects {coarse.config.prompt_dim}")
        if coarse.config.hint_channels != prompter.optics.channels:
            raise ValueError(
                f"the prompter's optics prompt gives {prompter.optics.channels} channels of hints but the coarse stage expects "
                f"hint_channels={coarse.config.hint_channels}; give the prompter the optics prompt that the coarse stage was trained with"
            )
        self.prompter, self.coarse = prompter, coarse
        self.fine = fine
        self.model_id, self.weights_sha256 = model_id, weights_hash

    @property
    def multiple_px(self) -> int:
        """Sides of a tile must be multiples of this."""
        return max(MULTIPLE_PX, self.fine.multiple_px)

    def prepare(self, degraded: Tensor) -> Prompts:
        """The prompts of degraded images."""
        prompts: Prompts = self.prompter(degraded)
        return prompts

    @property
    def stages(self) -> tuple[Callable[[Tensor, Tensor, Prompts, NoiseField], Tensor], ...]:
        """Coarse, then fine unless it keeps the coarse image."""
        return (self._coarse_stage,) if isinstance(self.fine, KeepCoarse) else (self._coarse_stage, self._fine_stage)

    def _coarse_stage(self, current: Tensor, degraded: Tensor, prompts: Prompts, noise: NoiseField) -> Tensor:
        del current, noise
        return keep_light(self.coarse(degraded, prompts.pathology, prompts.optics), degraded)

    def _fine_stage(self, current: Tensor, degraded: Tensor, prompts: Prompts, noise: NoiseField) -> Tensor:
        return self.fine(current, degraded, prompts, noise=noise)

    def forward(self, image: Tensor, *, noise: NoiseField) -> Tensor:
        prompts = self.prepare(image)
        current = image
        for stage in self.stages:
            current = stage(current, image, prompts, noise)
        return current

    @torch.no_grad()
    def restore(self, image: Tensor, *, seed: int = 0) -> Tensor:
        """Restore whole images b 3 h w in [0, 1] at once; memory grows with their size, see `TiledRestorer`. Clamped, same shape."""
        check_image(image)
        height, width = image.shape[-2:]
        padded = pad_to(image.float(), round_up(height, self.multiple_px), round_up(width, self.multiple_px))
        restored = self(padded, noise=NoiseField.whole(seed, len(image)))
        return cast(Tensor, restored)[..., :height, :width].clamp(0, 1)

    def coarse_only(self) -> "MoPRestorer":
        """The same restorer without its fine stage."""
        return MoPRestorer(self.prompter, self.coarse, KeepCoarse(), model_id=self.model_id, weights_hash=self.weights_sha256)

    def with_steps(self, steps: int) -> "MoPRestorer":
        """The same restorer whose fine stage visits only `steps` of the steps it was trained with. Raises ValueError beyond them."""
        if not isinstance(self.fine, DiffusionRefiner):
            raise ValueError("this restorer has no diffusion stage whose steps could be chosen")
        settings = replace(self.fine.settings, process=self.fine.settings.process.shortened(steps))
        fine = DiffusionRefiner(self.fine.denoiser, settings, self.fine.space)
        return MoPRestorer(self.prompter, self.coarse, fine, model_id=self.model_id, weights_hash=self.weights_sha256)

    def save_pretrained(self, folder: str | os.PathLike[str], *, card: ModelCard | None = None, dtype: torch.dtype | None = None) -> None:
        """Write one sub-folder per part and the settings of the fine stage. dtype: storage type of the weights, such as torch.float16."""
        parts: dict[str, Pretrained] = {
            "defocus": self.prompter.defocus,
            "pathology": self.prompter.pathology,
            "edge": self.prompter.edge,
            "coarse": self.coarse,
        }
        if isinstance(self.prompter.optics, OpticsPrompt):
            parts["optics"] = self.prompter.optics
        # a foundation model's weights are not ours to copy: whoever loads the system hands it in again
        if isinstance(self.prompter.encoder, TinyEncoder):
            parts["encoder"] = self.prompter.encoder
        settings = FineSettings(process=ResShift())
        if isinstance(self.fine, DiffusionRefiner):
            parts["fine"], settings = self.fine.denoiser, self.fine.settings
        save_parts(folder, parts, system=_SYSTEM, settings=settings, card=card, dtype=dtype)

    def push_to_hub(
        self,
        repo_id: str,
        *,
        card: ModelCard | None = None,
        dtype: torch.dtype | None = None,
        token: str | None = None,
        private: bool = True,
    ) -> str:
        """Save as `save_pretrained` does and upload to a hub repository owner/name; returns the commit hash to pin."""
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, card=card, dtype=dtype)
            return upload(folder, repo_id, token=token, private=private)

    @classmethod
    def from_pretrained(
        cls,
        folder_or_repo_id: str | os.PathLike[str],
        *,
        revision: str | None = None,
        encoder: PathologyEncoder | None = None,
        space: WorkingSpace | None = None,
    ) -> Self:
        """Load from a folder written by `save_pretrained`, or from a hub repository at a pinned revision; in evaluation mode.

        encoder: the pathology encoder of a system that was saved without one (only `TinyEncoder` is saved). space: the latent space of a
        system that needs an autoencoder. Raises ValueError if one of them is missing.
        """
        folder = locate(folder_or_repo_id, revision=revision)
        parts = load_parts(folder, _PARTS, system=_SYSTEM)
        encoder = encoder or parts.get("encoder")
        if encoder is None:
            raise ValueError(f"{folder} holds no encoder, since only TinyEncoder is saved; pass the one it was trained with as encoder=")
        prompter = Prompter(
            encoder,
            cast(DefocusEstimator, parts["defocus"]),
            cast(PathologyPrompt, parts["pathology"]),
            cast(EdgePrompt, parts["edge"]),
            cast(OpticsPrompt | NoOptics, parts.get("optics", NoOptics())),
        )
        model_id = model_name(folder_or_repo_id)
        fine: Refiner = KeepCoarse()
        if "fine" in parts:
            fine = DiffusionRefiner(cast(PDiffusion, parts["fine"]), load_settings(folder, FineSettings, system=_SYSTEM), space)
        loaded = cls(prompter, cast(PFormer, parts["coarse"]), fine, model_id=model_id, weights_hash=weights_sha256(folder))
        loaded.eval()
        return loaded


def load_default() -> MoPRestorer:
    """The restorer that ships with the package."""
    return MoPRestorer.from_pretrained(default_folder())


def default_folder() -> Path:
    """Where the embedded weights lie."""
    return Path(__file__).parent.parent / "weights" / "mop-tiny"
