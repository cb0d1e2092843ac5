"""How far restoration moves the colours of the stains, whatever their amounts: angles between stain vectors by Macenko's method."""

import torch
from torch import Tensor

from pathorestore.functional.color import optical_density

_PEAK = 255.0
_BETA = 0.15  # optical density below which a pixel is glass (Macenko et al. 2009, sec. 2.1)
_ALPHA = 0.01  # part of the pixels beyond each robust extreme (sec. 2.2)
_LEAST_TISSUE = 0.01  # part of the image
_LEAST_TISSUE_PX = 100  # so that a robust extreme leaves a pixel out


def stain_vectors(image: Tensor, *, white: float = 1.0) -> Tensor:
    """Unit optical density vectors b 2 3 (RGB) of haematoxylin and eosin in each image; the one that absorbs more red comes first.

    Densities are of the values as stored, rounded to 8 bit, without linearisation. Pixels whose density vector is shorter than 0.15 are
    glass, and a channel at 0 has lost its density; the plane of the other pixels is that of their first two singular vectors, and the
    stains lie at the 1st and the 99th percentile of the angle in it.
    NaN where fewer than 100 pixels or 1 % of the image are tissue. An image of a single stain gives that one twice, nearly.
    image: b 3 h w on the scale [0, 1], clipped to it. white: the value of empty glass; a lamp that dims all channels to `white` changes
    nothing if it is told so, thickness and amount of stain never do. Raises ValueError for another shape, values that are not finite and
    a white outside (0, 1].
    Source: Macenko et al., IEEE Int. Symp. Biomedical Imaging (ISBI) 2009, 1107-1110, sec. 2; its "intensity" of a density read as length.
    """
    if image.ndim != 4 or image.shape[1] != 3:
        raise ValueError(f"image has shape {tuple(image.shape)}; expected RGB as (batch, 3, height, width)")
    if not image.isfinite().all():
        raise ValueError("image holds NaN or infinite values, which have no colour; expected finite values in [0, 1]")
    if not 0 < white <= 1:
        raise ValueError(f"white={white} must lie in (0, 1]: the value of empty glass, 1 for a corrected scan")
    levels = (image.detach().double() * _PEAK).round().clamp(0, _PEAK)
    return torch.stack([_vectors(one.flatten(1).T, white * _PEAK) for one in levels]).float()


def stain_shift(restored: Tensor, clean: Tensor, *, white: float = 1.0) -> Tensor:
    """Mean angle in degrees between the stain vectors of each restored image and its clean one, b: 0 for equal colours.

    NaN where either image has too little tissue. restored, clean, white: as of `stain_vectors`.
    Raises ValueError if the shapes differ and as `stain_vectors` does.
    """
    if restored.shape != clean.shape:
        raise ValueError(f"restored and clean must be of one shape; got {tuple(restored.shape)} and {tuple(clean.shape)}")
    ours, theirs = (stain_vectors(image, white=white).double() for image in (restored, clean))
    # the arc cosine would lose small angles
    angles = torch.atan2(torch.linalg.cross(ours, theirs).norm(dim=-1), (ours * theirs).sum(dim=-1))
    return angles.rad2deg().mean(dim=1).float()


def _vectors(levels: Tensor, glass: float) -> Tensor:
    """Stain vectors 2 3 of levels n 3 of all pixels. glass: the level of empty glass."""
    # a channel at zero has lost its density: black pixels would be arbitrarily long vectors of no colour
    density = optical_density(levels[levels.amin(dim=1) > 0] / glass)
    tissue = density[density.norm(dim=1) >= _BETA]
    if len(tissue) < max(_LEAST_TISSUE_PX, _LEAST_TISSUE * len(levels)):
        return density.new_full((2, 3), torch.nan)
    # about the origin, not the mean: Beer-Lambert's plane passes through it
    _, directions = torch.linalg.eigh(tissue.T @ tissue)
    first, second = directions[:, 2], directions[:, 1]
    first = first if first.sum() > 0 else -first
    angles = torch.atan2(tissue @ second, tissue @ first).sort().values
    last = len(angles) - 1
    low, high = (angles[round(part * last)] for part in (_ALPHA, 1 - _ALPHA))
    stains = torch.stack([angle.cos() * first + angle.sin() * second for angle in (low, high)])
    return stains if stains[0, 0] >= stains[1, 0] else stains.flip(0)
