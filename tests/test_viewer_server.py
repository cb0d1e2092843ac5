"""The viewer's server: what it hands out, to whom, and what it refuses."""

import re
import socket
import threading
import urllib.error
import urllib.request
from functools import partial
from pathlib import Path

import pytest
from tissue_files import save, tissue
from view_files import _closed_sockets, restored_slide, viewed  # noqa: F401  (the fixture replaces the general one)

from pathorestore.slide.viewer import PAGE, write_view
from pathorestore.slide.viewer_images import open_view
from pathorestore.slide.viewer_server import ViewServer

pytest.importorskip("openslide", reason="the viewer reads slides with OpenSlide")


@pytest.fixture
def slide(tmp_path):
    return restored_slide(tmp_path / "restored.tif")


@pytest.fixture
def run(capsys):
    """Run the verb; returns exit code, stdout and stderr."""
    return partial(viewed, capsys)


@pytest.fixture
def server(slide, tmp_path):
    layer = save(tmp_path / "focus.png", tissue(3, 30, 40))
    with open_view(slide, layers={"focus": layer}) as view, ViewServer(view) as serving:
        thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def get(server: ViewServer, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    request = urllib.request.Request(server.url.rstrip("/") + path, headers=headers)
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    try:
        with opener.open(request, timeout=20) as reply:
            return reply.status, dict(reply.headers), reply.read()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, dict(error.headers), error.read()


def test_served_tiles_equal_the_written_ones(server, slide, tmp_path):
    with open_view(slide, layers={"focus": tmp_path / "focus.png"}) as view:
        write_view(view, tmp_path / "a.view")
    tiles = [path for path in (tmp_path / "a.view").rglob("*_files/*/*") if path.is_file()]
    assert len(tiles) > 40
    for tile in tiles:
        name = tile.relative_to(tmp_path / "a.view").as_posix()
        status, headers, body = get(server, f"/{name}")
        assert (status, body) == (200, tile.read_bytes()), name
        assert headers["Content-Type"] == {".jpg": "image/jpeg", ".png": "image/png"}[tile.suffix]
    status, headers, body = get(server, "/")
    assert (status, body) == (200, (tmp_path / "a.view" / PAGE).read_bytes())
    assert headers["Cache-Control"] == "no-store"
    assert headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "path",
    [
        "/../restored.tif",
        "/restored_files/../../restored.tif",
        "/..%2f..%2fetc/passwd",
        "//etc/passwd",
        "/restored_files/10/0_0.jpg/../../../restored.tif",
        "/restored_files/10/0_0.png",
        "/restored_files/10/0_0.jpg?x=1",
        "/restored_files/10/0_0.jpg%0a",
        "/restored_files/10/4_0.jpg",
        "/restored_files/10/0_3.jpg",
        "/restored_files/11/0_0.jpg",
        "/restored_files/10/-1_0.jpg",
        "/restored_files/10/\u0661_0.jpg",
        "/degraded_files/0/0_0.jpg",
        "/layer2_files/0/0_0.png",
        "/restored.tif",
        "/favicon.ico",
    ],
)
def test_everything_but_the_page_and_its_tiles_is_404(server, path):
    assert server.answer(path).status == 404
    with socket.create_connection(server.server_address, timeout=20) as line:  # as it stands: urllib would tidy it
        line.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1:{server.server_port}\r\nConnection: close\r\n\r\n".encode())
        reply = b"".join(iter(lambda: line.recv(65536), b""))
    assert reply.startswith(b"HTTP/1.1 404 ")
    assert len(reply) < 600


def test_the_server_is_for_this_machine_and_under_its_own_name_only(server):
    assert server.server_address[0] == "127.0.0.1"
    assert get(server, "/", Host="rebound.example")[0] == 403
    assert get(server, "/", Host=f"localhost:{server.server_port}")[0] == 200


def test_a_port_that_is_taken_is_told(server, slide, run):
    code, _, err = run(slide, "--serve", "--port", server.server_port)
    assert code == 1
    assert f"port {server.server_port} of 127.0.0.1 cannot be used" in err
    assert err.count("\n") == 1


def test_ctrl_c_ends_the_server_cleanly(slide, run, monkeypatch):
    def stop(_server: ViewServer, **_options: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(ViewServer, "serve_forever", stop)
    code, out, err = run(slide, "--serve")
    assert (code, err) == (0, "")
    assert re.match(r"view: http://127\.0\.0\.1:\d+/ ", out)
    assert [path.name for path in Path(slide).parent.iterdir()] == ["restored.tif"]
