"""Decoded images: read whole or refused by name, and as many of them kept as a byte budget allows."""

from collections import OrderedDict
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from PIL.Image import Image

T = TypeVar("T")
A = TypeVar("A", bound=NDArray[Any])

_MODES = ("RGB", "RGBA", "L", "LA", "P")
_REMEDY = "replace the file, take its row out of the manifest, or pass over such files with on_unreadable: skip"


class UnreadableImage(ValueError):
    """A file that training cannot read; the message names the file, the reason and the remedy."""

    def __init__(self, message: str):
        # a DataLoader hands the exception of a worker on as the text of its traceback, whose last line is the message
        super().__init__(message.rsplit(f"{type(self).__name__}: ", 1)[-1].strip())

    @classmethod
    def of(cls, path: Path, reason: object) -> "UnreadableImage":
        """The error for a file."""
        return cls(f"{path}: cannot be read for training: {reason}; {_REMEDY}")


def image_size(path: Path) -> tuple[int, int]:
    """Height and width in px as the header says; no pixel is decoded. Raises UnreadableImage."""
    return _opened(path, lambda picture: (picture.height, picture.width))


def read_rgb(path: Path) -> NDArray[np.uint8]:
    """Decode an 8-bit image file to h w 3 uint8, all of it. Raises UnreadableImage for other depths, which would be clipped."""
    return _opened(path, lambda picture: np.array(picture.convert("RGB")))


def _opened(path: Path, read: "Callable[[Image], T]") -> T:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            if picture.mode not in _MODES:
                raise ValueError(f"it has mode {picture.mode}, expected an 8-bit gray, palette or RGB image")
            return read(picture)
    except MemoryError:
        raise
    except FileNotFoundError:
        raise UnreadableImage.of(path, "there is no such file") from None
    except UnidentifiedImageError:
        raise UnreadableImage.of(path, "it is no image of a known format, or cut off in its header") from None
    except Exception as error:  # decoders raise what they like at damaged bytes
        raise UnreadableImage.of(path, error or type(error).__name__) from None


class ArrayCache:
    """Keeps the arrays that were asked for last, up to `max_mb` mebibytes of them; a copy for another process starts empty."""

    def __init__(self, max_mb: int):
        self.max_mb = max_mb
        self.kept_bytes = 0
        self._kept: OrderedDict[Hashable, NDArray[Any]] = OrderedDict()

    def __reduce__(self) -> tuple[type["ArrayCache"], tuple[int]]:
        return ArrayCache, (self.max_mb,)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._kept

    def get(self, key: Hashable, make: Callable[[], A]) -> A:
        """The array of a key, made if it is not kept. One that is larger than the whole budget is handed out and not kept."""
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]  # type: ignore[return-value]
        made = make()
        if made.nbytes <= self.max_mb << 20:
            self._kept[key] = made
            self.kept_bytes += made.nbytes
        while self.kept_bytes > self.max_mb << 20:
            _, dropped = self._kept.popitem(last=False)
            self.kept_bytes -= dropped.nbytes
        return made
