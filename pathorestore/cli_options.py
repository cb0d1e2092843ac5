"""Options that several verbs share, and those of the verbs that take few."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

MAX_PIXELS = 178_956_970


def fill_batch(command: "ArgumentParser", max_pixels: int | None = MAX_PIXELS) -> None:
    """Declare what every verb takes that goes through many files."""
    existing = command.add_mutually_exclusive_group()
    existing.add_argument("--overwrite", action="store_true", help="replace outputs that exist; an input is never replaced")
    existing.add_argument("--skip-existing", action="store_true", help="leave outputs that exist and do only the rest")
    fill_max_pixels(command, max_pixels)
    command.add_argument("--json", action="store_true", help="print a machine-readable report on stdout, all else on stderr")
    command.add_argument("-q", "--quiet", action="store_true", help="print failures only")


def fill_demo(command: "ArgumentParser") -> None:
    """Declare the options of `demo`."""
    command.add_argument("-o", "--output", type=str, default="pathorestore-demo", help="folder for demo.png, replaced if it exists")
    fill_model(command)
    command.add_argument("--seed", type=int, default=0, help="seed of the simulated noise and of the second stage")


def fill_info(command: "ArgumentParser") -> None:
    """Declare the options of `info`."""
    command.add_argument("file", nargs="?", type=str, default=None, metavar="FILE", help="output to read the provenance of")
    command.add_argument("--json", action="store_true", help="print JSON")


def fill_simulate(command: "ArgumentParser") -> None:
    """Declare the options of `simulate`."""
    command.add_argument("sharp", type=str, metavar="SHARP", help="a sharp image file")
    command.add_argument("-o", "--output", required=True, type=str, help="folder for the planes, the clean target and the table")
    command.add_argument("--z", nargs="+", type=float, default=[-3.2, -1.6, 0.0, 1.6, 3.2], help="focus positions in um, signed")
    command.add_argument("--setting", choices=("ideal", "scanner", "shifted"), default="ideal", help="which nuisances besides defocus")
    command.add_argument("--seed", type=int, default=0, help="seed of everything that is drawn")
    command.add_argument("--pixel-um", type=float, default=None, help="side of a pixel in um; default: what the file says, else 0.25")
    command.add_argument("--overwrite", action="store_true", help="replace outputs that exist")
    fill_max_pixels(command)


def fill_model(command: "ArgumentParser") -> None:
    """Declare which model is taken."""
    command.add_argument("--model", type=str, default=None, help="folder or hub repository owner/name; default: the embedded mop-tiny")
    command.add_argument("--revision", type=str, default=None, help="commit hash or tag of a hub repository")


def fill_max_pixels(command: "ArgumentParser", default: int | None = MAX_PIXELS) -> None:
    """Declare the largest image that is read."""
    told = "" if default else f"; default: {MAX_PIXELS:,}, for slides 100,000,000,000"
    command.add_argument("--max-pixels", type=int, default=default, help=f"refuse images with more pixels than this{told}")
