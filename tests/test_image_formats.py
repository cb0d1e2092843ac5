"""Every kind of image file reads as another program shows it."""

import struct

import numpy as np
import pytest
import tifffile
import torch
from image_samples import RECORD, SRGB, pixels_of, rgb_of, save_tiff, stored, written
from PIL import Image, ImageOps
from PIL.TiffImagePlugin import IFDRational

from pathorestore.pipelines.image_file import read_image_file, write_image_file
from pathorestore.pipelines.raster import upright


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA"])
def test_png_of_every_kind_reads_as_pillow_shows_it(tmp_path, mode):
    picture = Image.fromarray(pixels_of(12, 11, 4, 8))
    picture = (
        picture.convert("RGB").quantize(16) if mode == "P" else picture.convert(mode) if mode != "PA" else picture.quantize(16, method=2)
    )
    path = written(tmp_path, picture, "x.png")
    file = read_image_file(path)
    with Image.open(path) as shown:
        assert np.array_equal(stored(file), np.array(shown.convert("RGBA"))[..., :3])
        assert file.has_alpha == shown.has_transparency_data
        if file.has_alpha:
            assert np.array_equal(file.alpha, np.array(shown.convert("RGBA"))[..., 3])
    assert file.mode == ("gray" if mode in ("1", "L", "LA") else "rgb")


def test_a_transparent_colour_becomes_an_alpha_plane(tmp_path):
    gray = Image.fromarray(np.array([[0, 7], [7, 200]], np.uint8))
    assert read_image_file(written(tmp_path, gray, "g.png", transparency=7)).alpha.tolist() == [[255, 0], [0, 255]]
    colour = gray.convert("RGB")
    assert read_image_file(written(tmp_path, colour, "c.png", transparency=(7, 7, 7))).alpha.tolist() == [[255, 0], [0, 255]]


@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
@pytest.mark.parametrize("progressive", [False, True])
def test_jpeg_of_every_kind_reads_as_pillow_shows_it(tmp_path, mode, progressive):
    path = written(tmp_path, Image.fromarray(pixels_of(20, 21, 3, 8)).convert(mode), "x.jpg", progressive=progressive)
    file = read_image_file(path)
    with Image.open(path) as shown:
        assert np.array_equal(stored(file), np.array(shown.convert("RGB")))
    assert (mode == "CMYK") == any("CMYK" in note for note in file.notes)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB"])
def test_bmp_of_every_kind_reads_as_pillow_shows_it(tmp_path, mode):
    picture = Image.fromarray(pixels_of(9, 10, 3, 8))
    path = written(tmp_path, picture.quantize(16) if mode == "P" else picture.convert(mode), "x.bmp")
    file = read_image_file(path)
    with Image.open(path) as shown:
        assert np.array_equal(stored(file), np.array(shown.convert("RGB")))
    assert file.mode == ("gray" if mode in ("1", "L") else "rgb")


@pytest.mark.parametrize(
    "options",
    [
        {"compression": "lzw"},
        {"compression": "lzw", "predictor": True},
        {"compression": "zlib", "tile": (16, 16)},
        {"compression": "packbits"},
        {"compression": "zstd"},
        {"tile": (32, 16)},
        {"rowsperstrip": 5},
        {"bigtiff": True},
        {"byteorder": ">"},
    ],
    ids=str,
)
@pytest.mark.parametrize("bit_depth", [8, 16])
def test_tiff_of_every_lossless_layout_gives_the_same_pixels(tmp_path, options, bit_depth):
    pixels = pixels_of(37, 41, 3, bit_depth)
    assert np.array_equal(stored(read_image_file(save_tiff(tmp_path / "x.tif", pixels, **dict(options)))), pixels)


def test_tiff_with_jpeg_tiles_and_with_separate_planes(tmp_path):
    smooth = np.linspace(0, 255, 48 * 48 * 3).reshape(48, 48, 3).astype(np.uint8)
    jpeg = read_image_file(save_tiff(tmp_path / "j.tif", smooth, compression="jpeg", tile=(16, 16)))
    assert np.abs(stored(jpeg).astype(int) - smooth).max() < 12
    tifffile.imwrite(tmp_path / "p.tif", np.moveaxis(smooth, -1, 0), photometric="rgb", planarconfig="separate", metadata=None)
    assert np.array_equal(stored(read_image_file(tmp_path / "p.tif")), smooth)


def test_tiff_with_white_zero_a_palette_and_one_bit(tmp_path):
    gray = pixels_of(10, 9, 1, 8)
    inverted = read_image_file(save_tiff(tmp_path / "w.tif", gray, photometric="miniswhite"))
    assert np.array_equal(stored(inverted), rgb_of(255 - gray))
    palette = written(tmp_path, Image.fromarray(pixels_of(9, 9, 3, 8)).quantize(16), "p.tif")
    bilevel = written(tmp_path, Image.fromarray(gray[..., 0]).convert("1"), "b.tif")
    for path, mode in ((palette, "rgb"), (bilevel, "gray")):
        with Image.open(path) as shown:
            assert np.array_equal(stored(read_image_file(path)), np.array(shown.convert("RGB")))
        assert read_image_file(path).mode == mode


def test_premultiplied_alpha_is_divided_out(tmp_path):
    premultiplied = np.array([[[100, 50, 25, 128], [0, 0, 0, 0], [9, 8, 7, 255]]], np.uint8)
    tifffile.imwrite(tmp_path / "x.tif", premultiplied, photometric="rgb", extrasamples=["assocalpha"], metadata=None)
    assert stored(read_image_file(tmp_path / "x.tif"))[0].tolist() == [[199, 100, 50], [0, 0, 0], [9, 8, 7]]


@pytest.mark.parametrize("name", ["x.tif", "x.jpg"])
def test_cmyk_goes_through_its_own_profile(tmp_path, name):
    # A profile of an absurd press, on which no ink is black and full ink is white.
    ink = Image.new("CMYK", (16, 16), (0, 0, 0, 0))
    plain = read_image_file(written(tmp_path, ink, name))
    assert stored(plain).min() > 250
    through = read_image_file(written(tmp_path, ink, f"icc_{name}", icc_profile=absurd_cmyk_profile()))
    assert stored(through).max() < 10
    assert through.icc is None
    assert through.notes == ("CMYK converted to sRGB through its ICC profile",)


def absurd_cmyk_profile() -> bytes:
    """An ICC v2 output profile whose only table maps CMYK to L* = 100 K/100 (ICC.1:2001-04, 6.5.8 lut8Type)."""
    ramp = bytes(range(256))
    identity = b"".join(struct.pack(">i", 65536 if at % 4 == 0 else 0) for at in range(9))
    table = b"".join(bytes([255 if index % 2 else 0, 128, 128]) for index in range(16))
    lut = b"mft1" + bytes(4) + bytes([4, 3, 2, 0]) + identity + ramp * 4 + table + ramp * 3
    white = b"XYZ " + bytes(4) + struct.pack(">3i", 63190, 65536, 54061)
    text = b"text" + bytes(4) + b"none\0\0\0\0"
    tags, body, offset = [], b"", 128 + 4 + 12 * 5
    for name, data in ((b"A2B0", lut), (b"A2B1", lut), (b"wtpt", white), (b"cprt", text), (b"desc", text)):
        data += bytes(-len(data) % 4)
        tags.append(name + struct.pack(">II", offset + len(body), len(data)))
        body += data
    header = bytes(4) + bytes(4) + bytes([2, 0x40, 0, 0]) + b"prtrCMYKLab " + bytes(12) + b"acsp" + bytes(28)
    header += struct.pack(">3i", 63190, 65536, 54061) + bytes(48)
    profile = header + struct.pack(">I", 5) + b"".join(tags) + body
    return struct.pack(">I", len(profile)) + profile[4:]


def test_a_profile_of_another_colour_space_is_dropped_with_a_note(tmp_path):
    path = written(tmp_path, Image.fromarray(pixels_of(4, 4, 1, 8)[..., 0]), "x.png", icc_profile=SRGB)
    file = read_image_file(path)
    assert file.icc is None
    assert file.notes == ("ICC profile dropped: it describes RGB pixels, the image is gray",)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
def test_exif_and_tiff_orientation_are_applied_once(tmp_path, orientation, suffix):
    picture = Image.fromarray(np.kron(pixels_of(2, 3, 3, 8), np.ones((8, 8, 1), np.uint8)))
    if suffix == ".tif":
        path = save_tiff(tmp_path / "x.tif", np.array(picture), extratags=[(274, 3, 1, orientation, True)])
    else:
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = written(tmp_path, picture, f"x{suffix}", exif=exif)
    with Image.open(path) as shown:
        expected = np.array(ImageOps.exif_transpose(shown).convert("RGB"))
    file = read_image_file(path)
    assert np.array_equal(stored(file), expected)
    write_image_file(tmp_path / "out.png", file.image, file, RECORD)
    assert torch.equal(read_image_file(tmp_path / "out.png").image, file.image)


def test_turning_by_each_orientation_and_its_inverse_changes_nothing():
    pixels = pixels_of(4, 5, 3, 8)
    for orientation, inverse in ((1, 1), (2, 2), (3, 3), (4, 4), (5, 5), (6, 8), (7, 7), (8, 6)):
        assert np.array_equal(upright(upright(pixels, orientation), inverse), pixels)


def ome(size: str, unit: str = "") -> str:
    return f'<?xml version="1.0"?><OME><Image><Pixels ID="P" PhysicalSizeX="{size}" {unit}PhysicalSizeY="{size}"/></Image></OME>'


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"description": ome("0.5")}, 0.5),
        ({"description": ome("345.5", 'PhysicalSizeXUnit="nm" ')}, 0.3455),
        ({"description": ome("0.5", 'PhysicalSizeXUnit="&#181;m" ')}, 0.5),
        ({"description": "Aperio Image Library v12\n2220x2967 |AppMag = 20|MPP = 0.4990|Left = 25"}, 0.499),
        ({"description": "ImageJ=1.53t\nunit=micron\n", "resolution": (4, 4), "resolutionunit": "NONE"}, 0.25),
        ({"resolution": (101600, 101600), "resolutionunit": "INCH"}, 0.25),
        ({"resolution": (20000, 20000), "resolutionunit": "CENTIMETER"}, 0.5),
        ({"resolution": (300, 300), "resolutionunit": "INCH"}, None),
        ({"resolution": (40000, 20000), "resolutionunit": "CENTIMETER"}, None),
        ({"resolution": (4, 4), "resolutionunit": "NONE"}, None),
        ({"description": ome("nan")}, None),
        ({"description": ome("-1")}, None),
        ({}, None),
    ],
)
def test_pixel_size_is_found_where_microscopes_write_it(tmp_path, options, expected):
    file = read_image_file(save_tiff(tmp_path / "x.tif", pixels_of(3, 3, 3, 8), **options))
    assert file.pixel_um == (None if expected is None else pytest.approx(expected, rel=1e-6))


def test_pixel_size_of_png_bmp_and_jpeg(tmp_path):
    picture = Image.fromarray(pixels_of(3, 3, 3, 8))
    for name in ("x.png", "x.bmp"):
        assert read_image_file(written(tmp_path, picture, name, dpi=(101600, 101600))).pixel_um == pytest.approx(0.25, rel=1e-5)
        assert read_image_file(written(tmp_path, picture, name, dpi=(96, 96))).pixel_um is None
    exif = Image.Exif()
    exif[0x011A] = exif[0x011B] = IFDRational(20000)
    exif[0x0128] = 3
    assert read_image_file(written(tmp_path, picture, "x.jpg", exif=exif)).pixel_um == pytest.approx(0.5)
    assert read_image_file(written(tmp_path, picture, "y.jpg", dpi=(50800, 50800))).pixel_um == pytest.approx(0.5)
