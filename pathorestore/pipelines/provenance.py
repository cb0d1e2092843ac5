"""What an output says about itself: which program, weights, seed and input made it, inside the file's own metadata."""

import html
import json
import re
import warnings
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, Self

from pathorestore.pipelines.raster import ImageFileError, sniff

RESTORED_NOTICE = "AI-restored, not for primary diagnosis"
ENLARGED_NOTICE = "AI-enlarged, not for primary diagnosis"
GENERATED_MARK = ".generated"
"""In the names that are suggested for files with generated detail, before the suffix."""

GENERATED_NOTICE = "AI-generated detail, not for diagnosis"
STAINED_NOTICE = "virtually stained by AI, no real stain, not for diagnosis"
GENERATED_NOTE = "the input holds generated detail, and so does the output, which says so too"
SIMULATED_NOTICE = "simulated from another image, not for diagnosis"

PNG_KEYWORD = "pathorestore"
EXIF_IFD, EXIF_DESCRIPTION, EXIF_SOFTWARE, EXIF_COMMENT = 0x8769, 0x010E, 0x0131, 0x9286
EXIF_ASCII = b"ASCII\0\0\0"  # character code of UserComment, EXIF 2.3 table 9

_MARK, _FORMAT = "pathorestore_provenance", 1

Parameter = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """How one output was made.

    version: of this package. model_id: which restorer. weights_sha256: of its weights, None where there are none. seed: of its noise.
    parameters: the settings that change pixels. input_sha256: of the input file's bytes. pixel_um: side of a pixel, None if unknown.
    created_utc: ISO 8601 in UTC, given by the caller; None where it is kept beside the file, so that equal runs give equal bytes.
    notice: what a viewer of the image must know.
    Holds no file name and no date of the input: those may identify a patient.
    """

    version: str
    model_id: str
    weights_sha256: str | None
    seed: int
    parameters: Mapping[str, Parameter] = field(default_factory=dict)
    input_sha256: str
    pixel_um: float | None
    created_utc: str | None
    notice: str = RESTORED_NOTICE

    def __post_init__(self) -> None:
        try:
            offset = timedelta(0) if self.created_utc is None else datetime.fromisoformat(self.created_utc).utcoffset()
        except (TypeError, ValueError):
            offset = None
        if offset != timedelta(0):
            raise ValueError(f"created_utc is {self.created_utc!r}; expected ISO 8601 in UTC such as 2026-01-31T12:00:00+00:00")
        for name, value in self.parameters.items():
            if not isinstance(value, str | int | float | bool | None):
                raise ValueError(f"parameter {name!r} is a {type(value).__name__}; expected text, a number, a truth value or None")

    def to_json(self) -> str:
        """One line of ASCII JSON; keys in the order of the fields, parameters sorted, so equal records give equal bytes."""
        record: dict[str, Any] = {_MARK: _FORMAT} | {item.name: getattr(self, item.name) for item in fields(self)}
        record["parameters"] = dict(sorted(self.parameters.items()))
        return json.dumps(record)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """Undo `to_json`. Raises ValueError for other JSON, another format number, or a missing or unknown key."""
        record = _parsed(text)
        if record is None:
            raise ValueError(f"not a provenance record of pathorestore: {text[:60]!r}")
        if record.pop(_MARK) != _FORMAT:
            raise ValueError(f"a provenance record of another format than {_FORMAT}; read it with the newer pathorestore that wrote it")
        known = {item.name for item in fields(cls)}
        if record.keys() != known:
            raise ValueError(f"provenance keys differ: missing {sorted(known - record.keys())}, unknown {sorted(record.keys() - known)}")
        return cls(**record)

    def lines(self) -> list[tuple[str, str]]:
        """Label and value of every field, for a reader."""
        told = asdict(self) | ({} if self.created_utc else {"created_utc": "in the .provenance.json beside the file"})
        return [(name, _readable(value)) for name, value in told.items()]


def read_provenance(path: Path) -> Provenance | None:
    """The record inside a PNG, JPEG or TIFF file, None if it carries none; no pixel is decoded.

    Raises OSError if the file cannot be opened, ImageFileError if it is not an image or its record is damaged.
    """
    with path.open("rb") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            text = _READERS[sniff(file)](file)
            return None if text is None or _parsed(text) is None else Provenance.from_json(text)
        except Exception as error:  # decoders of damaged files raise whatever they met
            reason = str(error) if isinstance(error, ImageFileError) else f"has no readable provenance: {error}"
            raise ImageFileError(f"{path}: {reason}") from error


class Inherited(NamedTuple):
    """What an output says because its input did: parameters of the record, its notice, and a line about it for the user, if any."""

    parameters: Mapping[str, Parameter]
    notice: str
    notes: tuple[str, ...]

    def over(self, own: Mapping[str, Parameter]) -> dict[str, Parameter]:
        """Those of the work with what stays true of its input."""
        return {**self.parameters, **own} | ({"generative": True} if self.parameters else {})


def inherited(path: Path, own_notice: str) -> Inherited:
    """What is generated, or stained virtually, stays so whatever is done to it; a damaged record of the input says nothing.

    own_notice: what the work itself would say; of all notices that of a virtual stain says most, then that of generated detail.
    """
    try:
        record = read_provenance(path)
    except (OSError, ImageFileError):
        record = None
    told = {} if record is None or record.parameters.get("generative") is not True else record.parameters
    if not told:
        return Inherited({}, own_notice, ())
    kept = {name: told[name] for name in ("generative", "virtual_stain") if name in told}
    virtual = STAINED_NOTICE in (own_notice, record.notice if record else "")
    return Inherited(kept, STAINED_NOTICE if virtual else GENERATED_NOTICE, (GENERATED_NOTE,))


def _from_png(file: BinaryIO) -> str | None:
    from PIL.PngImagePlugin import PngImageFile

    text = PngImageFile(file).info.get(PNG_KEYWORD)
    return str(text) if text is not None else None


def _from_jpeg(file: BinaryIO) -> str | None:
    from PIL.JpegImagePlugin import JpegImageFile

    comment = JpegImageFile(file).getexif().get_ifd(EXIF_IFD).get(EXIF_COMMENT)
    if not isinstance(comment, bytes):
        return comment
    return comment.removeprefix(EXIF_ASCII).decode("ascii", "replace")


def _from_tiff(file: BinaryIO) -> str | None:
    import tifffile

    with tifffile.TiffFile(file) as tiff:
        text = str(tiff.pages[0].description)
    # the ImageDescription of an OME-TIFF is XML, in which the record is the image's Description
    inside = re.search(r"<Description>(.*?)</Description>", text, re.DOTALL) if text.startswith(("<?xml", "<OME")) else None
    return html.unescape(inside.group(1)) if inside else text


def _from_bmp(_: BinaryIO) -> None:
    return None  # the format has no place for one


_READERS = {"PNG": _from_png, "JPEG": _from_jpeg, "TIFF": _from_tiff, "BMP": _from_bmp}


def _parsed(text: str) -> dict[str, Any] | None:
    try:
        record = json.loads(text)
    except ValueError:
        return None
    return record if isinstance(record, dict) and _MARK in record else None


def _readable(value: object) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}={item}" for name, item in sorted(value.items())) or "none"
    return "unknown" if value is None else str(value)
