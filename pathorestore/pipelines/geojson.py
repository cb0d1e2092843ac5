"""Regions of an image as GeoJSON that QuPath takes for annotations; coordinates are pixels of the largest level, x before y."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pathorestore.atomic import write_atomic

Colour = tuple[int, int, int]
Corner = tuple[int, int]


def write_features(path: Path, features: Sequence[dict[str, Any]]) -> None:
    """Write features, those without any coordinates left out; whole or not at all."""
    text = json.dumps({"type": "FeatureCollection", "features": [feature for feature in features if feature["geometry"]["coordinates"]]})
    write_atomic(path, (text + "\n").encode())


def feature(name: str, kind: str, coordinates: list[Any], colour: Colour) -> dict[str, Any]:
    """A locked annotation of class `name`; kind: "Polygon" or "MultiPolygon"."""
    properties = {"objectType": "annotation", "classification": {"name": name, "color": colour}, "isLocked": True}
    return {"type": "Feature", "geometry": {"type": kind, "coordinates": coordinates}, "properties": properties}


def ring(top_left: Corner, bottom_right: Corner) -> list[list[int]]:
    """The closed outline of a box, whose corners are given as (y, x)."""
    (top, left), (bottom, right) = top_left, bottom_right
    return [[left, top], [right, top], [right, bottom], [left, bottom], [left, top]]
