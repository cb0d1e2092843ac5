"""A deep-zoom page of a slide that works from the disk, without a network: the slider, the layers and the record in one HTML file."""

import html
import re
import shutil
import uuid
from collections.abc import Callable
from contextlib import suppress
from importlib.resources import files
from pathlib import Path
from typing import Any

from pathorestore.atomic import make_folder
from pathorestore.pipelines.provenance import RESTORED_NOTICE
from pathorestore.pipelines.web_page import filled, hashed, script_json
from pathorestore.slide.viewer_images import TILE_PX, Picture, View

Progress = Callable[[int, int], None]

PAGE, LICENCE = "index.html", "openseadragon-LICENSE.txt"
_MARK = '<meta name="generator" content="pathorestore view">'
_OURS = re.compile(r"index\.html|openseadragon-LICENSE\.txt|(restored|degraded|layer\d{1,2})(_files|\.dzi)")


def page_html(view: View) -> str:
    """The whole page but its tiles. It runs no script, takes no style and opens no address that is not named in it by its hash or kind."""
    style, library, script = _web("viewer.css"), _library(), _web("viewer.js")
    policy = [
        "default-src 'none'",
        f"script-src {hashed(library)} {hashed(script)}",
        f"style-src {hashed(style)}",
        "img-src 'self' file: data:",  # 'self' means nothing to some browsers where the page is a file
        "base-uri 'none'",
        "form-action 'none'",
    ]
    parts = {
        "mark": _MARK,
        "policy": html.escape("; ".join(policy), quote=False),
        "title": html.escape(view.restored.label),
        "style": style,
        "data": script_json(page_data(view)),
        "library": library,
        "script": script,
    }
    return filled(_web("viewer.html"), parts)


def page_data(view: View) -> dict[str, Any]:
    """What the page's script works on: pictures from the bottom to the top, pixel size, record."""
    record, trouble = view.record, view.trouble
    return {
        "tile_px": TILE_PX,
        "pictures": [_picture_data(picture) for picture in view.pictures],
        "compare": view.degraded is not None,
        "mpp": view.mpp,
        "notice": "" if record is None and not trouble else str(record.notice if record and record.notice else RESTORED_NOTICE),
        "record": [[name.replace("_", " "), value] for name, value in record.lines()] if record else [],
        "trouble": trouble,
    }


def write_view(view: View, folder: Path, *, overwrite: bool = False, progress: Progress = lambda _done, _total: None) -> int:
    """Write page and tiles, in the DeepZoom layout, into a new folder, and return the number of tiles.

    The folder appears whole or not at all. Raises ValueError if it exists, unless an earlier view is to be overwritten; OSError if it
    cannot be written; ImageFileError where a slide is damaged.
    """
    check_folder(folder, overwrite=overwrite)
    make_folder(folder.parent)
    part = folder.parent / f".pathorestore-{uuid.uuid4().hex}.part"
    try:
        part.mkdir()
        tiles = _fill(part, view, progress)
        check_folder(folder, overwrite=overwrite)  # it may have come into being meanwhile
        _put(part, folder)
    except BaseException as error:
        shutil.rmtree(part, ignore_errors=True)
        if isinstance(error, OSError):
            raise OSError(error.errno, f"cannot be written: {error.strerror}", str(folder)) from error
        raise
    return tiles


def check_folder(folder: Path, *, overwrite: bool) -> None:
    """Raise ValueError if a view may not be written there: never over a file, nor over a folder that holds anything but a view."""
    if not folder.exists() and not folder.is_symlink():
        return
    if folder.is_symlink() or not folder.is_dir():
        raise ValueError(f"{folder}: is no folder, and a view is one; name another with -o")
    if not overwrite:
        raise ValueError(f"{folder}: exists already; --overwrite replaces it if it is a view, -o names another")
    names = sorted(entry.name for entry in folder.iterdir())
    strangers = [name for name in names if not _OURS.fullmatch(name)]
    if strangers or (names and not _is_page(folder / PAGE)):
        what = f"holds {strangers[0]!r}, which belongs to no view" if strangers else "holds no page of a view"
        raise ValueError(f"{folder}: {what}, so it is not replaced; name another folder with -o")


def _fill(part: Path, view: View, progress: Progress) -> int:
    total, done = sum(picture.tiles.tile_count for picture in view.pictures), 0
    progress(0, total)
    for picture in view.pictures:
        # the same that OpenSeadragon and other viewers read, though this page has it inside
        (part / f"{picture.key}.dzi").write_text(picture.tiles.get_dzi(picture.suffix), encoding="utf-8")
        folders = [part / f"{picture.key}_files" / str(level) for level in range(picture.tiles.level_count)]
        for folder in folders:
            folder.mkdir(parents=True)
        for level, column, row in picture.addresses:
            (folders[level] / f"{column}_{row}.{picture.suffix}").write_bytes(picture.tile(level, column, row))
            done += 1
            progress(done, total)
    (part / LICENCE).write_text(_web("openseadragon/LICENSE"), encoding="utf-8")
    (part / PAGE).write_text(page_html(view), encoding="utf-8", newline="\n")
    return total


def _put(part: Path, folder: Path) -> None:
    """Rename the finished folder to its place; an earlier one steps aside first, and back if that fails."""
    if not folder.exists():
        part.rename(folder)
        return
    aside = folder.parent / f".pathorestore-{uuid.uuid4().hex}.part"
    folder.rename(aside)
    try:
        part.rename(folder)
    except BaseException:
        with suppress(OSError):
            aside.replace(folder)
        raise
    shutil.rmtree(aside, ignore_errors=True)


def _is_page(path: Path) -> bool:
    with suppress(OSError), path.open("rb") as file:
        return _MARK.encode() in file.read(2048)
    return False


def _picture_data(picture: Picture) -> dict[str, Any]:
    width, height = picture.size_px
    return {
        "key": picture.key,
        "label": picture.label,
        "width": width,
        "height": height,
        "max_level": picture.tiles.level_count - 1,
        "suffix": picture.suffix,
        "legend": picture.legend,
    }


def _web(name: str) -> str:
    return files("pathorestore.slide").joinpath("web", name).read_text(encoding="utf-8")


def _library() -> str:
    """OpenSeadragon without the address of its source map, which only developers of it have."""
    return _web("openseadragon/openseadragon.min.js").partition("//# sourceMappingURL=")[0]
