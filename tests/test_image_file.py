"""What a file says survives the trip through the image contract, and what cannot be read is refused in one clear line."""

import io
import os
import struct
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms, ImageOps
from PIL.TiffImagePlugin import IFDRational

from pathorestore.pipelines.image_file import ImageFile, ImageFileError, read_image_file, write_image_file
from pathorestore.pipelines.provenance import Provenance
from pathorestore.pipelines.raster import upright

RECORD = Provenance(
    version="0.1.0",
    model_id="sharpener",
    weights_sha256="ab" * 32,
    seed=3,
    parameters={"tile_px": 256},
    input_sha256="cd" * 32,
    pixel_um=0.25,
    created_utc="2026-01-31T12:00:00+00:00",
)
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def pixels_of(height: int, width: int, channels: int, bit_depth: int, seed: int = 0) -> np.ndarray:
    top, dtype = (255, np.uint8) if bit_depth == 8 else (65535, np.uint16)
    return np.random.default_rng(seed).integers(0, top, (height, width, channels), endpoint=True).astype(dtype)


def save_tiff(path: Path, pixels: np.ndarray, **options: Any) -> Path:
    """Write h w c pixels with tifffile, alpha last where c is even."""
    channels = pixels.shape[2]
    tifffile.imwrite(
        path,
        pixels[..., 0] if channels == 1 else pixels,
        photometric=options.pop("photometric", "rgb" if channels > 2 else "minisblack"),
        planarconfig="contig" if channels > 1 else None,
        extrasamples=["unassalpha"] if channels in (2, 4) else None,
        metadata=None,
        **options,
    )
    return path


def stored(file: ImageFile) -> np.ndarray:
    """The pixels of a file as integers h w 3."""
    top = 2**file.bit_depth - 1
    return (file.image[0].permute(1, 2, 0).double().numpy() * top).round().astype(np.uint8 if file.bit_depth == 8 else np.uint16)


def rgb_of(pixels: np.ndarray) -> np.ndarray:
    return np.repeat(pixels[..., :1], 3, axis=2) if pixels.shape[2] < 3 else pixels[..., :3]


def read_elsewhere(path: Path, bit_depth: int) -> np.ndarray:
    """Pixels h w c as Pillow (8 bits) or OpenCV (16 bits) reads them, RGB order."""
    if bit_depth == 8:
        with Image.open(path) as image:
            planes = np.array(image)
        return planes[..., None] if planes.ndim == 2 else planes
    planes = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    planes = planes[..., None] if planes.ndim == 2 else planes
    order = {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[planes.shape[2]]
    return planes[..., order]


def png_bytes(pixels: np.ndarray, **options: Any) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(out, "PNG", **options)
    return out.getvalue()


def written(tmp_path: Path, image: Image.Image, name: str, **options: Any) -> Path:
    image.save(tmp_path / name, **options)
    return tmp_path / name


@given(
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    channels=st.sampled_from([1, 2, 3, 4]),
    bit_depth=st.sampled_from([8, 16]),
    suffix=st.sampled_from([".png", ".tif", ".TIFF"]),
)
def test_writing_and_reading_again_gives_back_every_bit(tmp_path, height, width, channels, bit_depth, suffix):
    pixels = pixels_of(height, width, channels, bit_depth)
    file = read_image_file(save_tiff(tmp_path / "source.tif", pixels))
    assert (file.mode, file.bit_depth, file.has_alpha) == ("gray" if channels < 3 else "rgb", bit_depth, channels in (2, 4))
    assert np.array_equal(stored(file), rgb_of(pixels))

    notes = write_image_file(tmp_path / f"out{suffix}", file.image, file, RECORD, overwrite=True)
    again = read_image_file(tmp_path / f"out{suffix}")
    assert notes == ()
    assert torch.equal(again.image, file.image)
    assert (again.mode, again.bit_depth, again.has_alpha) == (file.mode, file.bit_depth, file.has_alpha)
    assert not file.has_alpha or np.array_equal(again.alpha, pixels[..., -1])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("bit_depth", [8, 16])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_another_program_reads_the_same_pixels(tmp_path, channels, bit_depth, suffix):
    pixels = pixels_of(31, 17, channels, bit_depth)
    file = read_image_file(save_tiff(tmp_path / "source.tif", pixels))
    write_image_file(tmp_path / f"out{suffix}", file.image, file, RECORD)
    assert np.array_equal(read_elsewhere(tmp_path / f"out{suffix}", bit_depth), pixels)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
@pytest.mark.parametrize("pixel_um", [0.25, 0.2273, 0.0645, 1.0])
def test_pixel_size_icc_and_record_reach_another_program(tmp_path, suffix, pixel_um):
    source = save_tiff(
        tmp_path / "source.tif", pixels_of(9, 8, 3, 8), resolution=(1e4 / pixel_um,) * 2, resolutionunit="CENTIMETER", iccprofile=SRGB
    )
    file = read_image_file(source)
    assert file.pixel_um == pytest.approx(pixel_um, rel=1e-6)
    out = tmp_path / f"out{suffix}"
    write_image_file(out, file.image, file, RECORD)

    with Image.open(out) as image:
        assert image.info["icc_profile"] == SRGB
        if suffix == ".jpg" and pixel_um == 0.0645:  # beyond the 16 bits of JFIF, in EXIF only
            assert float(image.getexif()[0x011A]) == pytest.approx(1e4 / pixel_um, rel=1e-6)
        else:
            assert image.info["dpi"][0] == pytest.approx(25400 / pixel_um, rel=1e-4)
        told = {
            ".png": lambda: image.text["pathorestore"],
            ".tif": lambda: image.tag_v2[270],
            ".jpg": lambda: image.getexif().get_ifd(0x8769)[0x9286].removeprefix(b"ASCII\0\0\0").decode(),
        }[suffix]()
        assert Provenance.from_json(told) == RECORD
    again = read_image_file(out)
    assert again.icc == SRGB
    assert again.pixel_um == pytest.approx(pixel_um, rel=1e-6)


def test_a_restored_tiff_names_its_maker_where_other_programs_look(tmp_path):
    file = read_image_file(save_tiff(tmp_path / "source.tif", pixels_of(5, 5, 3, 8)))
    for suffix, tag in ((".tif", 305), (".jpg", 0x0131)):
        write_image_file(tmp_path / f"out{suffix}", file.image, file, RECORD)
        with Image.open(tmp_path / f"out{suffix}") as image:
            assert (image.tag_v2 if suffix == ".tif" else image.getexif())[tag] == "pathorestore 0.1.0"
    write_image_file(tmp_path / "out.png", file.image, file, RECORD)
    with Image.open(tmp_path / "out.png") as image:
        assert image.text["Software"] == "pathorestore 0.1.0"
        assert image.text["Disclaimer"] == "AI-restored, not for primary diagnosis"


def test_a_gray_input_stays_gray_even_if_the_restored_image_has_a_tint(tmp_path):
    file = read_image_file(save_tiff(tmp_path / "source.tif", pixels_of(6, 7, 1, 8)))
    tinted = (file.image * torch.tensor([0.9, 1.0, 0.8])[:, None, None]).clamp(0, 1)
    for suffix in (".png", ".tif", ".jpg"):
        write_image_file(tmp_path / f"out{suffix}", tinted, file, RECORD)
        with Image.open(tmp_path / f"out{suffix}") as image:
            assert image.mode == "L"


def test_jpeg_keeps_a_smooth_image_and_says_what_it_cannot_hold(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64 * 4).reshape(64, 64, 4).astype(np.uint16)
    file = read_image_file(save_tiff(tmp_path / "source.tif", ramp))
    notes = write_image_file(tmp_path / "out.jpg", file.image, file, RECORD)
    assert len(notes) == 2
    assert "16-bit" in notes[0]
    assert "alpha" in notes[1]
    again = read_image_file(tmp_path / "out.jpg")
    assert again.bit_depth == 8
    assert (again.image - file.image).abs().max() < 0.02


def test_an_opaque_alpha_plane_is_left_out_of_jpeg_without_a_word(tmp_path):
    pixels = pixels_of(8, 8, 4, 8)
    pixels[..., 3] = 255
    file = read_image_file(save_tiff(tmp_path / "source.tif", pixels))
    assert write_image_file(tmp_path / "out.jpg", file.image, file, RECORD) == ()


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


@pytest.mark.parametrize("kind", ["png", "jpg", "bmp", "tif"])
def test_a_decompression_bomb_is_refused_by_its_header_and_the_way_out_is_named(tmp_path, kind):
    path = tmp_path / f"x.{kind}"
    if kind == "tif":
        bomb_tiff(path)
    else:
        path.write_bytes(bomb(kind))
    tracemalloc.start()
    with pytest.raises(ImageFileError, match=r"60000 x 60000 px, 3600 megapixels.*--max-pixels 3600000000"):
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
    with pytest.raises(ImageFileError, match="slide engine, which is not in this version"):
        read_image_file(tmp_path / "x.svs", max_pixels=4095)


def test_the_hash_is_that_of_the_bytes(tmp_path):
    import hashlib

    path = tmp_path / "x.png"
    path.write_bytes(png_bytes(pixels_of(3, 3, 3, 8)))
    assert read_image_file(path).input_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture
def source(tmp_path: Path) -> ImageFile:
    """A small PNG on disk, read."""
    path = tmp_path / "source.png"
    path.write_bytes(png_bytes(pixels_of(8, 9, 3, 8)))
    return read_image_file(path)


@pytest.mark.parametrize("link", [os.symlink, os.link])
def test_the_input_is_never_replaced_not_even_through_a_link(tmp_path, source, link):
    link(source.path, tmp_path / "alias.png")
    before = source.path.read_bytes()
    for path in (source.path, tmp_path / "alias.png", tmp_path / "sub" / ".." / "source.png"):
        (tmp_path / "sub").mkdir(exist_ok=True)
        with pytest.raises(ImageFileError, match="the input itself"):
            write_image_file(path, source.image, source, RECORD, overwrite=True)
    assert source.path.read_bytes() == before


def test_an_existing_output_needs_leave_to_be_replaced(tmp_path, source):
    out = tmp_path / "out.png"
    out.write_bytes(b"older")
    with pytest.raises(ImageFileError, match="--overwrite"):
        write_image_file(out, source.image, source, RECORD)
    assert out.read_bytes() == b"older"
    write_image_file(out, source.image, source, RECORD, overwrite=True)
    assert torch.equal(read_image_file(out).image, source.image)


@pytest.mark.parametrize(
    ("name", "words"),
    [("out.xyz", "'.xyz' is not a format"), ("out", "no suffix"), ("out.bmp", "BMP has no place"), ("folder.png", "is a folder")],
)
def test_a_target_that_cannot_be_written_is_named_with_the_remedy(tmp_path, source, name, words):
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ImageFileError, match=words):
        write_image_file(tmp_path / name, source.image, source, RECORD)


def test_missing_parents_are_made_and_a_file_in_the_way_is_named(tmp_path, source):
    write_image_file(tmp_path / "a" / "b" / "out.png", source.image, source, RECORD)
    assert (tmp_path / "a" / "b" / "out.png").is_file()
    (tmp_path / "blocker").write_bytes(b"")
    with pytest.raises(NotADirectoryError, match="is a file") as caught:
        write_image_file(tmp_path / "blocker" / "deep" / "out.png", source.image, source, RECORD)
    assert caught.value.filename == str(tmp_path / "blocker")


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), OSError(28, "No space left on device")], ids=["interrupted", "disk full"])
@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_temporary_one(tmp_path, source, monkeypatch, failure, step):
    out = tmp_path / "out.png"
    out.write_bytes(b"older")

    def fail(*_: object) -> None:
        raise failure

    monkeypatch.setattr(os, "fsync", fail) if step == "fsync" else monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(type(failure)):
        write_image_file(out, source.image, source, RECORD, overwrite=True)
    assert out.read_bytes() == b"older"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.png", "source.png"]


def test_an_output_is_as_readable_as_any_new_file(tmp_path, source):
    (tmp_path / "plain").write_bytes(b"")
    write_image_file(tmp_path / "out.png", source.image, source, RECORD)
    assert (tmp_path / "out.png").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_a_name_as_long_as_names_can_be_is_written(tmp_path, source):
    path = tmp_path / f"{'n' * 251}.png"
    write_image_file(path, source.image, source, RECORD)
    assert path.is_file()


@pytest.mark.parametrize(
    ("image", "words"),
    [(torch.full((1, 3, 8, 9), float("nan")), "NaN"), (torch.full((1, 3, 8, 9), 2.0), "expected"), (torch.zeros(1, 3, 9, 8), "shape")],
)
def test_nothing_is_written_for_an_image_that_is_not_finite_in_range_or_of_the_same_size(tmp_path, source, image, words):
    with pytest.raises(ValueError, match=words):
        write_image_file(tmp_path / "out.png", image, source, RECORD)
    assert not (tmp_path / "out.png").exists()


def test_an_image_too_wide_for_jpeg_is_refused_with_a_remedy(tmp_path, source):
    image = torch.zeros(1, 3, 1, 65_501)
    with pytest.raises(ImageFileError, match=r"write \.tif or \.png"):
        write_image_file(tmp_path / "out.jpg", image, replace(source, image=image), RECORD)
