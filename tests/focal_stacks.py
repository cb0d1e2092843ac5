"""Focal stacks of simulated tissue with known height, that the tests of fusion and of stack labels share."""

from dataclasses import replace
from functools import cache
from pathlib import Path

import torch
from PIL import Image

from pathorestore.degradations.optical import FocalStack, simulate_stack
from pathorestore.degradations.recipes import Setting
from pathorestore.degradations.slab import smooth_fields
from pathorestore.functional.noise import stream
from pathorestore.functional.optics import Optics
from pathorestore.image import to_uint8

STEP_UM = 0.8
SIDE_PX = 192
# labels compare with the picture in focus, so that picture must be what the objective makes of the tissue
SETTING = replace(Setting.ideal(), from_scan=True)
OPTICS = Optics(pixel_um=0.25)


@cache
def tissue(seed: int, side_px: int = SIDE_PX) -> torch.Tensor:
    """A 1 3 s s picture with texture at all scales, stained like haematoxylin and eosin."""
    generator = stream(seed)
    haematoxylin, eosin = (
        sum(smooth_fields(1, side_px, side_px, scale_px=scale, generator=generator) * weight for scale, weight in scales).sigmoid()
        for scales in (((1.5, 0.7), (4.0, 1.5), (12.0, 1.5)), ((2.0, 0.5), (24.0, 1.0)))
    )
    colours = torch.tensor([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11]])[:, :, None, None]
    return torch.exp(-(1.2 * haematoxylin * colours[0] + 0.4 * eosin * colours[1]))[None].mul(255).round().div(255)


def heights(tilt_um: float, relief_um: float, *, seed: int = 0, side_px: int = SIDE_PX) -> torch.Tensor:
    """A height map 1 1 s s in um: tilted along the rows, with a smooth random relief; its mean is 0."""
    ramp = torch.linspace(-0.5, 0.5, side_px)[:, None].expand(side_px, side_px) * tilt_um
    relief = smooth_fields(1, side_px, side_px, scale_px=64.0, generator=stream(seed, 1))[0] * relief_um
    return (ramp + relief - relief.mean())[None, None]


@cache
def stack(
    *,
    seed: int = 0,
    planes: int = 9,
    offset_um: float = 0.0,
    tilt_um: float = 0.0,
    relief_um: float = 0.0,
    noise_levels: float = 0.7,
    perfect: bool = False,
) -> FocalStack:
    """A stack of planes 0.8 um apart around `offset_um`; perfect: through an objective without aberrations."""
    z_um = (torch.arange(planes) - (planes - 1) / 2) * STEP_UM + offset_um
    setting = replace(SETTING, noise_levels=(noise_levels, noise_levels))
    if perfect:
        setting = replace(setting, spherical_waves=(0.0, 0.0), focal_shift_um=(0.0, 0.0))
    return simulate_stack(tissue(seed), z_um, setting=setting, generator=stream(seed, 2), depth_um=heights(tilt_um, relief_um, seed=seed))


def save_stack(folder: Path, fov: str, scene: FocalStack, *, target: torch.Tensor | None = None, suffix: str = ".jpg") -> list[Path]:
    """Write the planes of a stack as `<fov>_<plane>`, and a target, if there is one, as `Z_<fov>`."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{fov}_{number:02d}{suffix}" for number in range(len(scene.planes))]
    images = list(zip(paths, scene.planes, strict=True))
    if target is not None:
        images.append((folder / f"Z_{fov}{suffix}", target[0]))
    for path, image in images:
        Image.fromarray(to_uint8(image)).save(path, quality=95)
    return paths
