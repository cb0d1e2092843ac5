"""How well focal stacks fuse and label themselves, on simulated stacks whose height and labels are known.

    python benchmarks/fusion_table.py --data DIR --json out/fusion.json

Every sharp image of the folder becomes the section of five stacks. Each is fused by the package, by two pyramid blends that are often used
instead, and by a method that is told the true height; all are compared with the image in focus.
"""

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from pathorestore.data.focal_stack import stack_labels
from pathorestore.data.sharp_crops import image_files, read_rgb
from pathorestore.degradations.optical import FocalStack, simulate_stack
from pathorestore.degradations.recipes import Setting
from pathorestore.degradations.slab import smooth_fields
from pathorestore.functional.color import luminance
from pathorestore.functional.fusion import FusionConfig, cell_weights, fuse_stack
from pathorestore.functional.noise import stream
from pathorestore.image import from_uint8
from pathorestore.metrics.fidelity import psnr

PLANES, STEP_UM = 13, 0.8
LEVELS = 4
IDEAL = replace(Setting.ideal(), from_scan=True)
NOISY = replace(IDEAL, noise_levels=(4.0, 4.0))
SCANNER = replace(Setting.scanner(), pixel_um=(0.25, 0.25))
FUSED = "fused"


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A stack to simulate: height differences by tilt, standard deviation of the relief, distance of the planes from each other."""

    setting: Setting
    tilt_um: float = 3.3
    relief_um: float = 0.8
    step_um: float = STEP_UM


SCENES = {
    "tilted": Scene(setting=IDEAL),
    "tilted, noise of 4 levels": Scene(setting=NOISY),
    "tilted, planes 1.6 um apart": Scene(setting=IDEAL, step_um=1.6),
    "tilted, setting scanner": Scene(setting=SCANNER),
    "flat, between two planes": Scene(setting=IDEAL, tilt_um=0.0, relief_um=0.0),
}


def simulated(sharp: Tensor, scene: Scene, index: int) -> FocalStack:
    """The stack of an image; its middle plane lies up to half a step off the mean height."""
    generator, side = stream(index), sharp.shape[-1]
    angle = 2 * math.pi * torch.rand((), generator=generator).item()
    rows, columns = torch.linspace(-0.5, 0.5, side)[:, None], torch.linspace(-0.5, 0.5, side)
    ramp = scene.tilt_um * (math.cos(angle) * columns + math.sin(angle) * rows)
    relief = scene.relief_um * smooth_fields(1, side, side, scale_px=96.0, generator=generator)[0]
    offset = torch.rand((), generator=generator) - 0.5
    count = round((PLANES - 1) * STEP_UM / scene.step_um) + 1
    z_um = (torch.arange(count) - (count - 1) / 2 + offset) * scene.step_um
    return simulate_stack(sharp, z_um, setting=scene.setting, generator=generator, depth_um=(ramp + relief)[None, None])


def true_index(stack: FocalStack, step_um: float) -> Tensor:
    """Which plane is in focus at each pixel, 1 1 h w."""
    return (stack.depth_um - stack.depth_um.mean() - stack.defocus_um[0]) / step_um


def told(planes: Tensor, index: Tensor) -> Tensor:
    """Interpolated between the two planes nearest the true height."""
    weight = (1 - (torch.arange(len(planes))[:, None, None, None] - index.clamp(0, len(planes) - 1)).abs()).clamp(min=0)
    return (weight * planes).sum(0, keepdim=True)


def pyramid(images: Tensor) -> list[Tensor]:
    """Laplacian pyramid of n c h w, the coarse rest last."""
    bands = []
    for _ in range(LEVELS):
        coarse = halved(images)
        bands.append(images - doubled(coarse, images))
        images = coarse
    return [*bands, images]


def halved(images: Tensor) -> Tensor:
    return F.interpolate(images, scale_factor=0.5, mode="bilinear", antialias=True, align_corners=False)


def doubled(images: Tensor, like: Tensor) -> Tensor:
    return F.interpolate(images, size=like.shape[-2:], mode="bilinear", align_corners=False)


def collapsed(bands: Sequence[Tensor]) -> Tensor:
    image = bands[-1]
    for band in reversed(bands[:-1]):
        image = band + doubled(image, band)
    return image.clamp(0, 1)


def pyramid_of_weights(planes: Tensor) -> Tensor:
    """The weights of the package, each octave blended by its own smoothed copy of them."""
    weights, blended = cell_weights(planes, FusionConfig()), []
    weights = F.interpolate(weights, size=planes.shape[-2:], mode="bilinear", align_corners=False)
    for band in pyramid(planes):
        blended.append((weights * band).sum(0, keepdim=True))
        weights = halved(weights)
    return collapsed(blended)


def pyramid_of_maxima(planes: Tensor) -> Tensor:
    """In each octave the plane of largest magnitude, pixel by pixel; the mean of the coarse rest."""
    *bands, rest = pyramid(planes)
    chosen = [band.gather(0, luminance(band).abs().argmax(0, keepdim=True).expand(-1, 3, -1, -1)) for band in bands]
    return collapsed([*chosen, rest.mean(0, keepdim=True)])


METHODS: dict[str, Callable[[Tensor], Tensor]] = {
    FUSED: lambda planes: fuse_stack(planes).image,
    "pyramid, same weights": pyramid_of_weights,
    "pyramid, largest coefficient": pyramid_of_maxima,
}


def measured(sharp: Tensor, scene: Scene, index: int) -> dict[str, float]:
    """PSNR of every method, the error of the depth index in planes, and that of the stack's labels."""
    stack = simulated(sharp, scene, index)
    expected = true_index(stack, scene.step_um)
    row = {"best plane": max(float(psnr(plane[None], stack.clean)) for plane in stack.planes)}
    row["told the height"] = float(psnr(told(stack.planes, expected), stack.clean))
    row |= {name: float(psnr(fuse(stack.planes), stack.clean)) for name, fuse in METHODS.items()}
    found = fuse_stack(stack.planes)
    row["depth error, planes"] = float((found.depth_index - expected).abs().mean())
    labels = stack_labels(stack.planes, found.image, stack.parameters.optics, scene.step_um)
    row["labelled"] = float(labels.valid)
    row["label error, um"] = float((labels.z_um - stack.defocus_um).abs().mean()) if labels.valid else math.nan
    row["label error, ctf"] = float((labels.ctf - stack.ctf).abs().mean()) if labels.valid else math.nan
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="folder of sharp images")
    parser.add_argument("--crop", type=int, default=256, help="side of the middle of each image that is used, px")
    parser.add_argument("--limit", type=int, default=None, help="so many images at most")
    parser.add_argument("--json", type=Path, default=None, help="write every row")
    arguments = parser.parse_args()
    rows = []
    for index, path in enumerate(tqdm(image_files(arguments.data)[: arguments.limit], unit="image")):
        image = from_uint8(read_rgb(path))
        top, left = (max(0, side - arguments.crop) // 2 for side in image.shape[-2:])
        sharp = image[..., top : top + arguments.crop, left : left + arguments.crop]
        if sharp.shape[-2:] == (arguments.crop, arguments.crop):
            rows += [{"image": path.name, "scene": name} | measured(sharp, scene, index) for name, scene in SCENES.items()]
    if arguments.json:
        arguments.json.parent.mkdir(parents=True, exist_ok=True)
        arguments.json.write_text(json.dumps(rows, indent=1))
    figures = list(rows[0])[2:]
    print(f"means of {len(rows) // len(SCENES)} images; PSNR in dB\n\n| stack | {' | '.join(figures)} |\n|{' --- |' * (len(figures) + 1)}")
    for name in SCENES:
        own = [row for row in rows if row["scene"] == name]
        cells = []
        for figure in figures:
            values = [row[figure] for row in own if not math.isnan(row[figure])]
            cells.append(f"{sum(values) / len(values):.{3 if 'error' in figure else 2}f}")
        print(f"| {name} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
