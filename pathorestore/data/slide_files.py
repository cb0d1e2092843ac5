"""What a whole-slide file says of itself, of its pixels only a patch being decoded."""

from pathlib import Path
from typing import NamedTuple

SLIDE_SUFFIXES = frozenset({".svs", ".ndpi", ".mrxs", ".scn", ".vms", ".vmu", ".bif", ".svslide", ".czi", ".dcm"})
_PATCH_PX = 64
_CACHE_MB = 8


class SlideHeader(NamedTuple):
    """Height and width of the largest level, side of its pixels in um where the file says so, and OpenSlide's hash of the content."""

    size_px: tuple[int, int]
    mpp: float | None
    digest: str


def slide_header(path: Path) -> SlideHeader:
    """Open a slide, look at a patch in its middle, and tell its facts.

    Raises UnreadableImage for files that OpenSlide cannot read, and ImportError where it is not installed.
    """
    from pathorestore.data.slide_crops import OpenSlides, naming, slide_mpp

    slides = OpenSlides(_CACHE_MB)
    slide = slides.get(path)
    with naming(path, slides):
        width, height = slide.dimensions
        slide.read_region((width // 2, height // 2), 0, (min(width, _PATCH_PX), min(height, _PATCH_PX)))
        facts = SlideHeader((height, width), slide_mpp(slide), slide.properties.get("openslide.quickhash-1", ""))
    slides.close(path)
    return facts
