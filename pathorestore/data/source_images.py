"""Images that crops can come from: files that are alike in size, with what the manifest says about them."""

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from pathorestore.data.drawing import CropConfig
from pathorestore.data.image_cache import UnreadableImage, image_size
from pathorestore.data.manifest import Row

_log = logging.getLogger(__name__)
_LARGE_MB = 12  # decoded; a smaller image takes no longer than a few crops


class SourceImage(NamedTuple):
    """One image, or an image and its clean partner, of height and width `size_px`."""

    paths: tuple[Path, ...]
    row: Row
    size_px: tuple[int, int]


def fitting(candidates: Iterable[tuple[tuple[Path, ...], Row]], config: CropConfig) -> list[SourceImage]:
    """The images that a crop fits into, by what their headers say; what is left out is logged.

    Raises ValueError if none is left, UnreadableImage for a file without a usable header or partners of unequal size unless
    `on_unreadable` is "skip".
    """
    kept, small, unreadable = [], 0, 0
    for paths, row in candidates:
        try:
            image = SourceImage(paths, row, common_size(paths))
        except UnreadableImage as error:
            if config.on_unreadable == "stop":
                raise
            unreadable += 1
            _log.warning("passed over: %s", error)
            continue
        if min(image.size_px) < round(config.source_px(row.mpp)):
            small += 1
        else:
            kept.append(image)
    if not kept:
        raise ValueError(
            f"none of {small + unreadable} images serves: {unreadable} cannot be read and {small} are smaller than "
            f"crop_px={config.crop_px} with margin_px={config.margin_px} on each side; use a smaller crop or larger images"
        )
    if small:
        _log.warning("%d of %d images are smaller than a crop and left out", small, small + len(kept))
    _note_unknown_sizes(kept, config)
    _note_decoding(kept, config)
    return kept


def common_size(paths: Sequence[Path]) -> tuple[int, int]:
    """Height and width in px of registered images. Raises UnreadableImage if one has no usable header or another size than the first."""
    first, *others = [image_size(path) for path in paths]
    for path, size in zip(paths[1:], others, strict=True):
        if size != first:
            reason = (
                f"it has {size[1]} x {size[0]} px and its partner {paths[0]} has {first[1]} x {first[0]} px; partners must be registered"
            )
            raise UnreadableImage.of(path, reason)
    return first


def area_px(image: SourceImage, config: CropConfig) -> float:
    """Pixels of an image once it is brought to the target size of a pixel."""
    scale = config.side_px / config.source_px(image.row.mpp)
    return image.size_px[0] * image.size_px[1] * scale**2


def _note_unknown_sizes(images: Sequence[SourceImage], config: CropConfig) -> None:
    unknown = sum(image.row.mpp is None for image in images) if config.target_mpp else 0
    if unknown:
        _log.warning("%d of %d images have no mpp in the manifest and are taken as they are, whatever target_mpp", unknown, len(images))


def _note_decoding(images: Sequence[SourceImage], config: CropConfig) -> None:
    """Say so where loading will be slow for want of cache."""
    decoded_mb = [3 * len(image.paths) * image.size_px[0] * image.size_px[1] / 2**20 for image in images]
    mean_mb = sum(decoded_mb) / len(images)
    if mean_mb < _LARGE_MB or sum(decoded_mb) <= config.cache_mb:
        return
    what = f"{len(images)} images take {mean_mb:.0f} MiB each once decoded, more than cache_mb={config.cache_mb} keeps of them"
    if config.crops_per_image == 1:
        _log.warning("%s, so that nearly every crop decodes one: crops_per_image: 16 would cut 16 from each", what)
    elif config.images_at_once * mean_mb > config.cache_mb:
        fit = max(1, int(config.cache_mb / mean_mb))
        _log.warning("%s, not even the images_at_once=%d in turn: set it to %d", what, config.images_at_once, fit)
