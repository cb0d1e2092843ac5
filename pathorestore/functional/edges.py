"""Edges: the Canny detector that the edge prompt is made of."""

import numpy as np
import torch
from torch import Tensor


def minmax_stretch(image: Tensor, eps: float = 1e-6) -> Tensor:
    """Stretch each image of b c h w to [0, 1] over all its values; a constant image becomes zeros."""
    low, high = image.amin(dim=(1, 2, 3), keepdim=True), image.amax(dim=(1, 2, 3), keepdim=True)
    return (image - low) / (high - low).clamp_min(eps)


def canny(image: Tensor, *, low: int = 100, high: int = 200) -> Tensor:
    """Canny edge map b 1 h w in {0, 1} of RGB images b 3 h w in [0, 1]; a constant image has no edges.

    Each image is stretched to its own range, quantised to 8 bits and given to OpenCV: aperture 3, L1 gradient, strongest channel per
    pixel, no blur beforehand. low, high: hysteresis thresholds in grey levels (MoP's released data loader uses 100 and 200). Not
    differentiable.
    """
    import cv2

    pixels = minmax_stretch(image.detach().float()).mul(255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    maps = np.stack([cv2.Canny(np.ascontiguousarray(one), low, high) for one in pixels])
    return torch.from_numpy(maps)[:, None].to(image.device, torch.float32).div(255)
