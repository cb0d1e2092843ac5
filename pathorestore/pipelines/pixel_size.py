"""The side of a pixel in um, out of what image files say about resolution."""

import html
import re

from pathorestore.pipelines.raster import finite_positive

# Resolution fields are meant for printers: 72 or 300 dpi (350 or 85 um) says nothing about a microscope, 2540 dpi (10 um) does.
LARGEST_MICROSCOPE_UM = 10.0
SMALLEST_MICROSCOPE_UM = 0.005
INCH_UM, CENTIMETRE_UM, METRE_UM = 25_400.0, 10_000.0, 1_000_000.0

_UNITS_UM = {
    "µm": 1.0, "μm": 1.0, "um": 1.0, "micron": 1.0, "microns": 1.0, "micrometer": 1.0, "\\u00b5m": 1.0,
    "nm": 1e-3, "pm": 1e-6, "å": 1e-4, "mm": 1e3, "cm": 1e4, "m": 1e6, "in": INCH_UM, "inch": INCH_UM,
}  # fmt: skip


def from_density(x_per_unit: float, y_per_unit: float, unit_um: float) -> float | None:
    """Pixel side in um from pixels per unit; None if the axes differ by more than 1 % or the number is a printer's."""
    if not (finite_positive(x_per_unit) and finite_positive(y_per_unit)):
        return None
    pixel_um = unit_um / x_per_unit
    if abs(x_per_unit / y_per_unit - 1) > 0.01 or not SMALLEST_MICROSCOPE_UM <= pixel_um <= LARGEST_MICROSCOPE_UM:
        return None
    return pixel_um


def from_description(text: str) -> float | None:
    """Pixel side in um from OME-XML (PhysicalSizeX, unit um unless given) or an Aperio description ("MPP = 0.499"); None without one."""
    return _from_ome(text) or _from_aperio(text)


def from_imagej(text: str, x_per_unit: float, y_per_unit: float) -> float | None:
    """Pixel side in um from an ImageJ description ("unit=micron") whose resolution tags count pixels per that unit; None without one."""
    unit = re.search(r"^unit=(.+)$", text, re.MULTILINE)
    unit_um = _UNITS_UM.get(unit.group(1).strip().lower()) if text.startswith("ImageJ=") and unit else None
    return None if unit_um is None else from_density(x_per_unit, y_per_unit, unit_um)


def _from_ome(text: str) -> float | None:
    pixels = re.search(r"<(?:\w+:)?Pixels\b[^>]*>", text)
    size = re.search(r'\bPhysicalSizeX="([^"]+)"', pixels.group(0)) if pixels else None
    if pixels is None or size is None:
        return None
    unit = re.search(r'\bPhysicalSizeXUnit="([^"]+)"', pixels.group(0))
    unit_um = _UNITS_UM.get(html.unescape(unit.group(1)).lower()) if unit else 1.0
    return None if unit_um is None else _number(size.group(1), unit_um)


def _from_aperio(text: str) -> float | None:
    match = re.search(r"\bMPP\s*=\s*([0-9.eE+-]+)", text)
    return _number(match.group(1), 1.0) if match else None


def _number(text: str, unit_um: float) -> float | None:
    try:
        value = float(text) * unit_um
    except ValueError:
        return None
    return value if finite_positive(value) else None
