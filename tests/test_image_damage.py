"""What cannot be read is refused in one clear line, before it costs anything."""

import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_samples import pixels_of, png_bytes, save_tiff, stored, written
from PIL import Image

from pathorestore.pipelines.image_file import ImageFile, ImageFileError, read_image_file


def test_damaged_exif_is_no_reason_to_refuse_sound_pixels(tmp_path):
    picture = Image.fromarray(pixels_of(8, 8, 3, 8))
    path = written(tmp_path, picture, "x.jpg", exif=b"Exif\0\0II*\0\xff\xff\xff\xff junk")
    assert read_image_file(path).image.shape == (1, 3, 8, 8)


def sound_file(kind: str) -> bytes:
    out, pixels = io.BytesIO(), pixels_of(24, 20, 3, 8)
    match kind:
        case "tif":
            tifffile.imwrite(out, pixels, photometric="rgb", compression="zlib", rowsperstrip=6)
        case "jpeg tif":
            tifffile.imwrite(out, pixels, photometric="rgb", compression="jpeg", rowsperstrip=8)
        case "16-bit png":
            return cv2.imencode(".png", pixels_of(24, 20, 3, 16))[1].tobytes()
        case _:
            Image.fromarray(pixels).save(out, {"png": "PNG", "jpg": "JPEG", "bmp": "BMP"}[kind])
    return out.getvalue()


def read_or_refuse(path: Path) -> ImageFile | None:
    """The file read, or None if it was refused with one line that names it; any other error is the test's failure."""
    lines: list[str] = []
    try:
        return read_image_file(path, max_pixels=10_000)
    except ImageFileError as error:
        lines = str(error).splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"{path}: ")
    assert len(lines[0]) < 200 + len(str(path))
    return None


KINDS = ["png", "16-bit png", "jpg", "tif", "jpeg tif", "bmp"]


@pytest.mark.parametrize("kind", KINDS)
@given(share=st.floats(0, 1, exclude_max=True))
def test_a_file_cut_short_anywhere_is_refused_or_whole(tmp_path, kind, share):
    whole = sound_file(kind)
    path = tmp_path / "x"
    path.write_bytes(whole)
    expected = read_image_file(path)
    path.write_bytes(whole[: int(share * len(whole))])
    read = read_or_refuse(path)
    assert read is None or torch.equal(read.image, expected.image)


@pytest.mark.parametrize("kind", KINDS)
@given(data=st.data())
def test_damaged_bytes_give_an_image_or_one_clear_error_and_nothing_else(tmp_path, kind, data):
    damaged = bytearray(sound_file(kind))
    for at in data.draw(st.lists(st.integers(0, len(damaged) - 1), min_size=1, max_size=6)):
        damaged[at] = data.draw(st.integers(0, 255))
    path = tmp_path / "x"
    path.write_bytes(damaged)
    file = read_or_refuse(path)
    assert file is None or bool(torch.isfinite(file.image).all())


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty (0 bytes)"),
        (b"no image at all", "not an image"),
        (b"GIF89a", "GIF"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"\x89PNG\r\n\x1a\n", "damaged or truncated PNG"),
        (b"\xff\xd8\xff", "damaged or truncated JPEG"),
        (b"II*\0", "damaged or truncated TIFF"),
        (b"BM", "damaged or truncated BMP"),
    ],
)
def test_what_is_no_image_is_refused_in_one_line(tmp_path, content, words):
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(ImageFileError) as caught:
        read_image_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folders_pipes_and_missing_files_are_refused(tmp_path):
    with pytest.raises(ImageFileError, match="is a folder"):
        read_image_file(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_image_file(tmp_path / "missing.png")
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageFileError, match="not a regular file"):
        read_image_file(tmp_path / "pipe.png")


def bomb(kind: str, side: int = 60_000) -> bytes:
    """A small file whose header claims side x side pixels."""
    if kind == "png":
        body = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
        data = b"IDAT" + zlib.compress(bytes(100))
        chunks = (struct.pack(">I", len(item) - 4) + item + struct.pack(">I", zlib.crc32(item)) for item in (body, data, b"IEND"))
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
    small = bytearray(sound_file(kind))
    if kind == "jpg":
        at = small.index(b"\xff\xc0") + 5
        small[at : at + 4] = struct.pack(">HH", side, side)
    if kind == "bmp":
        small[18:26] = struct.pack("<ii", side, side)
    return bytes(small)


def bomb_tiff(path: Path, **options: Any) -> None:
    save_tiff(path, np.zeros((1, 16, 3), np.uint8), **options)
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        tags = tiff.pages[0].tags
        for name in ("ImageWidth", "ImageLength"):
            struct.pack_into("<I", content, tags[name].valueoffset, 60_000)
            struct.pack_into("<H", content, tags[name].offset + 2, 4)
    path.write_bytes(content)


def test_one_pixel_in_a_gigantic_tile_is_a_bomb_too(tmp_path):
    path = save_tiff(tmp_path / "x.tif", pixels_of(1, 1, 3, 8), tile=(32, 16))
    content = bytearray(path.read_bytes())
    with tifffile.TiffFile(path) as tiff:
        for name in ("TileWidth", "TileLength"):
            struct.pack_into("<H", content, tiff.pages[0].tags[name].valueoffset, 64_000)
    path.write_bytes(content)
    with pytest.raises(ImageFileError, match="64000 x 64000"):
        read_image_file(path)


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "tif"])
def test_a_decompression_bomb_is_refused_by_its_header_and_the_way_out_is_named(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    if kind == "tif":
        bomb_tiff(path)
    else:
        path.write_bytes(bomb(kind))
    tracemalloc.start()
    with pytest.raises(ImageFileError, match=r"60000 x 60000 = 3,600,000,000 pixels.*--max-pixels 3600000000"):
        read_image_file(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_the_limit_counts_pixels_exactly_and_can_be_raised(tmp_path):
    path = tmp_path / "x.png"
    path.write_bytes(png_bytes(pixels_of(10, 20, 3, 8)))
    assert read_image_file(path, max_pixels=200).megapixels == pytest.approx(2e-4)
    with pytest.raises(ImageFileError, match="--max-pixels 200"):
        read_image_file(path, max_pixels=199)


def test_an_image_that_pillow_alone_would_refuse_is_read_when_the_limit_allows_it(tmp_path, monkeypatch):
    path = tmp_path / "x.png"
    path.write_bytes(png_bytes(pixels_of(40, 40, 3, 8)))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    assert read_image_file(path).image.shape[-2:] == (40, 40)


@pytest.mark.parametrize(
    ("pixels", "options", "words"),
    [
        (np.zeros((4, 4), np.float32), {}, "float32 samples"),
        (np.zeros((4, 4), np.int16), {}, "int16 samples"),
        (np.zeros((4, 4), np.uint32), {}, "uint32 samples"),
        (np.zeros((4, 4, 5), np.uint8), {"photometric": "minisblack", "planarconfig": "contig"}, "5 channels"),
        (np.zeros((3, 4, 4), np.uint8), {"photometric": "minisblack"}, "3 images of the same size"),
        (np.zeros((2, 16, 16, 3), np.uint8), {"photometric": "rgb", "volumetric": True, "tile": (1, 16, 16)}, "volume of 2 planes"),
        (np.zeros((4, 4, 3), np.uint8), {"photometric": "cielab"}, "CIELAB pixels"),
    ],
)
def test_tiff_that_is_no_single_picture_is_refused_with_a_remedy(tmp_path, pixels, options, words):
    tifffile.imwrite(tmp_path / "x.tif", pixels, metadata=None, **options)
    with pytest.raises(ImageFileError, match=words):
        read_image_file(tmp_path / "x.tif")


def save_pyramid(path: Path, description: str) -> None:
    pixels = pixels_of(64, 64, 3, 8)
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(pixels, photometric="rgb", tile=(16, 16), description=description, metadata=None)
        tiff.write(pixels[::4, ::4], photometric="rgb", subfiletype=1, metadata=None)


def test_the_first_level_of_a_small_pyramid_is_read_with_a_note(tmp_path):
    save_pyramid(tmp_path / "x.tif", "Aperio |MPP = 0.5")
    file = read_image_file(tmp_path / "x.tif")
    assert np.array_equal(stored(file), pixels_of(64, 64, 3, 8))
    assert file.pixel_um == 0.5
    assert "first of 2 pages" in file.notes[0]


def test_a_whole_slide_is_sent_to_the_slide_engine(tmp_path):
    save_pyramid(tmp_path / "x.svs", "Aperio Image Library")
    with pytest.raises(ImageFileError, match="too large to be held as one image; pathorestore restore takes it as a slide"):
        read_image_file(tmp_path / "x.svs", max_pixels=4095)
