"""Pages of one HTML file that run nothing and open no address which is not named in them, and in which no user's text becomes markup."""

import base64
import hashlib
import json
import re
from collections.abc import Mapping

_HOLES = re.compile(r"\{\{(\w+)\}\}")


def script_json(value: object) -> str:
    r"""JSON that may stand in a <script>: ASCII, which leaves no U+2028, and without the characters that could end the element."""
    return json.dumps(value).translate({ord(sign): f"\\u{ord(sign):04x}" for sign in "<>&"})


def filled(template: str, parts: Mapping[str, str]) -> str:
    """Put the parts in the holes of a template, in one pass, so that a part that looks like a hole stays as it is."""
    return _HOLES.sub(lambda hole: parts[hole[1]], template)


def hashed(text: str) -> str:
    """A source expression of a Content-Security-Policy that allows exactly this text inside the page."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
