"""Mixture of depthwise experts gated by a prompt (MoP, arXiv 2503.12399, eq. 3), with the experts folded into one kernel per sample."""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Gate = Literal["add", "mul", "add_split"]
MoeImpl = Literal["folded", "taps", "naive"]


def mix_naive(features: Tensor, kernels: Tensor, weights: Tensor) -> Tensor:
    """sum_i w_i (K_i * F), one convolution an expert: the definition, and the oracle of the tests.

    features b c h w; kernels n c 1 3 3; weights b n; returns b c h w.
    """
    channels = features.shape[1]
    experts = [F.conv2d(features, kernel, padding=1, groups=channels) for kernel in kernels]
    return torch.stack([w[:, None, None, None] * out for w, out in zip(weights.unbind(1), experts, strict=True)]).sum(0)


def mixed_kernels(kernels: Tensor, weights: Tensor) -> Tensor:
    """sum_i w_i K_i, b c 3 3. A sum of products, which autocast leaves in full precision: the experts' differences are small."""
    return (weights[:, :, None, None, None] * kernels[None, :, :, 0]).sum(dim=1)


def mix_folded(features: Tensor, kernels: Tensor, weights: Tensor) -> Tensor:
    """The same sum with one convolution a sample: convolution is linear in its kernel, so sum_i w_i (K_i * F) = (sum_i w_i K_i) * F.

    Exact because the weights are constant over space and no nonlinearity stands inside an expert. Same shapes as `mix_naive`.
    """
    batch, channels, height, width = features.shape
    mixed = mixed_kernels(kernels, weights).reshape(batch * channels, 1, 3, 3).to(features.dtype)
    if batch == 1:
        return F.conv2d(features, mixed, padding=1, groups=channels)
    folded = F.conv2d(features.reshape(1, batch * channels, height, width), mixed, padding=1, groups=batch * channels)
    return folded.view(batch, channels, height, width)


def mix_taps(features: Tensor, kernels: Tensor, weights: Tensor) -> Tensor:
    """The folded sum written as nine shifted products: no grouped convolution with computed weights, so it exports with a dynamic batch."""
    height, width = features.shape[-2:]
    mixed = mixed_kernels(kernels, weights).to(features.dtype)
    padded = F.pad(features, (1, 1, 1, 1))
    total = torch.zeros_like(features)
    for row in range(3):
        for column in range(3):
            total = total + mixed[:, :, row, column, None, None] * padded[:, :, row : row + height, column : column + width]
    return total


_MIX = {"naive": mix_naive, "folded": mix_folded, "taps": mix_taps}


class ExpertFeedForward(nn.Module):
    """Feed-forward of depthwise experts: E_0(F) + gelu(sum_i w_i E_i(F)), w = softmax(R [GAP(F), P]). b c h w -> b c h w.

    channels: c. hidden: channels h of F. experts: n beside the main one. prompt_dim: width of the prompt vector P, 0 for none.
    route_features: whether the router sees GAP(F) beside the prompt. Raises ValueError where it would see neither.
    gate: how the two branches meet. "add" (eq. 3): F has h channels, shared, outputs added. "mul" (Restormer's gating): 2h channels, the
    first half feeds the experts, the second the main expert, outputs multiplied. "add_split": halves as in mul, outputs added.
    moe_impl: "folded" (fast), "taps" (exportable) or "naive" (reference); all give the same numbers.
    """

    def __init__(
        self,
        channels: int,
        hidden: int,
        *,
        experts: int,
        prompt_dim: int,
        gate: Gate = "add",
        moe_impl: MoeImpl = "folded",
        route_features: bool = True,
    ):
        super().__init__()
        if prompt_dim < 1 and not route_features:
            raise ValueError(f"a router needs something to see: route_features=True, or a prompt_dim of at least 1, got {prompt_dim}")
        self.hidden, self.gate, self.moe_impl = hidden, gate, moe_impl
        self.seen_features = hidden if route_features else 0
        inner = hidden if gate == "add" else 2 * hidden
        self.project_in = nn.Conv2d(channels, inner, 1, bias=False)
        self.main = nn.Conv2d(hidden, hidden, 3, padding=1, groups=hidden, bias=False)
        # one start for all experts plus a little noise apart: identical experts under an even gate would stay identical for ever
        self.experts = nn.Parameter(self.main.weight.detach().clone() + 0.02 * torch.randn(experts, hidden, 1, 3, 3))
        self.router = nn.Linear(self.seen_features + prompt_dim, experts)
        nn.init.normal_(self.router.weight, std=0.02)
        nn.init.zeros_(self.router.bias)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=False)

    def prompt_logits(self, prompt: Tensor) -> Tensor:
        """The prompt's share of the router logits, b n; it does not depend on the image features, so it is computed once per image."""
        return F.linear(prompt, self.router.weight[:, self.seen_features :], self.router.bias)

    def route(self, x: Tensor, prompt_logits: Tensor) -> Tensor:
        """Expert weights b n, each row summing to one. GAP and the 1x1 projection commute, so the narrow tensor is pooled."""
        if not self.seen_features:
            return prompt_logits.softmax(dim=-1)
        projection = self.project_in.weight[: self.hidden, :, 0, 0]
        pooled = F.linear(x.mean(dim=(2, 3)), projection)
        return (F.linear(pooled, self.router.weight[:, : self.hidden]) + prompt_logits).softmax(dim=-1)

    def forward(self, x: Tensor, prompt_logits: Tensor) -> Tensor:
        weights = self.route(x, prompt_logits)
        features = self.project_in(x)
        to_experts, to_main = (features, features) if self.gate == "add" else features.chunk(2, dim=1)
        mixed = F.gelu(_MIX[self.moe_impl](to_experts, self.experts, weights))
        main = self.main(to_main)
        return self.project_out(mixed * main if self.gate == "mul" else mixed + main)
