"""The image contract of the package: RGB, float32, [0, 1], axes b c h w.

Other forms (uint8, h w c) exist only inside the functions of this file.
"""

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor


def check_image(image: Tensor, *, name: str = "image") -> None:
    """Raise ValueError unless `image` is a finite floating RGB batch b 3 h w in [0, 1] with at least one pixel.

    Reads the values, which synchronises a GPU: for the borders of pipelines, not for the inside of networks.
    """
    if not isinstance(image, Tensor):
        raise ValueError(f"{name} is a {type(image).__name__}; expected a torch tensor b 3 h w, see pathorestore.image.from_uint8")
    if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape:
        raise ValueError(
            f"{name} has shape {tuple(image.shape)}; expected RGB as (batch, 3, height, width), e.g. image[None] for one image"
        )
    if not image.is_floating_point():
        raise ValueError(f"{name} is {image.dtype}; expected float in [0, 1], see pathorestore.image.from_uint8")
    low, high = (float(value) for value in torch.aminmax(image.detach()))
    if not (np.isfinite(low) and np.isfinite(high)):
        raise ValueError(f"{name} holds NaN or infinite values; expected finite values in [0, 1]")
    if low < -1e-3 or high > 1 + 1e-3:
        raise ValueError(f"{name} spans [{low:.4g}, {high:.4g}]; expected [0, 1]; divide 8-bit images by 255")


def from_uint8(pixels: NDArray[np.uint8]) -> Tensor:
    """Turn h w 3 uint8 pixels into an image 1 3 h w. Raises ValueError for another dtype or shape."""
    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(f"pixels are {pixels.dtype} of shape {pixels.shape}; expected uint8 of shape (height, width, 3)")
    # torch warns of arrays that it may not write to, such as a picture's own memory
    owned = np.array(pixels) if not pixels.flags.writeable else np.ascontiguousarray(pixels)
    return torch.from_numpy(owned).permute(2, 0, 1)[None].contiguous().float() / 255


def to_uint8(image: Tensor) -> NDArray[np.uint8]:
    """Turn one image (1 3 h w or 3 h w, [0, 1]) into h w 3 uint8 pixels, clipped and rounded half to even."""
    pixels = image.detach().reshape(image.shape[-3:]).float().clamp(0, 1).mul(255).round().to(torch.uint8)
    return np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy())


def pad_to(image: Tensor, height_px: int, width_px: int) -> Tensor:
    """Grow an image b c h w at its bottom and right to the given size by reflection; crop with `[..., :h, :w]` to undo.

    Reflection cannot exceed the side minus one, so what remains is replicated.
    """
    height, width = image.shape[-2:]
    if height_px < height or width_px < width:
        raise ValueError(f"cannot pad an image of {height} x {width} px to the smaller {height_px} x {width_px} px")
    reflect = (min(width_px - width, width - 1), min(height_px - height, height - 1))
    if any(reflect):
        image = F.pad(image, (0, reflect[0], 0, reflect[1]), mode="reflect")
    rest = (width_px - image.shape[-1], height_px - image.shape[-2])
    return F.pad(image, (0, rest[0], 0, rest[1]), mode="replicate") if any(rest) else image


def pad_around(image: Tensor, margin_px: int) -> Tensor:
    """Grow an image b c h w by `margin_px` on every side by reflection, by replication where reflection cannot reach."""
    height, width = image.shape[-2:]
    top, left = min(margin_px, height - 1), min(margin_px, width - 1)
    if top or left:
        image = F.pad(image, (left, left, top, top), mode="reflect")
    return F.pad(image, (margin_px - left,) * 2 + (margin_px - top,) * 2, mode="replicate")


def round_up(length_px: int, multiple: int) -> int:
    """The smallest multiple of `multiple` that is at least `length_px`."""
    return -(-length_px // multiple) * multiple
