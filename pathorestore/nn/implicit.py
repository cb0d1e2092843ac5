"""Images as functions of continuous coordinates: where queries lie on a feature map, and how what its cells say is weighed.

A coordinate is (y, x), from -1 to 1 between the outer edges of a map; the centre of pixel i of n lies at -1 + (2 i + 1) / n.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

_SIDES = ((0, 0), (0, 1), (1, 0), (1, 1))
_NUDGE = 1e-6  # off the borders between cells, where rounding would decide
_LEAST = 1e-9
_SHARPNESS = -0.5  # of Keys' kernel: with it, quadratic images are drawn as they are

Skip = Literal["none", "bilinear", "bicubic"]
"""The interpolation that a decoder adds its colours to."""


class Corner(NamedTuple):
    """One of the four cells around each of n queries.

    cell: its index on the map, row by row, n. relative: of the query to the cell's centre, n 2, in half cells. weight: n, one in sum over
    the corners.
    """

    cell: Tensor
    relative: Tensor
    weight: Tensor


def centres(count: int) -> Tensor:
    """The centres of `count` pixels, float64."""
    return (2 * torch.arange(count, dtype=torch.float64) + 1) / count - 1


class Lattice(NamedTuple):
    """Pixels to be made, where rows and columns cross: their coordinates, h and w, float64."""

    rows: Tensor
    columns: Tensor

    @classmethod
    def of(cls, size: tuple[int, int]) -> "Lattice":
        """All pixels of an image of that height and width."""
        return cls(centres(size[0]), centres(size[1]))

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return len(self.rows), len(self.columns)

    def places(self) -> Tensor:
        """The coordinates row by row, (h w) 2."""
        return torch.stack(torch.meshgrid(self.rows, self.columns, indexing="ij"), dim=-1).reshape(-1, 2)


def grid(height: int, width: int) -> Tensor:
    """The centres of all pixels of an image row by row, (height width) 2, float64."""
    return Lattice.of((height, width)).places()


def corners(coordinates: Tensor, size: tuple[int, int]) -> tuple[Corner, Corner, Corner, Corner]:
    """The four cells around each coordinate n 2 of a map of that height and width; at its edges some are the same.

    Each weighs as the rectangle between the query and the opposite corner's centre, a product of one share for each axis: taken so, the
    weights hold even where a query at an edge lies on a centre, and all four rectangles are empty. Computed in double precision,
    returned in single.
    Source: Chen, Liu, Wang, Learning continuous image representation with local implicit image function, CVPR 2021, eq. 4 and fig. 2.
    """
    places = coordinates.double()
    axes = [_beside(places[:, axis], size[axis]) for axis in (0, 1)]
    found = []
    for y, x in _SIDES:
        (row, down, share), (column, right, other_share) = axes[0][y], axes[1][x]
        found.append(Corner(row * size[1] + column, torch.stack([down, right], dim=1).float(), (share * other_share).float()))
    first, second, third, fourth = found
    return first, second, third, fourth


def _beside(places: Tensor, count: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Of the two cells beside each place n on an axis of so many: index, place relative to the centre in half cells, share."""
    middle = centres(count).to(places.device)
    sides = []
    for shift in (-1, 1):
        moved = (places + shift / count + _NUDGE).clamp(-1 + _NUDGE, 1 - _NUDGE)
        index = ((moved + 1) / 2 * count).floor().clamp(0, count - 1).long()
        sides.append((index, (places - middle[index]) * count))
    lengths = [relative.abs() + _LEAST for _, relative in sides]
    return [(index, relative, lengths[1 - at] / (lengths[0] + lengths[1])) for at, (index, relative) in enumerate(sides)]


def gather(features: Tensor, cells: Tensor) -> Tensor:
    """The features b n c that a map b c h w has in the cells n."""
    return features.flatten(2)[..., cells].transpose(1, 2)


def check_skip(skip: str) -> None:
    """Raise ValueError for a name that is no `Skip`."""
    if skip not in get_args(Skip):
        raise ValueError(f"skip must be one of {', '.join(get_args(Skip))}; got {skip!r}")


def bicubic(image: Tensor, places: Tensor) -> Tensor:
    """The colours n c that an image 1 c h w has at places n 2, by bicubic interpolation; its edges go on beyond it.

    Source: Keys, Cubic convolution interpolation for digital image processing, IEEE TASSP 1981, eq. 15: a = -1/2, as Pillow has it.
    """
    height, width = image.shape[-2:]
    (rows, down), (columns, right) = (_four(places[:, axis].double(), size) for axis, size in ((0, height), (1, width)))
    cells = (rows[:, :, None] * width + columns[:, None, :]).flatten(1)
    weights = (down[:, :, None] * right[:, None, :]).flatten(1).to(image.dtype)
    return (image[0].flatten(1)[:, cells] * weights).sum(dim=-1).T


def bicubic_on(image: Tensor, lattice: Lattice) -> Tensor:
    """The same for images b c h w where rows and columns cross, b c H W: one axis after the other, in memory of the result's size."""
    for axis, places in ((-2, lattice.rows), (-1, lattice.columns)):
        index, weights = _four(places.to(image.device), image.shape[axis])
        shape = (-1, 1) if axis == -2 else (-1,)
        taps = (image.index_select(axis, index[:, tap]) * weights[:, tap].to(image.dtype).reshape(shape) for tap in range(4))
        image = functools.reduce(torch.Tensor.add_, taps)
    return image


def _four(places: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The four pixels around each place n on an axis of so many, and their weights, n 4 each."""
    at = (places + 1) / 2 * count - 0.5
    index = at.floor()[:, None] + torch.arange(-1, 3, device=places.device)
    far, a = (at[:, None] - index).abs(), _SHARPNESS
    near = ((a + 2) * far - (a + 3)) * far**2 + 1
    beyond = ((far - 5) * far + 8) * far * a - 4 * a
    return index.clamp(0, count - 1).long(), torch.where(far <= 1, near, beyond)


def ensemble(places: Tensor, image: Tensor, say: Callable[[int, Corner], Tensor], *, skip: Skip) -> Tensor:
    """Colours n 3 on the scale [0, 1] at places n 2 of an image 1 3 h w: what each corner says, weighed; unclamped.

    say: centred colours n 3 of a corner, given its number too. skip: the interpolated image that they are added to.
    """
    colours = 2 * bicubic(image, places) - 1 if skip == "bicubic" else places.new_zeros(len(places), 3, dtype=torch.float32)
    for number, corner in enumerate(corners(places, (image.shape[-2], image.shape[-1]))):
        said = say(number, corner)
        if skip == "bilinear":
            said = said + 2 * gather(image, corner.cell)[0] - 1
        colours = colours + corner.weight[:, None] * said
    return (colours + 1) / 2


def mlp(width: int, hidden: Sequence[int], out: int, *, silent: bool = False) -> nn.Sequential:
    """Linear layers with ReLU between them, from `width` through `hidden` to `out`; silent: it begins by giving zero."""
    sizes = [width, *hidden]
    layers: list[nn.Module] = []
    for before, after in zip(sizes, hidden, strict=False):
        layers += [nn.Linear(before, after), nn.ReLU()]
    last = nn.Linear(sizes[-1], out)
    if silent:
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
    return nn.Sequential(*layers, last)
