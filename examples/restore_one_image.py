"""Defocus a histology image with the simulator, restore it with the weights that ship with the package, and say how much that helped."""

import torch
from PIL import Image
from skimage import data

from pathorestore import Setting, TiledRestorer
from pathorestore.degradations.optical import degrade
from pathorestore.image import from_uint8, to_uint8
from pathorestore.pipelines.mop import load_default


def psnr_db(image: torch.Tensor, clean: torch.Tensor) -> float:
    """Peak signal-to-noise ratio of images in [0, 1]."""
    return float(-10 * torch.log10((image - clean).square().mean()))


sharp = from_uint8(data.immunohistochemistry()[:256, :256])
blurred = degrade(sharp, torch.tensor([1.6]), setting=Setting.ideal(), generator=torch.Generator().manual_seed(0))

restorer = TiledRestorer(load_default())
restored = restorer.restore(blurred.degraded, seed=0)

print(f"before: {psnr_db(blurred.degraded, blurred.clean):.2f} dB, after: {psnr_db(restored, blurred.clean):.2f} dB")
Image.fromarray(to_uint8(restored)).save("restored.png")
