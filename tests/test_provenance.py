"""The record of how an output was made: stable, strict, found again in every format."""

import json
from dataclasses import fields, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from pathorestore.pipelines.image_file import ImageFileError, read_image_file, write_image_file
from pathorestore.pipelines.provenance import RESTORED_NOTICE, Provenance, read_provenance

RECORD = Provenance(
    version="0.1.0",
    model_id="mop-tiny",
    weights_sha256="ab" * 32,
    seed=3,
    parameters={"tile_px": 256, "coarse_only": False, "device": "cpu"},
    input_sha256="cd" * 32,
    pixel_um=0.25,
    created_utc="2026-01-31T12:00:00+00:00",
)

parameters = st.dictionaries(
    st.text(max_size=8), st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20)
)


@given(parameters=parameters, seed=st.integers(0, 2**63), pixel_um=st.none() | st.floats(0.001, 100), model_id=st.text(max_size=30))
def test_a_record_survives_json(parameters, seed, pixel_um, model_id):
    record = replace(RECORD, parameters=parameters, seed=seed, pixel_um=pixel_um, model_id=model_id)
    text = record.to_json()
    assert Provenance.from_json(text) == record
    assert text.isascii()
    assert "\n" not in text


def test_equal_records_give_equal_bytes_whatever_the_order_of_their_parameters():
    backwards = dict(reversed(RECORD.parameters.items()))
    assert replace(RECORD, parameters=backwards).to_json() == RECORD.to_json()
    assert list(json.loads(RECORD.to_json()))[1:] == [field.name for field in fields(Provenance)]


def test_a_record_says_that_it_is_not_for_diagnosis():
    assert json.loads(RECORD.to_json())["notice"] == RESTORED_NOTICE == "AI-restored, not for primary diagnosis"


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda record: record.pop("seed"), r"missing \['seed'\]"),
        (lambda record: record.update(extra=1), r"unknown \['extra'\]"),
        (lambda record: record.update(pathorestore_provenance=2), "another format"),
        (lambda record: record.pop("pathorestore_provenance"), "not a provenance record"),
    ],
)
def test_a_record_with_other_keys_is_refused(change, words):
    record = json.loads(RECORD.to_json())
    change(record)
    with pytest.raises(ValueError, match=words):
        Provenance.from_json(json.dumps(record))


@pytest.mark.parametrize("created", ["", "yesterday", "2026-01-31T12:00:00", "2026-01-31T12:00:00+02:00"])
def test_the_time_of_creation_must_be_utc(created):
    with pytest.raises(ValueError, match="expected ISO 8601 in UTC"):
        replace(RECORD, created_utc=created)


def test_a_parameter_that_json_cannot_hold_is_refused():
    with pytest.raises(ValueError, match="parameter 'tile' is a tuple"):
        replace(RECORD, parameters={"tile": (1, 2)})


def plain_file(folder, name="plain.png"):
    Image.fromarray(np.arange(75, dtype=np.uint8).reshape(5, 5, 3)).save(folder / name)
    return folder / name


@pytest.mark.parametrize("suffix", [".png", ".tif", ".jpg"])
def test_a_record_is_found_again_in_every_format_and_absent_from_a_plain_file(tmp_path, suffix):
    source = read_image_file(plain_file(tmp_path))
    record = replace(RECORD, model_id="modèle µ")
    write_image_file(tmp_path / f"out{suffix}", source.image, source, record)
    assert read_provenance(tmp_path / f"out{suffix}") == record
    assert read_provenance(plain_file(tmp_path, f"plain{suffix}")) is None


def test_a_bitmap_carries_none(tmp_path):
    assert read_provenance(plain_file(tmp_path, "x.bmp")) is None


def test_the_record_is_read_without_decoding_pixels(tmp_path):
    source = read_image_file(plain_file(tmp_path))
    write_image_file(tmp_path / "out.png", source.image, source, RECORD)
    content = (tmp_path / "out.png").read_bytes()
    (tmp_path / "cut.png").write_bytes(content[: content.index(b"IDAT") + 6])
    assert read_provenance(tmp_path / "cut.png") == RECORD


def test_a_record_of_another_program_is_not_ours_and_a_damaged_one_is_named(tmp_path):
    source = read_image_file(plain_file(tmp_path))
    write_image_file(tmp_path / "out.jpg", source.image, source, RECORD)
    content = (tmp_path / "out.jpg").read_bytes()
    (tmp_path / "other.jpg").write_bytes(content.replace(b"pathorestore_provenance", b"someoneelses_provenance"))
    assert read_provenance(tmp_path / "other.jpg") is None
    (tmp_path / "damaged.jpg").write_bytes(content.replace(b'"seed"', b'"sEEd"'))
    with pytest.raises(ImageFileError, match=r"damaged\.jpg: has no readable provenance"):
        read_provenance(tmp_path / "damaged.jpg")


def test_what_is_no_image_has_no_provenance(tmp_path):
    (tmp_path / "x.png").write_bytes(b"text")
    with pytest.raises(ImageFileError, match="not an image"):
        read_provenance(tmp_path / "x.png")
    with pytest.raises(FileNotFoundError):
        read_provenance(tmp_path / "missing.png")
