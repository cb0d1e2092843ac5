"""Training losses that are not a single call of torch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def fft_magnitude_l1(restored: Tensor, clean: Tensor) -> Tensor:
    """Mean absolute difference of the two-dimensional Fourier magnitudes (orthonormal) of b c h w images; a scalar."""
    return (torch.fft.rfft2(restored, norm="ortho").abs() - torch.fft.rfft2(clean, norm="ortho").abs()).abs().mean()


def local_contrast_l1(restored: Tensor, clean: Tensor, *, window_px: int = 8) -> Tensor:
    """Mean absolute difference of local contrast of b c h w images: the root mean square step between neighbours in windows; a scalar.

    Detail of the right strength in the right place costs nothing even where its course cannot be known, unlike squared error, whose
    best guess is none. Windows are about the size of a nucleus and half overlap.
    """
    return (_local_contrast(restored, window_px) - _local_contrast(clean, window_px)).abs().mean()


def _local_contrast(image: Tensor, window_px: int) -> Tensor:
    window_px = min(window_px, *(side - 1 for side in image.shape[-2:]))
    steps = image.diff(dim=-1)[..., :-1, :].square() + image.diff(dim=-2)[..., :-1].square()
    # a root has no finite slope at zero; 1e-6 is a step of a quarter of a grey level
    return (F.avg_pool2d(steps, window_px, stride=max(1, window_px // 2)) + 1e-6).sqrt()


def prompt_l1(restored_cls: Tensor, restored_tokens: Tensor, clean_cls: Tensor, clean_tokens: Tensor) -> Tensor:
    """L1 of the class vectors plus L1 of the patch tokens, each a mean, so that all patches together weigh as much as the class vector."""
    loss = F.l1_loss(restored_cls, clean_cls)
    return loss + F.l1_loss(restored_tokens, clean_tokens) if restored_tokens.shape[1] else loss


def vicreg(first: Tensor, second: Tensor, *, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0) -> Tensor:
    """Variance-invariance-covariance loss of two views' embeddings b d (Bardes, Ponce, LeCun, ICLR 2022, eq. 6); needs b >= 2; a scalar."""
    loss = invariance * F.mse_loss(first, second)
    for view in (first, second):
        centred = view - view.mean(dim=0)
        loss = loss + variance * F.relu(1 - (centred.var(dim=0) + 1e-4).sqrt()).mean() / 2
        matrix = centred.T @ centred / (len(view) - 1)
        off_diagonal = matrix.square().sum() - matrix.diagonal().square().sum()
        loss = loss + covariance * off_diagonal / view.shape[1]
    return loss


def info_nce(query: Tensor, key: Tensor, *, temperature: float, negatives: Tensor | None = None) -> Tensor:
    """Cross-entropy of finding each query's key among the keys of the batch and further negatives k d; unit vectors b d; a scalar.

    Source: van den Oord et al., arXiv 1807.03748, eq. 4; a queue of negatives: He et al., MoCo, CVPR 2020. Needs b >= 2 or negatives.
    """
    keys = key if negatives is None else torch.cat([key, negatives])
    return F.cross_entropy(query @ keys.T / temperature, torch.arange(len(query), device=query.device))


def supervised_contrast(embedded: Tensor, label: Tensor, *, temperature: float) -> Tensor:
    """Unit vectors b d of one label, b, attract each other, all others repel; a scalar. Those whose label nobody shares only repel.

    Source: Khosla et al., Supervised contrastive learning, NeurIPS 2020, eq. 2. Raises ValueError where no label is shared.
    """
    alike = (label[:, None] == label).fill_diagonal_(False)
    logits = embedded @ embedded.T / temperature
    logits = logits.masked_fill(torch.eye(len(label), dtype=torch.bool, device=label.device), -torch.inf)
    chances = logits.log_softmax(dim=1).masked_fill(~alike, 0.0)
    shared = alike.any(dim=1)
    if not shared.any():
        raise ValueError(f"no two of the {len(label)} vectors have one label; expected views that belong together")
    return -(chances.sum(dim=1)[shared] / alike.sum(dim=1)[shared]).mean()


def domain_lean(embedded: Tensor, domain: Tensor, group: Tensor) -> Tensor:
    """How much nearer vectors b d of one domain lie to each other than to those of other domains: a scalar, 0 where all have one mean.

    domain: b, numbers from 0; group: b; vectors of one group are what should be alike, so their pairs do not count. Where means are equal
    no linear classifier tells the domains apart better than chance (Belrose et al., LEACE, NeurIPS 2023, theorem 3.1). It is half the
    squared distance of two domains' means, without bias, on average over pairs of domains (Gretton et al., A kernel two-sample test, JMLR
    2012, eq. 3, linear kernel). 0 where pairs of either kind are missing.
    """
    member = F.one_hot(domain).to(embedded)
    counts = (group[:, None] != group).to(embedded)
    pairs = member.T @ counts @ member
    likeness = member.T @ (counts * (embedded @ embedded.T)) @ member / pairs.clamp(min=1)
    same = torch.eye(len(pairs), dtype=torch.bool, device=pairs.device)
    own, others = likeness[same & (pairs > 0)], likeness[~same & (pairs > 0)]
    return own.mean() - others.mean() if len(own) and len(others) else 0 * embedded.sum()
