"""The guard against losses and gradients that are not finite: it keeps the batch that caused them, so that a person can replay it."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from pathorestore.atomic import write_atomic
from pathorestore.data.batches import PairBatch, SharpBatch
from pathorestore.hub import load_weights
from pathorestore.version import __version__

_BATCHES: dict[str, Any] = {"SharpBatch": SharpBatch, "PairBatch": PairBatch}
_ALONE = "batch"  # what a batch that is one tensor is called
_REMEDIES = "lower the learning rate, clip gradients harder (gradient_clip_val), or train in fp32 (precision: 32-true)"


class StopOnNonFinite(pl.Callback):
    """Stops with a FloatingPointError at a loss that is NaN or infinite, or at such gradients, before the optimiser spreads them.

    The batch goes to `<log_dir>/nonfinite/step_000012_rank0.safetensors`, with a JSON file beside it that says step, epoch, keys, loss,
    learning rate and precision; `load_saved_batch` reads both. Under several processes the one that sees it writes, and all stop at the
    same optimiser step. With precision 16-mixed, infinite gradients are the loss scaler's business until it has run out of scale.
    """

    def __init__(self) -> None:
        super().__init__()
        self._folder = Path()
        self._batch: Any = None
        self._loss: Tensor | None = None
        self._failure: str | None = None

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        """Ask for the folder now: all processes must ask together, and only one of them may see the failure."""
        self._folder = Path(trainer.log_dir or trainer.default_root_dir) / "nonfinite"
        self._failure = None

    def on_train_batch_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int) -> None:
        """Remember the batch."""
        self._batch = batch

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int) -> None:
        """Let it go."""
        self._batch = self._loss = None

    def on_before_backward(self, trainer: pl.Trainer, pl_module: pl.LightningModule, loss: Tensor) -> None:
        """Check the loss."""
        self._loss = loss.detach()
        if torch.isfinite(self._loss).all():
            return
        self._failure = self._report(trainer, f"the loss became {self._loss_as_logged(trainer)}", {})
        # other processes wait for this one in the backward pass: go with them as far as the optimiser
        if trainer.world_size == 1:
            raise FloatingPointError(self._failure)

    def on_before_optimizer_step(self, trainer: pl.Trainer, pl_module: pl.LightningModule, optimizer: Optimizer) -> None:
        """Check the gradients, all of them at once, and let all processes stop if one must."""
        broken = not _finite(optimizer) and not _scaler_copes(trainer)
        if not trainer.strategy.reduce_boolean_decision(broken or self._failure is not None, all=False):
            return
        loss_seen = trainer.strategy.reduce_boolean_decision(self._failure is not None, all=False)
        if self._failure is None and loss_seen:
            self._failure = f"the loss became NaN or infinite in another process at step {trainer.global_step}; see {self._folder}"
        elif self._failure is None:
            names = [name for name, parameter in pl_module.named_parameters() if not _finite_gradient(parameter)]
            what = f"the gradients became NaN or infinite in {', '.join(names[:3]) or 'their norm'}"
            self._failure = self._report(trainer, what, {"gradients": names})
        raise FloatingPointError(self._failure)

    def _report(self, trainer: pl.Trainer, what: str, facts: dict[str, Any]) -> str:
        """Save the batch and say what happened, where it is and what to try."""
        step = trainer.global_step
        path = self._folder / f"step_{step:06d}_rank{trainer.global_rank}.safetensors"
        # a label that nobody knows is NaN by contract; a pixel never is
        tainted = [name for name, tensor in _tensors(self._batch) if tensor.ndim > 1 and not tensor.isfinite().all()]
        facts = {
            "what": what,
            "step": step,
            "epoch": trainer.current_epoch,
            "rank": trainer.global_rank,
            "loss": self._loss_as_logged(trainer),
            **facts,
            "learning_rate": [group["lr"] for optimizer in trainer.optimizers for group in optimizer.param_groups],
            "precision": str(trainer.precision),
            "broken_inputs": tainted,
            "version": __version__,
        }
        cause = f"the batch itself holds NaN or infinite values in {', '.join(tainted)}" if tainted else _REMEDIES
        try:
            save_batch(path, self._batch, facts)
        except (OSError, ValueError) as error:  # the failure itself must still be told
            return f"{what} at step {step}; {cause} (the batch could not be saved: {error})"
        return f"{what} at step {step}; the batch is kept in {path}, see pathorestore.training.guard.load_saved_batch; {cause}"

    def _loss_as_logged(self, trainer: pl.Trainer) -> str:
        """The loss without what accumulation and the gradient scaler made of it; as text, since JSON knows no NaN."""
        if self._loss is None:
            return "unknown"
        scaler = _scaler(trainer)
        scale = scaler.get_scale() if scaler is not None else 1.0
        return f"{float(self._loss.float().mean()) * trainer.accumulate_grad_batches / scale:.6g}"


@dataclass(frozen=True, kw_only=True)
class SavedBatch:
    """A batch that was kept and what is known of it. batch: a `SharpBatch`, a `PairBatch`, a tensor, or tensors by name."""

    batch: Any
    facts: dict[str, Any]


def save_batch(path: Path, batch: object, facts: Mapping[str, Any]) -> None:
    """Write all tensors of a batch as safetensors to `path`, and `facts` with the batch's keys as JSON beside it. Raises OSError."""
    from safetensors.torch import save

    # clones, because safetensors refuses tensors that share memory
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in _tensors(batch)}
    keys = tensors["key"].tolist() if "key" in tensors else None
    content = {"batch_type": type(batch).__name__, "keys": keys, **facts}
    write_atomic(path, save(tensors, metadata={"format": "pt"}))
    write_atomic(path.with_suffix(".json"), (json.dumps(content, indent=2) + "\n").encode("utf-8"))


def load_saved_batch(path: str | Path) -> SavedBatch:
    """Read what `StopOnNonFinite` kept, unpickling nothing: `stage.training_step(load_saved_batch(path).batch, 0)` replays it.

    Raises WeightsError (a ValueError) for a file that is missing or damaged, or has no JSON beside it.
    """
    file = Path(path).with_suffix(".safetensors")
    tensors = load_weights(file)
    try:
        facts = json.loads(file.with_suffix(".json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{file.with_suffix('.json')} cannot be read ({error}); expected the JSON that is written beside a batch"
        ) from error
    cls = _BATCHES.get(facts.get("batch_type"))
    if cls is not None and set(cls._fields) == set(tensors):
        return SavedBatch(batch=cls(**tensors), facts=facts)
    return SavedBatch(batch=tensors[_ALONE] if set(tensors) == {_ALONE} else tensors, facts=facts)


def _tensors(value: object, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """All tensors of a nest of tuples, lists and mappings, by dotted name."""
    if isinstance(value, Tensor):
        yield name or _ALONE, value
        return
    if isinstance(value, Mapping):
        items = list(value.items())
    elif isinstance(value, tuple) and hasattr(value, "_fields"):
        items = list(zip(value._fields, value, strict=True))
    else:
        items = list(enumerate(value)) if isinstance(value, list | tuple) else []
    for key, item in items:
        yield from _tensors(item, f"{name}.{key}" if name else str(key))


def _finite(optimizer: Optimizer) -> bool:
    """Whether all gradients are finite: one norm per tensor and one look at them all, since every look waits for a GPU."""
    gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
    if not gradients:
        return True
    norms = torch.stack([norm.float() for norm in torch._foreach_norm(gradients)])
    return bool(torch.linalg.vector_norm(norms).isfinite())


def _finite_gradient(parameter: nn.Parameter) -> bool:
    return parameter.grad is None or bool(parameter.grad.isfinite().all())


def _scaler_copes(trainer: pl.Trainer) -> bool:
    """Whether a gradient scaler will skip this step and try a smaller scale. At 1 and below, it is not the scale that overflows."""
    scaler = _scaler(trainer)
    return scaler is not None and scaler.get_scale() > 1


def _scaler(trainer: pl.Trainer) -> Any:
    return getattr(trainer.precision_plugin, "scaler", None)
