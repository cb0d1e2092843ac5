"""TIFF files to rasters and back, through tifffile: strips, tiles and every compression that imagecodecs knows."""

import io
import math
from collections.abc import Iterable
from typing import Any, BinaryIO

import numpy as np

from pathorestore.pipelines.pixel_size import CENTIMETRE_UM, INCH_UM, from_density, from_description, from_imagej
from pathorestore.pipelines.provenance import Provenance
from pathorestore.pipelines.raster import ImageFileError, Pixels, Raster, check_size, cmyk_to_rgb, matching_icc, turned

# TIFF 6.0: PhotometricInterpretation, ResolutionUnit, ExtraSamples, NewSubfileType
_MIN_IS_WHITE, _MIN_IS_BLACK, _RGB, _PALETTE, _SEPARATED, _YCBCR = 0, 1, 2, 3, 5, 6
_COLOURS = {_MIN_IS_WHITE: 1, _MIN_IS_BLACK: 1, _RGB: 3, _PALETTE: 1, _SEPARATED: 4, _YCBCR: 3}
_UNIT_INCH, _UNIT_CENTIMETRE = 2, 3
_ASSOCIATED_ALPHA = 1
_REDUCED_OR_MASK = 1 | 4
_JPEG_COMPRESSIONS = (6, 7, 34892)  # their YCbCr is turned into RGB by the decoder

_SLIDE_FORMATS = ("is_svs", "is_ndpi", "is_scn", "is_bif", "is_qpi", "is_philips")


def decode_tiff(file: BinaryIO, max_pixels: int) -> Raster:
    """Decode the first page of a TIFF.

    Raises ImageFileError for stacks, slides above the limit, floats, signed or wide integers, and files that end before their data does.
    """
    import tifffile

    with tifffile.TiffFile(file) as tiff:
        page = tiff.pages[0]
        _check_slide(tiff, page, max_pixels)
        check_size(page.imagewidth, page.imagelength, max_pixels)
        if page.is_tiled:
            check_size(page.tilewidth, page.tilelength, max_pixels)
        check_samples(page)
        _check_complete(page, file)
        notes = _page_notes(tiff.pages)
        raster = _decode_page(page, notes)
        orientation = page.tags.get("Orientation")
        return turned(raster, int(orientation.value) if orientation is not None else 1)


def decode_tiff_stack(file: BinaryIO, max_pixels: int) -> list[Raster]:
    """Decode the planes of a focal stack: the pages of a plain TIFF, or the z axis of an OME or ImageJ one; gray or RGB.

    An alpha plane is left out. `max_pixels` is the limit for all planes together. Raises ImageFileError for a single plane, for another
    axis besides z (time, more than three channels), and for what `decode_tiff` refuses.
    """
    import tifffile

    with tifffile.TiffFile(file) as tiff:
        page, series = tiff.pages[0], tiff.series[0]
        check_samples(page)
        if page.photometric in (_PALETTE, _SEPARATED):
            raise ImageFileError(f"holds a stack of {page.photometric.name} pixels; expected gray or RGB planes")
        sizes, axis = dict(zip(series.axes, series.shape, strict=True)), _plane_axis(series)
        check_size(sizes["X"], sizes["Y"] * sizes[axis], max_pixels)
        for one in series.pages:
            if one is None:
                raise ImageFileError("is one part of an image that several files hold; join them in one file")
            _check_complete(one, file)
        kept = [name for name in series.axes if name in (axis, *"YXCS")]  # all others have length 1
        stored = series.asarray().reshape([sizes[name] for name in kept])
        stored = np.moveaxis(stored, [kept.index(name) for name in (axis, "Y", "X")], (0, 1, 2))
        planes = _full_range(stored.reshape(*stored.shape[:3], -1), int(page.bitspersample), palette=False)
        if page.photometric == _MIN_IS_WHITE:
            planes = (np.iinfo(planes.dtype).max - planes).astype(planes.dtype)
        colours = planes.shape[3] - (planes.shape[3] % 2 == 0)
        icc, notes = matching_icc(page.iccprofile, colours)
        notes += ("alpha planes left out",) if planes.shape[3] > colours else ()
        pixel_um = tiff_pixel_um(page)
    return [Raster(pixels=np.ascontiguousarray(plane[..., :colours]), icc=icc, pixel_um=pixel_um, notes=notes) for plane in planes]


def encode_tiff(raster: Raster, provenance: Provenance) -> tuple[bytes, tuple[str, ...]]:
    """TIFF bytes (deflate with predictor) with the record as ImageDescription, resolution tags and ICC; nothing is left out."""
    import tifffile

    planes = raster.pixels if raster.alpha is None else np.concatenate([raster.pixels, raster.alpha[..., None]], axis=2)
    out = io.BytesIO()
    tifffile.imwrite(
        out,
        planes[..., 0] if planes.shape[2] == 1 else planes,
        photometric="rgb" if raster.pixels.shape[2] == 3 else "minisblack",
        planarconfig="contig" if planes.shape[2] > 1 else None,
        extrasamples=None if raster.alpha is None else ["unassalpha"],
        compression="zlib",
        predictor=True,
        metadata=None,
        description=provenance.to_json(),
        software=f"pathorestore {provenance.version}",
        resolution=(CENTIMETRE_UM / raster.pixel_um,) * 2 if raster.pixel_um else None,
        resolutionunit="CENTIMETER" if raster.pixel_um else None,
        iccprofile=raster.icc,
    )
    return out.getvalue(), ()


def holds_pyramid(tiff: Any) -> bool:
    """Whether an open TIFF is a whole slide: of a scanner's own format, or tiled with more levels than one."""
    page = tiff.pages[0]
    return any(getattr(tiff, name) for name in _SLIDE_FORMATS) or bool(page.is_tiled and (len(tiff.pages) > 1 or page.subifds))


def _check_slide(tiff: Any, page: Any, max_pixels: int) -> None:
    if holds_pyramid(tiff) and page.imagewidth * page.imagelength > max_pixels:
        raise ImageFileError(
            f"is a whole slide of {page.imagewidth} x {page.imagelength} px, too large to be held as one image; "
            "pathorestore restore takes it as a slide, or export the region of interest as PNG or TIFF"
        )


def _plane_axis(series: Any) -> str:
    """The axis of a series that counts focus positions: the only one longer than 1 besides rows, columns and colours."""
    sizes = dict(zip(series.axes, series.shape, strict=True))
    told = " x ".join(f"{name} {size}" for name, size in sizes.items())
    if not {"Y", "X"} <= sizes.keys() or sizes.get("C", 1) not in (1, 3) or sizes.get("C", 1) * sizes.get("S", 1) > 4:
        raise ImageFileError(f"holds {told}; expected planes of rows and columns, gray or RGB")
    long = [name for name, size in sizes.items() if name not in "YXCS" and size > 1]
    if len(long) != 1:
        what = "several stacks" if long else "a single plane"
        raise ImageFileError(f"holds {what} ({told}); expected one stack with a page for each focus position")
    return long[0]


def check_samples(page: Any) -> None:
    """Raise ImageFileError for samples that are no unsigned 8 or 16 bits, or colours other than gray, RGB, palette or CMYK."""
    kind = np.dtype(page.dtype) if page.dtype is not None else None
    if kind is None or kind.kind not in "ub" or kind.itemsize > 2:
        what = "samples of an unknown kind" if kind is None else f"{kind.name} samples"
        raise ImageFileError(f"holds {what}; expected unsigned 8- or 16-bit integers, so rescale it to 0..65535 and save it as uint16")
    colours = _COLOURS.get(int(page.photometric))
    if colours is None or (page.photometric == _YCBCR and page.compression not in _JPEG_COMPRESSIONS):
        raise ImageFileError(f"holds {getattr(page.photometric, 'name', page.photometric)} pixels; expected gray, RGB, palette or CMYK")
    if page.imagedepth > 1:
        raise ImageFileError(f"holds a volume of {page.imagedepth} planes; one image is restored at a time, so save each plane as a file")
    extra = page.samplesperpixel - colours
    if extra not in (0, 1):
        raise ImageFileError(f"holds {page.samplesperpixel} channels per pixel; expected gray or RGB, with or without alpha")


def check_whole(page: Any, file: Any) -> None:
    """Raise ImageFileError for a file that is shorter than its own index says; some decoders would fill the rest with gray."""
    size = file.seek(0, io.SEEK_END)
    size = file.tell() if size is None else size
    needed = max((offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)), default=0)
    if needed > size:
        raise ImageFileError(f"is truncated: its pixels end at byte {needed}, the file at byte {size}; copy or export it again")


def _check_complete(page: Any, file: BinaryIO) -> None:
    """Refuse a file that is shorter than its own index says, or whose index has gaps."""
    check_whole(page, file)
    if len(page.dataoffsets) != math.prod(page.chunked) or 0 in page.databytecounts:
        raise ImageFileError("is incomplete: parts of its pixels were never written; export it again")


def _page_notes(pages: Any) -> tuple[str, ...]:
    """What to say about further pages. Raises ImageFileError when they are images in their own right, as in a stack."""
    first, others = pages[0], [pages[at] for at in range(1, len(pages))]
    alike = [page for page in others if page.shape == first.shape and not int(page.subfiletype) & _REDUCED_OR_MASK]
    if alike:
        raise ImageFileError(
            f"holds {len(alike) + 1} images of the same size, as a stack does; one image is restored at a time, so save each page as a file"
        )
    return (f"first of {len(pages)} pages restored; the others (smaller levels, thumbnail, label) are left out",) if others else ()


def _decode_page(page: Any, notes: tuple[str, ...]) -> Raster:
    stored = page.asarray(squeeze=False)  # separate samples, depth, length, width, contiguous samples
    planes: Pixels = np.moveaxis(stored[:, 0], 0, -2).reshape(*stored.shape[2:4], -1)
    planes = _full_range(planes, int(page.bitspersample), palette=page.photometric == _PALETTE)
    colours = _COLOURS[int(page.photometric)]
    alpha = np.ascontiguousarray(planes[..., -1]) if planes.shape[2] > colours else None
    pixels, icc, said = _to_rgb_or_gray(page, planes[..., :colours])
    icc, dropped = matching_icc(icc, pixels.shape[2])
    if alpha is not None and _first(page.extrasamples) == _ASSOCIATED_ALPHA:
        pixels = _unmultiplied(pixels, alpha)
    return Raster(pixels=np.ascontiguousarray(pixels), alpha=alpha, icc=icc, pixel_um=tiff_pixel_um(page), notes=notes + said + dropped)


def _full_range(planes: Pixels, bits: int, *, palette: bool) -> Pixels:
    """Samples of 1-16 bits stretched over 8 or 16 bits; palette indices stay indices."""
    if planes.dtype == np.bool_:
        planes = planes.astype(np.uint8)
    full = 8 * planes.dtype.itemsize
    if bits == full or palette:
        return planes
    stretched: Pixels = np.rint(planes.astype(np.float64) * ((2**full - 1) / (2**bits - 1))).astype(planes.dtype)
    return stretched


def _to_rgb_or_gray(page: Any, planes: Pixels) -> tuple[Pixels, bytes | None, tuple[str, ...]]:
    icc: bytes | None = page.iccprofile
    if page.photometric == _MIN_IS_WHITE:
        return (np.iinfo(planes.dtype).max - planes).astype(planes.dtype), icc, ()
    if page.photometric == _PALETTE:
        colours = np.asarray(page.colormap >> 8, dtype=np.uint8)  # TIFF colour maps are 16-bit copies of 8-bit colours
        return np.moveaxis(colours[:, planes[..., 0]], 0, -1), icc, ()
    if page.photometric == _SEPARATED:
        from PIL import Image

        ink = planes if planes.dtype == np.uint8 else np.rint(planes / 257.0).astype(np.uint8)
        image, note = cmyk_to_rgb(Image.frombytes("CMYK", ink.shape[1::-1], np.ascontiguousarray(ink).tobytes()), icc)
        pixels: Pixels = np.array(image)
        return pixels if planes.dtype == np.uint8 else pixels.astype(np.uint16) * np.uint16(257), None, (note,)
    return planes, icc, ()


def _unmultiplied(pixels: Pixels, alpha: Pixels) -> Pixels:
    """Colours divided by their alpha (TIFF's associated alpha stores the product); black where alpha is zero."""
    top = np.iinfo(pixels.dtype).max
    straight = np.rint(pixels * (top / np.maximum(alpha, 1)[..., None].astype(np.float64)))
    return np.minimum(straight, top).astype(pixels.dtype)


def tiff_pixel_um(page: Any) -> float | None:
    """Side of a pixel in um: from the description, else from the resolution tags; None if neither says."""
    x, y = _resolution(page, "XResolution"), _resolution(page, "YResolution")
    text = str(page.description)
    unit = page.tags.get("ResolutionUnit")
    unit_um = {_UNIT_INCH: INCH_UM, _UNIT_CENTIMETRE: CENTIMETRE_UM}.get(int(unit.value) if unit is not None else _UNIT_INCH)
    return from_description(text) or from_imagej(text, x, y) or (from_density(x, y, unit_um) if unit_um else None)


def _resolution(page: Any, name: str) -> float:
    tag = page.tags.get(name)
    numerator, denominator = tag.value if tag is not None else (0, 1)
    return numerator / denominator if denominator else 0.0


def _first(values: Iterable[int]) -> int:
    return int(next(iter(values), 0))
