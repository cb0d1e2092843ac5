"""Turn a sharp image into a focal stack with known distance, contrast transfer and target."""

from pathlib import Path

import torch
from PIL import Image
from skimage import data

from pathorestore import Setting, simulate_stack
from pathorestore.image import from_uint8, to_uint8

folder = Path("focal_stack")
folder.mkdir(exist_ok=True)

sharp = from_uint8(data.immunohistochemistry()[:192, :192])
z_um = torch.tensor([-3.2, -1.6, 0.0, 1.6, 3.2])
stack = simulate_stack(sharp, z_um, setting=Setting.scanner(), generator=torch.Generator().manual_seed(0))

for plane, defocus_um, ctf in zip(stack.planes, stack.defocus_um, stack.ctf, strict=True):
    path = folder / f"z{defocus_um:+.2f}um.png"
    Image.fromarray(to_uint8(plane)).save(path)
    print(f"{path}: {defocus_um:+.2f} um from focus, contrast transfer {ctf:.2f}")
Image.fromarray(to_uint8(stack.clean)).save(folder / "clean.png")
