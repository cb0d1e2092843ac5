"""What a file says survives the trip through the image contract, and a file is written whole or not at all."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from image_samples import RECORD, SRGB, pixels_of, png_bytes, read_elsewhere, rgb_of, save_tiff, stored
from PIL import Image

from pathorestore.pipelines.image_file import ImageFile, ImageFileError, read_image_file, write_image_file
from pathorestore.pipelines.provenance import Provenance


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
