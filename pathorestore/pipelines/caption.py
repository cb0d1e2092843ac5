"""A caption in the corner of an image, so that whoever sees it knows what it is."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

_SHARE, _WIDEST, _LEAST_PX, _SHADE = 0.035, 0.9, 9, 0.35  # height of the letters, width, both of the image; smallest; of what lies behind


class Captioned(NamedTuple):
    """An image 1 3 h w, the text that was drawn into it, "" for none, and the rows and columns of its box."""

    image: Tensor
    text: str
    box: tuple[slice, slice]


def captioned(image: Tensor, texts: Sequence[str]) -> Captioned:
    """An image 1 3 h w in [0, 1] with white letters on a dark box in the lower left corner: the first of the texts that fits.

    Letters are at least 9 px high; an image in which no text fits comes back as it is. Raises ValueError for text that is not of printable
    ASCII, which is all that the letters have.
    """
    import cv2

    height, width = image.shape[-2:]
    face, tall = cv2.FONT_HERSHEY_SIMPLEX, max(_LEAST_PX, _SHARE * min(height, width))
    for text in texts:
        if not text.isascii() or not text.isprintable():
            raise ValueError(f"the caption {text!a} has letters that cannot be drawn; expected printable ASCII")
        scale = tall / cv2.getTextSize(text, face, 1.0, 1)[0][1]
        pen = max(1, round(1.5 * scale))
        (wide, high), below = cv2.getTextSize(text, face, scale, pen)
        margin = max(2, high // 3)
        top = height - high - below - 2 * margin
        if wide + 2 * margin > _WIDEST * width or top < height / 2:
            continue
        letters = np.zeros((height, width), np.uint8)
        cv2.putText(letters, text, (margin, height - below - margin), face, scale, 255, pen, cv2.LINE_AA)
        drawn, box = image.clone(), (slice(top, height), slice(0, wide + 2 * margin))
        drawn[(..., *box)] *= _SHADE
        ink = torch.from_numpy(letters).to(image) / 255
        return Captioned(drawn + ink * (1 - drawn), text, box)
    return Captioned(image, "", (slice(0, 0), slice(0, 0)))
