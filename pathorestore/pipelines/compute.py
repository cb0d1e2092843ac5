"""Where and how precisely a restorer computes."""

from dataclasses import dataclass

import torch
from torch import Tensor

from pathorestore.pipelines.restorer import Restorer

DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "fp32", "bf16")


def choose_device(name: str) -> str:
    """Turn "auto", "cpu" or "cuda" into "cpu" or "cuda". Raises ValueError if CUDA is asked for and absent."""
    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError("no CUDA device was found; use --device cpu, or auto, which takes CUDA where there is one")
    return ("cuda" if available else "cpu") if name == "auto" else name


def choose_precision(name: str, device: str) -> str:
    """Turn "auto", "fp32" or "bf16" into "fp32" or "bf16": auto takes bf16 on CUDA devices that compute in it, fp32 elsewhere."""
    if name != "auto":
        return name
    return "bf16" if device == "cuda" and torch.cuda.is_bf16_supported() else "fp32"


class ComputedOn:
    """A restorer that runs another one, which takes images on the CPU and computes on `device`, in a precision.

    precision: "fp32", or "bf16" for autocast; what bfloat16 turns into NaN or infinity is computed once more in float32.
    The restorer itself must be on the device already.
    """

    def __init__(self, restorer: Restorer, *, device: str, precision: str):
        self.restorer, self.device, self.precision = restorer, device, precision
        self.tile_px = restorer.tile_px

    def restore(self, image: Tensor, *, seed: int = 0) -> Tensor:
        """Restore b 3 h w; float32 in [0, 1] on the CPU."""
        if self.precision == "fp32":
            return self.restorer.restore(image, seed=seed).cpu()
        attempt = self._attempt(image, seed)
        return attempt.result if attempt.sound else self.restorer.restore(image, seed=seed).cpu()

    def _attempt(self, image: Tensor, seed: int) -> "_Attempt":
        try:
            with torch.autocast(self.device, dtype=torch.bfloat16):
                result = self.restorer.restore(image, seed=seed).float().cpu()
        except ValueError:  # a tiling engine refuses tiles that are not finite; what is wrong otherwise will be wrong in float32 too
            return _Attempt(image, sound=False)
        return _Attempt(result, sound=bool(torch.isfinite(result).all()))


@dataclass(frozen=True)
class _Attempt:
    result: Tensor
    sound: bool
