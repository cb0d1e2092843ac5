"""`pathorestore view`: what it takes, calls and prints."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from pathorestore.slide.viewer_images import View

Bar = Callable[[int, int], None]


def fill_view(command: "ArgumentParser") -> None:
    """Declare the verb's own options."""
    layer = "image to lay over OUT, of any size and stretched to fit, such as focus=focus.png; may be given more than once"
    largest = "refuse image files, not slides, with more pixels than this; default: as restore"
    command.add_argument("restored", type=str, metavar="OUT", help="slide, pyramidal TIFF or image file to look at")
    command.add_argument("--compare", type=str, default=None, metavar="IN", help="what OUT was made from, for a before/after slider")
    command.add_argument("--layer", action="append", type=str, default=None, metavar="NAME=FILE", help=layer)
    command.add_argument("-o", "--output", type=str, default=None, help="folder for page and tiles; default: OUT's name with .view")
    command.add_argument("--overwrite", action="store_true", help="replace an earlier view in that folder")
    command.add_argument("--serve", action="store_true", help="write nothing; serve the page to browsers on this machine until Ctrl-C")
    command.add_argument("--port", type=int, default=None, help="port to serve on; default: any that is free")
    command.add_argument("--max-pixels", type=int, default=None, help=largest)
    command.add_argument("-q", "--quiet", action="store_true", help="print failures and the address only")


def run_view(arguments: "Namespace", bar: Bar) -> int:
    """Write or serve the page and return the exit code."""
    layers = parse_layers(arguments.layer or ())
    _check(arguments)
    from pathorestore.pipelines.raster import DEFAULT_MAX_PIXELS
    from pathorestore.slide.viewer import check_folder, write_view
    from pathorestore.slide.viewer_images import open_view

    out = Path(arguments.restored)
    folder = Path(arguments.output) if arguments.output else out.with_suffix(".view")
    if not arguments.serve:
        check_folder(folder, overwrite=arguments.overwrite)  # before the slides are opened, which may take long
    compare = Path(arguments.compare) if arguments.compare else None
    max_pixels = DEFAULT_MAX_PIXELS if arguments.max_pixels is None else arguments.max_pixels
    with open_view(out, compare=compare, layers=layers, max_pixels=max_pixels) as view:
        if arguments.serve:
            return _serve(view, arguments.port or 0, quiet=arguments.quiet)
        tiles = write_view(view, folder, overwrite=arguments.overwrite, progress=bar)
    if not arguments.quiet:
        print(f"view: {folder / 'index.html'}, {tiles} tiles; open it in a browser, no network is needed")
    return 0


def parse_layers(words: Sequence[str]) -> dict[str, Path]:
    """Names and files of `--layer NAME=FILE`. Raises ValueError for a word without a name or file, or a name given twice."""
    layers: dict[str, Path] = {}
    for word in words:
        name, equals, file = word.partition("=")
        if not name.strip() or not equals or not file:
            raise ValueError(f"--layer {word!r} is no layer; expected NAME=FILE, such as focus=focus.png")
        if name.strip() in layers:
            raise ValueError(f"--layer {name.strip()!r} is named twice; give each layer a name of its own")
        layers[name.strip()] = Path(file)
    return layers


def _check(arguments: "Namespace") -> None:
    if arguments.serve and (arguments.output or arguments.overwrite):
        raise ValueError("--serve writes nothing, so -o and --overwrite do not go with it; leave them or --serve out")
    if arguments.port is not None and not arguments.serve:
        raise ValueError("--port belongs to --serve; add that, or leave the port out")
    if not 0 <= (arguments.port or 0) <= 65535:
        raise ValueError(f"--port {arguments.port} is no port; expected 1 to 65535, or 0 for any that is free")


def _serve(view: "View", port: int, *, quiet: bool) -> int:
    from pathorestore.slide.viewer_server import ViewServer

    with ViewServer(view, port=port) as server:
        try:
            print(server.url if quiet else f"view: {server.url}  (this machine only; Ctrl-C ends it)", flush=True)
            server.serve_forever(poll_interval=0.2)
        except KeyboardInterrupt:  # the usual way to end it
            if not quiet:
                print("ended", flush=True)
    return 0
