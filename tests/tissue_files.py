"""Pictures of made-up tissue, no two alike, that the tests of manifests share."""

from pathlib import Path

import cv2
import numpy as np
from PIL import Image


def tissue(seed: int, height: int = 256, width: int = 256) -> np.ndarray:
    """Dark nuclei on a pink ground of fibres, h w 3 uint8."""
    rng = np.random.default_rng(seed)
    fibres = (
        cv2.GaussianBlur(rng.standard_normal((height, width)), (0, 0), 3)
        + cv2.GaussianBlur(rng.standard_normal((height, width)), (0, 0), 12) * 3
    )
    ground = np.array([225, 160, 200.0]) + fibres[..., None] * [30, 60, 30]
    nuclei = np.zeros((height, width), np.uint8)
    for _ in range(height * width // 600):
        middle = (int(rng.integers(0, width)), int(rng.integers(0, height)))
        axes = (int(rng.integers(4, 9)), int(rng.integers(4, 9)))
        cv2.ellipse(nuclei, middle, axes, float(rng.integers(0, 180)), 0, 360, 255, -1)
    share = cv2.GaussianBlur(nuclei.astype(np.float64) / 255, (0, 0), 1)[..., None]
    chromatin = np.array([90, 60, 140.0]) + cv2.GaussianBlur(rng.standard_normal((height, width)), (0, 0), 1)[..., None] * 25
    return np.clip(ground * (1 - share) + chromatin * share, 0, 255).round().astype(np.uint8)


def save(path: Path, pixels: np.ndarray, **options: object) -> Path:
    """Write an image file, and the folders that it needs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)
    return path
