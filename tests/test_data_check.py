"""Every defect of a manifest names its row, what is sound is let through, and what has passed need not be asked again."""

import io
import json
import os
import struct
import warnings
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import tifffile
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tissue_files import save, tissue

from pathorestore.data import check
from pathorestore.data.check import check_and_stamp, check_manifest, check_or_reuse, require_checked, stamp_path
from pathorestore.data.defects import KINDS, CheckOptions
from pathorestore.data.fingerprint import SAME_CORRELATION, correlation, fingerprint, lookalikes
from pathorestore.data.image_cache import read_rgb
from pathorestore.data.layouts import IMAGE_SUFFIXES, files_under
from pathorestore.data.manifest import Manifest, Row, read_manifest, write_manifest
from pathorestore.data.registration import shift_between, worst_shift
from pathorestore.degradations.optical import simulate_stack
from pathorestore.degradations.recipes import Setting

OPTIONS = CheckOptions(crop_px=64, workers=1)

# rows 2 to 7 of the spreadsheet
ROWS = (
    Row(path="sharp.png", patient="A", slide="1", mpp=0.25, split="train"),
    Row(path="gray.jpg", patient="B", slide="1", split="train"),
    Row(path="z-1.png", target="fused.png", patient="C", z_um=-1.6, ctf=0.4, split="train"),
    Row(path="z+1.png", target="fused.png", patient="C", z_um=1.6, ctf=0.4, split="train"),
    Row(path="val.png", patient="D", slide="1", split="val"),
    Row(path="test.tif", patient="E", split="test"),
)


@pytest.fixture
def folder(tmp_path):
    """The files of `ROWS`: sharp images and a focal stack of three planes."""
    save(tmp_path / "sharp.png", tissue(1))
    save(tmp_path / "gray.jpg", tissue(2)[..., 1])
    clean = tissue(3)
    save(tmp_path / "fused.png", clean)
    save(tmp_path / "z-1.png", cv2.GaussianBlur(clean, (0, 0), 2))
    save(tmp_path / "z+1.png", cv2.GaussianBlur(clean, (0, 0), 3))
    save(tmp_path / "val.png", tissue(4))
    save(tmp_path / "test.tif", tissue(5))
    return tmp_path


def manifest_of(folder: Path, rows: tuple[Row, ...] = ROWS) -> Manifest:
    write_manifest(folder / "m.csv", rows)
    return read_manifest(folder / "m.csv")


def found(folder: Path, rows: tuple[Row, ...] = ROWS, options: CheckOptions = OPTIONS) -> list[tuple[int, str]]:
    return [(one.row, one.kind) for one in check_manifest(manifest_of(folder, rows), options)]


def with_row(row: Row, number: int) -> tuple[Row, ...]:
    """The good rows with another one in the place of a row of the spreadsheet."""
    return tuple(row if place == number else old for place, old in enumerate(ROWS, start=2))


def bomb() -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0)
    chunks = (
        struct.pack(">I", len(item) - 4) + item + struct.pack(">I", zlib.crc32(item)) for item in (header, b"IDAT" + zlib.compress(b"x"))
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


def test_a_sound_manifest_has_no_defects(folder):
    heard = []
    assert check_manifest(manifest_of(folder), OPTIONS, progress=lambda *numbers: heard.append(numbers)) == []
    assert heard[-1] == (6, 6)
    assert [done for done, _ in heard] == sorted(done for done, _ in heard)


@pytest.mark.parametrize(
    ("number", "change", "kind", "words"),
    [
        (2, {"path": "gone.png"}, "missing file", "no such file"),
        (2, {"path": "x" * 300}, "missing file", "too long"),
        (5, {"target": "gone.png"}, "missing file", "target gone.png"),
        (2, {"mpp": 0.0}, "bad value", "mpp 0"),
        (2, {"mpp": -0.25}, "bad value", "mpp -0.25"),
        (2, {"mpp": 250.0}, "bad value", "expected micrometres"),
        (4, {"ctf": 1.2}, "bad value", "0..1"),
        (4, {"ctf": -0.1}, "bad value", "0..1"),
        (4, {"z_um": -1600.0}, "bad value", "not nanometres"),
        (3, {"path": "./sharp.png"}, "listed twice", "row 2"),
        (2, {"target": "./sharp.png"}, "bad value", "target is the image itself"),
        (6, {"patient": "a "}, "patient leak", "patient 'a' is in split val here (row 6) and in split train (row 2)"),
        (6, {"patient": "", "slide": "1"}, "slide leak", "slide '1'"),
        (6, {"path": "copy of val.png", "target": "fused.png"}, "shared file", "fused.png"),
    ],
)
def test_a_defect_of_the_table_names_its_row_and_no_other(folder, number, change, kind, words):
    save(folder / "copy of val.png", cv2.GaussianBlur(tissue(3), (0, 0), 1))
    rows = with_row(replace(ROWS[number - 2], **change), number)
    (one,) = check_manifest(manifest_of(folder, rows), OPTIONS)
    assert (one.row, one.path, one.kind) == (number, rows[number - 2].path, kind)
    assert words in one.reason
    assert kind in KINDS


@pytest.mark.parametrize(
    ("name", "content", "kind", "words"),
    [
        ("sharp.png", lambda old: old[: len(old) // 2], "unreadable", "truncated"),
        ("gray.jpg", lambda old: old[: len(old) // 2], "unreadable", "truncated"),
        ("test.tif", lambda old: old[:-5000], "unreadable", ""),
        ("sharp.png", lambda old: b"", "unreadable", "no image"),
        ("sharp.png", lambda old: b"hello", "unreadable", "no image"),
        ("sharp.png", lambda old: bomb(), "unreadable", "pixels"),
        ("fused.png", lambda old: old[: len(old) // 2], "unreadable", "target fused.png"),
    ],
)
def test_a_damaged_file_is_told_at_every_row_that_needs_it(folder, name, content, kind, words):
    rows = [number for number, row in enumerate(ROWS, start=2) if name in (row.path, row.target)]
    (folder / name).write_bytes(content((folder / name).read_bytes()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        defects = check_manifest(manifest_of(folder), OPTIONS)
    assert [(one.row, one.kind) for one in defects] == [(number, kind) for number in rows]
    assert all(words in one.reason for one in defects)
    assert "on_unreadable" not in defects[0].reason, "a remedy for a run under way, of which there is none"


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros((80, 80), np.uint16), "I;16"),
        (np.zeros((80, 80), np.float32), "mode F"),
        (np.zeros((3, 80, 80), np.uint8), "holds 3 images of one size"),
    ],
    ids=["16 bit", "float", "stack"],
)
def test_depths_and_stacks_that_training_cannot_read_are_named(folder, pixels, words):
    tifffile.imwrite(folder / "test.tif", pixels, photometric="minisblack")
    (one,) = check_manifest(manifest_of(folder), OPTIONS)
    assert (one.row, one.kind) == (7, "unreadable")
    assert words in one.reason


def test_a_folder_in_the_place_of_an_image_and_a_link_to_itself_are_told(folder):
    (folder / "sharp.png").unlink()
    (folder / "sharp.png").mkdir()
    (folder / "val.png").unlink()
    (folder / "val.png").symlink_to(folder / "val.png")
    assert found(folder) == [(2, "unreadable"), (6, "missing file")]


@given(
    places=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=30),
    suffix=st.sampled_from(["png", "jpg", "tif"]),
)
def test_no_damage_raises(tmp_path, places, suffix):
    path = save(tmp_path / f"a.{suffix}", tissue(0, 70, 70))
    content = bytearray(path.read_bytes())
    for place, value in places:
        content[int(place * len(content))] = value
    path.write_bytes(bytes(content))
    defects = check_manifest(Manifest(tmp_path / "m.csv", (Row(path=path.name),)), OPTIONS)
    assert all(one.row == 2 for one in defects)


def test_images_smaller_than_a_crop_and_partners_of_other_size_are_told(folder):
    save(folder / "val.png", tissue(4, 63, 200))
    save(folder / "z+1.png", cv2.GaussianBlur(tissue(3), (0, 0), 3)[:-1])
    assert found(folder) == [(5, "wrong size"), (6, "wrong size")]
    assert found(folder, options=replace(OPTIONS, crop_px=63)) == [(5, "wrong size")]


def test_a_manifest_without_training_rows_is_told_at_the_header(folder):
    assert found(folder, (ROWS[4], ROWS[5])) == [(1, "no training rows")]


def test_a_patient_in_three_splits_is_told_at_the_first_row_of_each_later_one(folder):
    rows = tuple(replace(row, patient="A", slide="") for row in ROWS)
    defects = check_manifest(manifest_of(folder, rows), OPTIONS)
    assert [(one.row, one.kind) for one in defects] == [(6, "patient leak"), (7, "patient leak")]
    assert "(row 2 and 3 more)" in defects[0].reason


def test_a_file_listed_twice_is_told_once_though_its_rows_are_in_two_splits(folder):
    assert found(folder, with_row(Row(path="sharp.png", split="val"), 6)) == [(6, "listed twice")]


def test_slides_of_two_patients_may_share_a_number_and_a_leaking_patient_is_told_once(folder):
    assert found(folder, tuple(replace(row, slide="1") for row in ROWS)) == []
    rows = tuple(replace(row, slide="1", patient="A") for row in ROWS)
    assert found(folder, rows) == [(6, "patient leak"), (7, "patient leak")]


def jpeg(pixels: np.ndarray, quality: int) -> np.ndarray:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG", quality=quality)
    return np.array(Image.open(out))


def resized(pixels: np.ndarray, factor: float) -> np.ndarray:
    return cv2.resize(pixels, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA)


DISGUISES = {
    "the same file": lambda pixels: pixels,
    "JPEG": lambda pixels: jpeg(pixels, 40),
    "smaller, JPEG": lambda pixels: jpeg(resized(pixels, 0.7), 60),
    "larger": lambda pixels: resized(pixels, 1.3),
    "flipped": lambda pixels: pixels[:, ::-1],
    "upside down": lambda pixels: pixels[::-1],
    "turned": lambda pixels: np.rot90(pixels),
    "turned and flipped, JPEG": lambda pixels: jpeg(np.ascontiguousarray(np.rot90(pixels, 3)[:, ::-1]), 60),
    "darker": lambda pixels: (pixels * 0.7).astype(np.uint8),
    "another stain": lambda pixels: pixels[..., ::-1],
    "blurred": lambda pixels: cv2.GaussianBlur(pixels, (0, 0), 6),
    "cut by some pixels": lambda pixels: pixels[3:-2, 2:-3],
}


@pytest.mark.parametrize("disguise", DISGUISES.values(), ids=DISGUISES)
def test_a_picture_in_another_split_is_found_in_any_disguise(folder, disguise):
    save(folder / "val.png", np.ascontiguousarray(disguise(tissue(1, 256, 320))))
    save(folder / "sharp.png", tissue(1, 256, 320))
    (one,) = check_manifest(manifest_of(folder), OPTIONS)
    assert (one.row, one.path, one.kind) == (6, "val.png", "duplicate")
    assert "row 2 (sharp.png) of split train" in one.reason
    assert found(folder, options=replace(OPTIONS, duplicates=False)) == []


def test_a_copy_within_a_split_is_no_defect_and_a_clean_partner_stands_for_its_planes(folder):
    save(folder / "gray.jpg", tissue(1))
    assert found(folder) == []
    save(folder / "test.tif", tissue(3))
    assert found(folder) == [(7, "duplicate")]


def test_sixty_tiles_of_like_tissue_are_no_duplicates():
    prints = [fingerprint(pixels, pixels[..., 1]) for pixels in (tissue(seed, 128, 128) for seed in range(60))]
    blocks = [one.block for one in prints if one.block is not None]
    assert len(blocks) == 60
    assert not list(lookalikes(blocks[:30], blocks[30:]))
    assert len({one.digest for one in prints}) == 60


def test_blank_tiles_and_specks_have_nothing_to_be_recognised_by(folder):
    rng = np.random.default_rng(0)
    for name in ("sharp.png", "val.png"):
        glass = rng.normal(240, 1, (128, 128, 3))
        glass[40:44, 60:64] = 30
        save(folder / name, glass.round().astype(np.uint8))
    save(folder / "gray.jpg", np.full((128, 128, 3), 255, np.uint8))
    save(folder / "test.tif", np.full((128, 128, 3), 255, np.uint8))
    assert found(folder) == []
    glass = np.array(Image.open(folder / "sharp.png"))
    assert fingerprint(glass, glass[..., 0]).block is None


@given(seed=st.integers(0, 1000), turn=st.integers(0, 7))
def test_a_turned_picture_has_a_turned_fingerprint(seed, turn):
    pixels = tissue(seed, 96, 96)
    other = np.rot90(pixels, turn % 4)
    other = np.ascontiguousarray(other[:, ::-1] if turn >= 4 else other)
    one, two = (fingerprint(image, np.ascontiguousarray(image[..., 1])).block for image in (pixels, other))
    (same,) = lookalikes([one], [two])
    assert same.correlation == pytest.approx(1, abs=1e-3)
    assert turn == 0 or correlation(one, two) < SAME_CORRELATION


def shifted_pair(z_um: float, shift: tuple[int, int], size: int = 256) -> tuple[np.ndarray, np.ndarray]:
    """Gray clean and degraded image; what the latter shows lies `shift` px right and down of what the former does."""
    pixels = torch.from_numpy(tissue(7, size + 16, size + 16)).permute(2, 0, 1)[None] / 255
    stack = simulate_stack(pixels, torch.tensor([z_um]), setting=Setting.ideal(), generator=torch.Generator().manual_seed(0))
    clean, degraded = (image[0].mean(dim=0).numpy() * 255 for image in (stack.clean, stack.planes))
    x, y = shift
    return clean[8 : 8 + size, 8 : 8 + size], degraded[8 - y : 8 - y + size, 8 - x : 8 - x + size]


@pytest.mark.parametrize("z_um", [0.0, 2.0, -4.0, 7.0])
@pytest.mark.parametrize("shift", [(0, 0), (3, -2), (-7, 5)])
def test_a_shift_is_found_to_a_third_of_a_pixel_though_one_member_is_out_of_focus(z_um, shift):
    measured = shift_between(*shifted_pair(z_um, shift))
    assert (measured.x_px, measured.y_px) == pytest.approx(shift, abs=0.3)
    assert measured.certain
    assert measured.surely_exceeds(1) == (shift != (0, 0))


@given(x=st.floats(-30, 30), y=st.floats(-30, 30))
def test_fractions_of_a_pixel_are_measured(x, y):
    image = tissue(8)[..., 1].astype(np.float32)
    fy, fx = np.fft.fftfreq(256)[:, None], np.fft.rfftfreq(256)
    moved = np.fft.irfft2(np.fft.rfft2(image) * np.exp(-2j * np.pi * (fx * x + fy * y)), s=image.shape).astype(np.float32)
    measured = shift_between(image, moved)
    assert (measured.x_px, measured.y_px) == pytest.approx((x, y), abs=0.1)


def test_a_rotation_that_leaves_the_middle_in_place_is_seen_at_the_corners():
    image = cv2.GaussianBlur(tissue(9, 1100, 1100)[..., 1], (0, 0), 1).astype(np.float32)
    turned = cv2.warpAffine(
        image, cv2.getRotationMatrix2D((549.5, 549.5), 0.6, 1), (1100, 1100), flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT
    )
    assert not worst_shift(image, image).surely_exceeds(0.5)
    assert worst_shift(image, turned).surely_exceeds(1.5)


def test_blank_and_tiny_and_unrelated_pairs_raise_no_alarm_about_shift():
    rng = np.random.default_rng(0)
    for _ in range(5):
        assert not shift_between(*rng.normal(240, 1, (2, 256, 256)).astype(np.float32)).certain
    flat = np.full((128, 128), 240, np.float32)
    assert not shift_between(flat, flat).certain
    assert worst_shift(flat[:63], flat[:63]) is None
    assert not worst_shift(tissue(1)[..., 1].astype(np.float32), tissue(2)[..., 1].astype(np.float32)).certain


@pytest.mark.parametrize("fluorescent", [False, True])
@pytest.mark.parametrize(("apart_px", "kinds"), [(0, []), (5, []), (14, ["unregistered"])])
def test_two_stains_of_one_tissue_may_lie_a_little_apart_and_look_otherwise(tmp_path, fluorescent, apart_px, kinds):
    """Also where nuclei are bright on black. One stain under two names is none of these, and keeps the strict limit."""
    scene = tissue(3, 320, 320)
    other = scene[20 : 20 + 256, 20 + apart_px : 276 + apart_px][..., ::-1]
    save(tmp_path / "he.png", scene[20:276, 20:276])
    save(tmp_path / "other.png", 255 - other if fluorescent else other)
    rows = [Row(path="he.png", stain="he", target="other.png", extra=(("target_stain", name),)) for name in ("pas", " HE")]
    told = []
    for row in rows:
        write_manifest(tmp_path / "pairs.csv", [row])
        told.append([one.kind for one in check_manifest(read_manifest(tmp_path / "pairs.csv"), OPTIONS)])
    assert told[0] == kinds
    if apart_px:
        assert told[1] in (["unregistered"], ["unrelated"])


def test_an_image_may_have_partners_in_several_stains_of_one_split(tmp_path):
    for name in ("he", "pas", "ihc"):
        save(tmp_path / f"{name}.png", tissue(3))
    pair = Row(path="he.png", stain="he", target="pas.png", patient="A", extra=(("target_stain", "pas"),))
    other = replace(pair, target="ihc.png", extra=(("target_stain", "ihc"),))

    def kinds(*rows):
        write_manifest(tmp_path / "pairs.csv", rows)
        return [one.kind for one in check_manifest(read_manifest(tmp_path / "pairs.csv"), OPTIONS)]

    assert kinds(pair, other) == []
    assert kinds(pair, pair) == ["listed twice"]
    assert "listed twice" in kinds(pair, replace(other, split="val"))
    assert "patient leak" in kinds(pair, replace(other, split="val"))


def test_a_pair_that_lies_apart_is_told_with_its_shift_and_the_limit_is_the_user_s(folder):
    clean = tissue(3, 262, 262)
    save(folder / "fused.png", clean[3:-3, 3:-3])
    save(folder / "z-1.png", cv2.GaussianBlur(clean, (0, 0), 2)[3:-3, 3:-3])
    save(folder / "z+1.png", cv2.GaussianBlur(clean, (0, 0), 3)[3:-3, :-6])
    (one,) = check_manifest(manifest_of(folder), OPTIONS)
    assert (one.row, one.kind) == (5, "unregistered")
    assert "+3.0 px right and +0.0 px down" in one.reason.replace("-0.0", "+0.0")
    assert found(folder, options=replace(OPTIONS, max_shift_px=4.0)) == []


def test_partners_of_other_scenes_or_turned_are_told(folder):
    save(folder / "z-1.png", cv2.GaussianBlur(tissue(33), (0, 0), 2))
    save(folder / "z+1.png", cv2.GaussianBlur(tissue(3)[:, ::-1], (0, 0), 2))
    assert found(folder) == [(4, "unrelated"), (5, "unrelated")]


def test_the_number_of_threads_changes_nothing(folder):
    save(folder / "val.png", tissue(1))
    (folder / "gray.jpg").write_bytes(b"")
    one, three = (check_manifest(manifest_of(folder), replace(OPTIONS, workers=workers)) for workers in (1, 3))
    assert one == three
    assert [(found.row, found.kind) for found in one] == [(3, "unreadable"), (6, "duplicate")]


def test_slides_are_opened_and_not_decoded_and_known_by_their_content(tmp_path):
    pytest.importorskip("openslide")
    pixels = tissue(1, 512, 512)
    options = {"tile": (128, 128), "photometric": "rgb", "compression": "zlib", "metadata": None}
    for name in ("a.svs", "b.svs"):
        tifffile.imwrite(tmp_path / name, pixels, **options)
    (tmp_path / "cut.svs").write_bytes((tmp_path / "a.svs").read_bytes()[:1000])
    rows = (Row(path="a.svs"), Row(path="b.svs", split="val"), Row(path="cut.svs"))
    assert found(tmp_path, rows) == [(3, "duplicate"), (4, "unreadable")]
    assert found(tmp_path, rows[:1], replace(OPTIONS, crop_px=600)) == [(2, "wrong size")]


def test_without_openslide_a_slide_is_a_defect_with_the_remedy(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openslide", None)
    (tmp_path / "a.svs").write_bytes(b"slide")
    (one,) = check_manifest(manifest_of(tmp_path, (Row(path="a.svs"),)), OPTIONS)
    assert 'pip install "pathorestore[slides]"' in one.reason


@pytest.fixture
def decoded(monkeypatch):
    """How often files were examined."""
    calls = []
    examine = check.examine
    monkeypatch.setattr(check, "examine", lambda *words: calls.append(words) or examine(*words))
    return calls


def touch(path: Path) -> None:
    there = path.stat()
    os.utime(path, ns=(there.st_atime_ns, there.st_mtime_ns + 1_000_000))


CHANGES = {
    "a file": lambda folder: touch(folder / "gray.jpg"),
    "a target": lambda folder: touch(folder / "fused.png"),
    "the manifest": lambda folder: (folder / "m.csv").write_text((folder / "m.csv").read_text().replace("A", "F")),
    "the stamp": lambda folder: stamp_path(folder / "m.csv").write_text("{}"),
    "the stamp's end": lambda folder: stamp_path(folder / "m.csv").write_bytes(stamp_path(folder / "m.csv").read_bytes()[:-9]),
    "the rules": lambda folder: stamp_path(folder / "m.csv").write_text(
        stamp_path(folder / "m.csv").read_text().replace('"rules": ', '"rules": 9')
    ),
}


def test_what_has_passed_is_not_decoded_again_until_something_changes(folder, decoded):
    manifest = manifest_of(folder)
    assert check_or_reuse(manifest, OPTIONS) == []
    first = len(decoded)
    assert first == 5, "a target is decoded once for all its planes"
    assert check_or_reuse(manifest, OPTIONS) == []
    assert len(decoded) == first
    for change in CHANGES.values():
        change(folder)
        assert check_or_reuse(read_manifest(manifest.path), OPTIONS) == []
        assert len(decoded) == 2 * first
        assert check_or_reuse(read_manifest(manifest.path), OPTIONS) == []
        assert len(decoded) == 2 * first
        decoded[:] = decoded[:first]


@pytest.mark.parametrize(
    ("change", "again"),
    [
        ({}, False),
        ({"workers": 2}, False),
        ({"crop_px": 32}, False),
        ({"crop_px": 65}, True),
        ({"max_shift_px": 2.0}, False),
        ({"max_shift_px": 0.5}, True),
        ({"duplicates": False}, False),
    ],
)
def test_a_stamp_serves_what_asks_no_more_than_it_did(folder, decoded, change, again):
    manifest = manifest_of(folder)
    check_and_stamp(manifest, OPTIONS)
    decoded.clear()
    check_or_reuse(manifest, replace(OPTIONS, **change))
    assert bool(decoded) == again


def test_a_file_that_vanishes_after_the_stamp_is_told(folder):
    manifest = manifest_of(folder)
    require_checked(manifest, OPTIONS)
    (folder / "gray.jpg").unlink()
    assert [one.kind for one in check_or_reuse(manifest, OPTIONS)] == ["missing file"]


def test_defects_leave_no_stamp(folder):
    (folder / "gray.jpg").unlink()
    assert check_or_reuse(manifest_of(folder), OPTIONS)
    assert not stamp_path(folder / "m.csv").exists()


def test_a_stamp_says_what_was_looked_for_and_holds_every_file(folder):
    manifest = manifest_of(folder)
    check_and_stamp(manifest, replace(OPTIONS, max_shift_px=float("inf")))
    stamp = json.loads(stamp_path(manifest.path).read_text())
    assert (stamp["crop_px"], stamp["duplicates"]) == (64, True)
    assert sorted(stamp["files"]) == sorted({name for row in ROWS for name in (row.path, row.target) if name})
    assert check_or_reuse(manifest, replace(OPTIONS, max_shift_px=float("inf"))) == []


def test_a_folder_that_cannot_be_written_is_no_error(folder, monkeypatch):
    def refuse(path: Path, data: bytes) -> None:
        raise OSError(30, "Read-only file system", str(path))

    manifest = manifest_of(folder)
    monkeypatch.setattr(check, "write_atomic", refuse)
    require_checked(manifest, OPTIONS)
    assert not stamp_path(manifest.path).exists()


def test_what_training_asks_first_names_ten_defects_and_the_command(folder):
    require_checked(manifest_of(folder), OPTIONS)
    rows = tuple(Row(path=f"gone{number}.png") for number in range(12))
    manifest = manifest_of(folder, rows)
    with pytest.raises(ValueError, match="has 12 defects: row 2 ") as caught:
        require_checked(manifest.path, OPTIONS)
    text = str(caught.value)
    assert "row 11 (gone9.png): missing file" in text
    assert "gone10.png" not in text
    assert f"and 2 more; `pathorestore data check {manifest.path}`" in text


@pytest.mark.parametrize("options", [{"crop_px": -1}, {"max_shift_px": -1.0}, {"max_shift_px": float("nan")}, {"workers": -1}])
def test_options_are_checked_at_birth(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        CheckOptions(**options)


def real(test: Callable[..., None]) -> Callable[..., None]:
    """Needs the folder of images named by PATHORESTORE_DATA."""
    told = pytest.mark.skipif("PATHORESTORE_DATA" not in os.environ, reason="PATHORESTORE_DATA is not set")
    return pytest.mark.real_data(told(test))


@pytest.fixture
def sections() -> list[np.ndarray]:
    """Windows of real sections, 256 px, no two of them overlapping."""
    folder = Path(os.environ["PATHORESTORE_DATA"])
    windows = []
    for pixels in (read_rgb(path) for path in files_under(folder, IMAGE_SUFFIXES)):
        rows, columns = (range(0, side - 255, 256) for side in pixels.shape[:2])
        windows += [np.ascontiguousarray(pixels[y : y + 256, x : x + 256]) for y in rows for x in columns]
    return windows


@real
def test_no_two_windows_of_real_sections_are_taken_for_one_and_their_copies_are(sections):
    blocks = [fingerprint(pixels, cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)).block for pixels in sections]
    copies = [
        fingerprint(copy, cv2.cvtColor(copy, cv2.COLOR_RGB2GRAY)).block for copy in (jpeg(resized(pixels, 0.7), 60) for pixels in sections)
    ]
    known = [(block, copy) for block, copy in zip(blocks, copies, strict=True) if block is not None and copy is not None]
    assert len(known) > 0.9 * len(sections)
    pairs = {(one.first, one.second) for one in lookalikes([block for block, _ in known], [copy for _, copy in known])}
    assert pairs == {(place, place) for place in range(len(known))}


@real
def test_real_sections_out_of_focus_raise_no_alarm_about_shift(sections):
    certain = 0
    for number, pixels in enumerate(sections[::8]):
        setting = (Setting.ideal, Setting.scanner, Setting.shifted)[number % 3]()
        image = torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255
        stack = simulate_stack(image, torch.tensor([-3.0, 6.0]), setting=setting, generator=torch.Generator().manual_seed(number))
        for plane in stack.planes:
            shift = shift_between(stack.clean[0].mean(dim=0).numpy() * 255, plane.mean(dim=0).numpy() * 255)
            assert not shift.surely_exceeds(1.0)
            certain += shift.certain
    assert certain > 0.5 * 2 * len(sections[::8])
