"""The viewer's page from memory: tiles are cut when the browser asks for them, for this machine only, and nothing is written."""

import re
import socketserver
import sys
import threading
from functools import lru_cache
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple

from pathorestore.pipelines.raster import ImageFileError
from pathorestore.slide.viewer import PAGE, page_html
from pathorestore.slide.viewer_images import View

HOST = "127.0.0.1"
_CACHED_TILES = 512  # some 20 MB
_TILE = re.compile(r"/(restored|degraded|layer[0-9]{1,2})_files/([0-9]{1,2})/([0-9]{1,7})_([0-9]{1,7})\.(jpg|png)")
_KINDS = {"jpg": "image/jpeg", "png": "image/png"}
_HEADERS = {
    "Cache-Control": "no-store",  # slides are patients' data, and a browser's cache is a disk
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}


class Answer(NamedTuple):
    """One answer to a request."""

    status: HTTPStatus
    kind: str
    body: bytes


class ViewServer(ThreadingHTTPServer):
    """Serves one view on 127.0.0.1; port 0 takes any that is free. Raises OSError if the port is taken."""

    daemon_threads = True

    def __init__(self, view: View, *, port: int = 0):
        self._page = page_html(view).encode()
        self._pictures = {picture.key: picture for picture in view.pictures}
        self._tile = lru_cache(maxsize=_CACHED_TILES)(self._cut)
        self._cutting, self._closed = threading.Lock(), False
        try:
            super().__init__((HOST, port), _Handler)
        except OSError as error:
            reason = f"port {port} of {HOST} cannot be used ({error.strerror}); name another with --port, or leave it out for a free one"
            raise OSError(reason) from None

    def server_bind(self) -> None:
        """Bind without looking up a name for the address, as HTTPServer would."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = HOST, self.server_address[1]

    @property
    def url(self) -> str:
        """Where the page is."""
        return f"http://{HOST}:{self.server_port}/"

    @property
    def hosts(self) -> frozenset[str]:
        """What a browser on this machine calls us; another name is a foreign page's that was made to point here."""
        return frozenset(f"{name}:{self.server_port}" for name in (HOST, "localhost"))

    def answer(self, path: str) -> Answer:
        """The answer to a path as it stood in the request: the page, a tile, or 404 for everything else."""
        if path in ("/", f"/{PAGE}"):
            return Answer(HTTPStatus.OK, "text/html; charset=utf-8", self._page)
        match = _TILE.fullmatch(path)
        picture = self._pictures.get(match[1]) if match else None
        if not match or not picture or match[5] != picture.suffix:
            return _refusal(HTTPStatus.NOT_FOUND)
        level, column, row = (int(number) for number in match.group(2, 3, 4))
        if not picture.has(level, column, row):
            return _refusal(HTTPStatus.NOT_FOUND)
        try:
            return Answer(HTTPStatus.OK, _KINDS[picture.suffix], self._tile(picture.key, level, column, row))
        except ImageFileError:
            return _refusal(HTTPStatus.INTERNAL_SERVER_ERROR)

    def handle_error(self, request: object, client_address: object) -> None:
        """Pass over a browser that has gone, which it does at every move of the view."""
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]

    def server_close(self) -> None:
        """Stop, and let the tile in hand be finished, since the slides are closed after this."""
        super().server_close()
        with self._cutting:
            self._closed = True

    def _cut(self, key: str, level: int, column: int, row: int) -> bytes:
        with self._cutting:  # one at a time: the topmost tiles of an image without levels take all of it
            if self._closed:
                raise ConnectionAbortedError("the view was closed")
            return self._pictures[key].tile(level, column, row)


class _Handler(BaseHTTPRequestHandler):
    server: ViewServer
    protocol_version = "HTTP/1.1"
    timeout = 60
    server_version, sys_version = "pathorestore", ""

    def do_GET(self) -> None:
        self._send(with_body=True)

    def do_HEAD(self) -> None:
        self._send(with_body=False)

    def log_message(self, format: str, *arguments: object) -> None:
        """Say nothing of single requests."""

    def _send(self, *, with_body: bool) -> None:
        foreign = self.headers.get("Host", "") not in self.server.hosts
        answer = _refusal(HTTPStatus.FORBIDDEN) if foreign else self.server.answer(self.path)
        self.send_response(answer.status)
        for name, value in (_HEADERS | {"Content-Type": answer.kind, "Content-Length": str(len(answer.body))}).items():
            self.send_header(name, value)
        self.end_headers()
        if with_body:
            self.wfile.write(answer.body)


def _refusal(status: HTTPStatus) -> Answer:
    return Answer(status, "text/plain; charset=utf-8", f"{status.value} {status.phrase}\n".encode())
