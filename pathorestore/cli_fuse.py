"""`pathorestore fuse`: what it takes, and the work that makes of it."""

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

    from pathorestore.pipelines.fuse import FuseFiles, StackJob


def fill_fuse(command: "ArgumentParser") -> None:
    """Declare the verb's own options."""
    pattern = "names of the planes in a folder, without suffix: {plane} is a number, {fov} the field"
    command.add_argument("stack", nargs="+", type=str, metavar="STACK", help="folder of planes, their files in order, or a multi-page TIFF")
    command.add_argument("-o", "--output", required=True, type=str, help="file for one stack; folder, trees mirrored in it, for more")
    command.add_argument("--depth-map", type=str, default=None, help="file, or folder for more stacks, for 16-bit maps, 256 levels a plane")
    command.add_argument("--align", action="store_true", help="undo lateral drift between the planes first")
    command.add_argument("--pattern", type=str, default="{fov}_{plane}", help=pattern)


def stacks_to_fuse(arguments: "Namespace", clock: Callable[[], str]) -> "tuple[list[StackJob], FuseFiles]":
    """The stacks that the arguments name, and what is done to each."""
    from pathorestore.functional.fusion import FusionConfig
    from pathorestore.pipelines.fuse import FuseFiles, plan_fusion

    jobs = plan_fusion(arguments.stack, arguments.output, pattern=arguments.pattern, depth_map=arguments.depth_map or "")
    config = FusionConfig(align=arguments.align)
    return jobs, FuseFiles(clock=clock, config=config, overwrite=arguments.overwrite, max_pixels=arguments.max_pixels)
