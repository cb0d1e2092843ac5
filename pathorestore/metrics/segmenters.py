"""Who finds nuclei: the protocol, the watershed that needs no weights, label maps made elsewhere, and wrappers for caching and scaling.

Segmenters that come with a network of their own stand in `segmenter_adapters`. Array code (uint8, h w 3) stays among the segmenters and
the measures of nuclei.
"""

import hashlib
from collections import OrderedDict
from dataclasses import KW_ONLY, dataclass, replace
from importlib.util import find_spec
from pathlib import Path, PurePath
from typing import Any, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from pathorestore.metrics.availability import Availability

Pixels = NDArray[np.uint8]
Labels = NDArray[np.int32]

_DESIGN_MPP = 0.25
_SMALLEST_PX = 16
_SUFFIXES = (".npy", ".png", ".mat")
_PICTURES = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".webp")


class NucleiSegmenter(Protocol):
    """Finds nuclei. mpp: um per pixel of the images that it expects."""

    @property
    def mpp(self) -> float:
        """Micrometres per pixel."""
        ...

    def __call__(self, pixels: Pixels) -> Labels:
        """Label map h w int32 of an RGB image h w 3 uint8: 0 is background, every nucleus has a positive label of its own."""
        ...


class ImageSegmenter(NucleiSegmenter, Protocol):
    """A segmenter that can be chosen for an evaluation: it says whether it can run, and hears which image comes."""

    def available(self) -> Availability:
        """Whether it can run here."""
        ...

    def for_image(self, name: str) -> NucleiSegmenter:
        """The segmenter of the image of that name; those that look at pixels alone return themselves."""
        ...


class LooksAtPixels:
    """For segmenters to which the name of an image means nothing."""

    def for_image(self, name: str) -> Self:
        """Itself."""
        return self


def check_mpp(mpp: float) -> None:
    """Raise ValueError unless mpp is a positive finite number."""
    if not 0 < mpp < float("inf"):
        raise ValueError(f"mpp={mpp} must be a positive number of um per pixel, e.g. 0.25 for a 40x scan")


@dataclass(frozen=True, kw_only=True)
class Watershed(LooksAtPixels):
    """Nuclei by the haematoxylin channel (Ruifrok & Johnston 2001), Otsu's threshold and a watershed of the distance map; needs no weights.

    mpp: um per pixel; lengths, tuned at 0.25 um per pixel, scale with it. Nuclei that touch the image border may be left out.
    """

    mpp: float = _DESIGN_MPP

    def __post_init__(self) -> None:
        check_mpp(self.mpp)

    def available(self) -> Availability:
        """Whether scikit-image is installed."""
        if find_spec("skimage") is None:
            return Availability(False, 'finding nuclei needs scikit-image; install it with: pip install "pathorestore[demo]"')
        return Availability(True)

    def __call__(self, pixels: Pixels) -> Labels:
        """Segment. Raises ImportError with the remedy if scikit-image is not installed."""
        try:
            from skimage import color, feature, filters, measure, segmentation
            from skimage.morphology import disk
        except ImportError as error:
            raise ImportError('finding nuclei needs scikit-image; install it with: pip install "pathorestore[demo]"') from error
        from scipy import ndimage

        scale = _DESIGN_MPP / self.mpp
        stain = ndimage.gaussian_filter(color.rgb2hed(pixels)[..., 0], sigma=scale, mode="nearest")
        dark = ndimage.binary_opening(stain > filters.threshold_otsu(stain), disk(round(2 * scale)))
        blobs = measure.label(ndimage.binary_fill_holes(dark))
        large = np.bincount(blobs.ravel()) >= 30 * scale**2
        large[0] = False
        mask = large[blobs]
        depth = ndimage.gaussian_filter(ndimage.distance_transform_edt(mask), sigma=scale)
        peaks = feature.peak_local_max(depth, min_distance=max(1, round(6 * scale)), labels=measure.label(mask))
        markers = np.zeros(mask.shape, dtype=np.int32)
        markers[tuple(peaks.T)] = np.arange(1, len(peaks) + 1)
        return np.asarray(segmentation.watershed(-depth, markers, mask=mask), dtype=np.int32)


@dataclass(frozen=True)
class Precomputed:
    """Label maps that another program made, one file an image: `.npy`, `.png` (8 or 16 bit grey) or `.mat` (key `inst_map`).

    folder: where they are. A file bears the name of its image, with or without the image's own suffix, or the `content_hash` of its
    pixels: `Precomputed(folder).for_image("a/tile.png")` reads `folder/a/tile.npy` or `folder/a/tile.png.npy`; `Precomputed(folder)`
    itself, called with pixels, looks for the hash. mpp: um per pixel of the maps.
    """

    folder: Path | str
    _: KW_ONLY
    mpp: float = _DESIGN_MPP

    def __post_init__(self) -> None:
        check_mpp(self.mpp)

    def available(self) -> Availability:
        """Whether the folder is there."""
        if not Path(self.folder).is_dir():
            return Availability(False, f"there is no folder of label maps {self.folder}; segment the images with another program first")
        return Availability(True)

    def for_image(self, name: str) -> "PrecomputedImage":
        """The label map of the image of that name. Raises FileNotFoundError where there is none, ValueError where there are several."""
        parts = PurePath(name)
        if ".." in parts.parts:
            raise ValueError(f"the image name {name!r} leads out of the folder of label maps; give a name relative to the images' folder")
        inside = PurePath(parts.name) if parts.is_absolute() else parts
        # a dot elsewhere belongs to the name: a map of "case.1" is none of "case.2"
        stem = inside.with_suffix("") if inside.suffix.lower() in _PICTURES else inside
        return PrecomputedImage(self._only([str(inside), str(stem)], f"the image {name!r}"), mpp=self.mpp)

    def __call__(self, pixels: Pixels) -> Labels:
        """The label map that bears the `content_hash` of the pixels."""
        key = content_hash(pixels)
        return PrecomputedImage(self._only([key], f"pixels of content hash {key}"), mpp=self.mpp)(pixels)

    def _only(self, stems: list[str], whose: str) -> Path:
        found = [path for stem in dict.fromkeys(stems) for suffix in _SUFFIXES if (path := Path(self.folder, stem + suffix)).is_file()]
        if not found:
            looked = " or ".join(f"{stem}{{{','.join(_SUFFIXES)}}}" for stem in dict.fromkeys(stems))
            raise FileNotFoundError(f"{self.folder} holds no label map of {whose}; expected {looked}")
        if len(found) > 1:
            raise ValueError(f"{self.folder} holds {len(found)} label maps of {whose}: {', '.join(p.name for p in found)}; keep one")
        return found[0]


@dataclass(frozen=True)
class PrecomputedImage(LooksAtPixels):
    """The label map of one image, read from a file at each call."""

    path: Path
    _: KW_ONLY
    mpp: float = _DESIGN_MPP

    def available(self) -> Availability:
        """Whether the file is there."""
        return Availability(True) if self.path.is_file() else Availability(False, f"there is no label map {self.path}")

    def __call__(self, pixels: Pixels) -> Labels:
        """The label map. Raises ValueError unless it is one of whole numbers from 0 and of the size of the pixels."""
        labels = _read(self.path)
        if labels.ndim != 2 or labels.shape != pixels.shape[:2]:
            raise ValueError(
                f"the label map {self.path} has shape {labels.shape}, its image {pixels.shape[0]} x {pixels.shape[1]} px; "
                "expected one label per pixel"
            )
        if labels.size and not (labels.dtype.kind in "bui" or np.equal(np.mod(labels, 1), 0).all()):
            raise ValueError(f"the label map {self.path} holds fractions ({labels.dtype}); expected whole numbers, 0 for background")
        if labels.size and (labels.min() < 0 or labels.max() > np.iinfo(np.int32).max):
            raise ValueError(f"the label map {self.path} spans [{labels.min()}, {labels.max()}]; expected labels from 0 to 2^31 - 1")
        return labels.astype(np.int32)


def _read(path: Path) -> NDArray[Any]:
    if path.suffix == ".npy":
        return np.asarray(np.load(path, allow_pickle=False))
    if path.suffix == ".png":
        from PIL import Image

        with Image.open(path) as picture:
            return np.asarray(picture)
    from scipy.io import loadmat

    try:
        content = loadmat(path, variable_names=["inst_map"])
    except NotImplementedError as error:  # scipy's word for the HDF5 files of MATLAB 7.3
        raise ValueError(f"{path} is a MATLAB 7.3 file, which is not read here; save the label map as .npy or with -v7") from error
    if "inst_map" not in content:
        raise ValueError(f"{path} holds no inst_map; expected the label map under that key")
    return np.asarray(content["inst_map"])


class CachedSegmenter:
    """Wraps a segmenter and keeps the label maps of the last `size` different images, found again by their content."""

    def __init__(self, segmenter: NucleiSegmenter, *, size: int = 16) -> None:
        self.segmenter, self.size = segmenter, size
        self._maps: OrderedDict[str, Labels] = OrderedDict()

    @property
    def mpp(self) -> float:
        """The wrapped segmenter's."""
        return self.segmenter.mpp

    def available(self) -> Availability:
        """The wrapped segmenter's."""
        return availability(self.segmenter)

    def for_image(self, name: str) -> NucleiSegmenter:
        """Itself; or, where the wrapped segmenter goes by names, what that has for this name, uncached."""
        bound = for_image(self.segmenter, name)
        return self if bound is self.segmenter else bound

    def __call__(self, pixels: Pixels) -> Labels:
        """The wrapped segmenter's label map."""
        key = content_hash(pixels)
        if key not in self._maps:
            self._maps[key] = self.segmenter(pixels)
        self._maps.move_to_end(key)
        while len(self._maps) > self.size:
            self._maps.popitem(last=False)
        return self._maps[key]


@dataclass(frozen=True)
class AtScale:
    """Runs a segmenter on images of another pixel size: they are resampled to what it expects, and its labels back to them.

    image_mpp: um per pixel of the images that are handed over. Pixels are interpolated bilinearly and averaged where they shrink; every
    pixel of the image takes the label at its centre.
    """

    segmenter: NucleiSegmenter
    image_mpp: float

    def __post_init__(self) -> None:
        check_mpp(self.image_mpp)

    @property
    def mpp(self) -> float:
        """That of the images."""
        return self.image_mpp

    def available(self) -> Availability:
        """The wrapped segmenter's."""
        return availability(self.segmenter)

    def for_image(self, name: str) -> NucleiSegmenter:
        """The same with the wrapped segmenter of that name."""
        bound = for_image(self.segmenter, name)
        return self if bound is self.segmenter else replace(self, segmenter=bound)

    def __call__(self, pixels: Pixels) -> Labels:
        """The label map of the image, h w."""
        height, width = pixels.shape[:2]
        ratio = self.image_mpp / self.segmenter.mpp
        size = max(1, round(height * ratio)), max(1, round(width * ratio))
        if size == (height, width):
            return self.segmenter(pixels)
        image = torch.from_numpy(np.array(pixels)).permute(2, 0, 1)[None].float()
        scaled = interpolate(image, size=size, mode="bilinear", antialias=True)[0].round().clamp(0, 255).byte()
        labels = self.segmenter(np.ascontiguousarray(scaled.permute(1, 2, 0).numpy()))
        check_labels(labels, size)
        rows, columns = (((np.arange(there) + 0.5) * here / there).astype(int) for here, there in zip(size, (height, width), strict=True))
        return np.ascontiguousarray(labels[np.ix_(rows, columns)])


def for_image(segmenter: NucleiSegmenter, name: str) -> NucleiSegmenter:
    """What the segmenter has for the image of that name; itself if it knows no names, as any callable with an mpp may."""
    bind = getattr(segmenter, "for_image", None)
    bound: NucleiSegmenter = bind(name) if bind is not None else segmenter
    return bound


def availability(segmenter: NucleiSegmenter) -> Availability:
    """What the segmenter says of itself; available if it says nothing."""
    ask = getattr(segmenter, "available", None)
    said: Availability = ask() if ask is not None else Availability(True)
    return said


def content_hash(pixels: Pixels) -> str:
    """SHA-256 in hexadecimal digits of the size (as "height x width x 3", without spaces) and the bytes of pixels h w 3."""
    digest = hashlib.sha256("x".join(map(str, pixels.shape)).encode())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def check_labels(labels: Labels, shape: tuple[int, ...]) -> None:
    """Raise ValueError unless a segmenter returned a label map of that shape."""
    if labels.shape != shape or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(f"the segmenter returned {labels.dtype} of shape {labels.shape}; expected an integer label map of shape {shape}")


def find_nuclei(segmenter: NucleiSegmenter, pixels: Pixels) -> Labels:
    """The segmenter's label map with labels 1..n, in the order of its own, and without nuclei below 16 px."""
    labels = segmenter(pixels)
    check_labels(labels, pixels.shape[:2])
    values, index, area = np.unique(labels, return_inverse=True, return_counts=True)
    kept = (values > 0) & (area >= _SMALLEST_PX)
    return np.asarray((np.cumsum(kept) * kept)[index].reshape(labels.shape), dtype=np.int32)
