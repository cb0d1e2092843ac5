"""Gaussian noise as a function of where it falls: f(seed, step, channel, y, x).

A sampler that draws from a stream gives every tile different noise once the tile order, the batch size or the resume point changes. Here
each value is a hash of its coordinates looked up in a table of Gaussian quantiles. Hash and table are exact integer and gather operations,
so a pixel's noise is the same bit pattern in every tile, batch, process and device.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_TABLE_BITS = 16


@dataclass(frozen=True)
class NoiseField:
    """An endless field of standard normal noise, seen through one window per batch item.

    seed: any integer (64 bits are used). origins_px: (y, x) of each item's top-left corner in the field; one entry serves a whole batch of
    equal windows only if the batch has one item.
    """

    seed: int
    origins_px: tuple[tuple[int, int], ...] = ((0, 0),)

    @classmethod
    def whole(cls, seed: int, batch: int) -> "NoiseField":
        """Windows for `batch` separate images: image i sees what it would see alone under `seed`."""
        return cls(seed, ((0, 0),) * batch)

    def draw(self, step: int, *, channels: int, height_px: int, width_px: int, device: torch.device | str = "cpu") -> Tensor:
        """Standard normal noise b c h w for a sampling step (any integer); values are multiples on a lattice of 2^32 quantile sums."""
        return torch.stack([self._window(step, channels, height_px, width_px, y, x, device) for y, x in self.origins_px])

    def _window(self, step: int, channels: int, height_px: int, width_px: int, y_px: int, x_px: int, device: torch.device | str) -> Tensor:
        key = _mix_int(
            _mix_int(self.seed & _MASK) ^ _mix_int(((self.seed >> 32) & _MASK) + 0x9E3779B9) ^ _mix_int((step + 0x51ED270B) & _MASK)
        )
        channel = torch.arange(channels, device=device).view(-1, 1, 1)
        row = torch.arange(y_px, y_px + height_px, device=device).view(1, -1, 1)
        column = torch.arange(x_px, x_px + width_px, device=device).view(1, 1, -1)
        state = _mix((channel * 0x85EBCA6B + key) & _MASK)
        first, second = _mix((state + row * 0xC2B2AE35) & _MASK), _mix((state ^ 0x5BD1E995) + row * 0x165667B1 & _MASK)
        # 64 bits of row state: with 32, two rows of a large slide would now and then be shifted copies of each other
        state = _mix(_mix((first + column * 0x27D4EB2F) & _MASK) ^ second)
        quantiles = _quantiles(str(device))
        # the sum of two quantiles of half the bits each has far finer tails and steps than one
        return quantiles[state >> _TABLE_BITS] + quantiles[state & ((1 << _TABLE_BITS) - 1)]


def stream(*key: int) -> torch.Generator:
    """A CPU generator for a tuple of integers, such as (seed, step): equal keys give equal streams, others unrelated ones.

    `manual_seed` alone would not do for seeds packed into one integer: the CPU generator reads the lower 32 bits only.
    """
    state = 0
    for number in key:
        state = _mix_int((_mix_int(state ^ (number & _MASK)) + ((number >> 32) & _MASK) + 0x9E3779B9) & _MASK)
    return torch.Generator().manual_seed(state)


def _mix(state: Tensor) -> Tensor:
    """A bijection of 32-bit integers (held in int64) whose every output bit depends on every input bit; xor-shift-multiply rounds."""
    state = ((state ^ (state >> 16)) * 0x21F0AAAD) & _MASK
    state = ((state ^ (state >> 15)) * 0x735A2D97) & _MASK
    return state ^ (state >> 15)


def _mix_int(state: int) -> int:
    state = ((state ^ (state >> 16)) * 0x21F0AAAD) & _MASK
    state = ((state ^ (state >> 15)) * 0x735A2D97) & _MASK
    return state ^ (state >> 15)


@functools.cache
def _quantiles(device: str) -> Tensor:
    """Midpoint quantiles of a normal whose two-term sums have variance one; made on the CPU, so every device holds the same bits."""
    size = 1 << _TABLE_BITS
    table = torch.special.ndtri((torch.arange(size, dtype=torch.float64) + 0.5) / size)
    return (table / (table.square().mean() * 2).sqrt()).float().to(device)
