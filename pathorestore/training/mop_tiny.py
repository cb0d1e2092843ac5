"""The recipe of the embedded weights: train one stage of mop-tiny within a wall-clock budget, then assemble all.

    python -m pathorestore.training.mop_tiny defocus --train DIR --val DIR --manifest CSV --minutes 12 --out runs/mop-tiny
    python -m pathorestore.training.mop_tiny assemble --out runs/mop-tiny --to pathorestore/weights/mop-tiny

Stages in order: encoder, defocus, pathology, coarse, fine; coarse-wide and defocus-heads refine what is there.
A stage that was interrupted goes on from its last checkpoint when the same command is run; `coarse` and `fine` start from weights of theirs
that the folder holds already.
"""

import argparse
import json
import platform
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import ModelCheckpoint, TQDMProgressBar
from pytorch_lightning.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset

from pathorestore.data.sharp_crops import CropConfig, FromStep, SharpCrops, image_files
from pathorestore.diffusion.resshift import ResShift
from pathorestore.models.defocus import DefocusEstimator, DefocusEstimatorConfig
from pathorestore.models.encoders import TinyEncoder, TinyEncoderConfig
from pathorestore.models.pdiffusion import PDiffusion, PDiffusionConfig
from pathorestore.models.pformer import PFormer, PFormerConfig
from pathorestore.models.prompts import EdgePrompt, EdgePromptConfig, PathologyPrompt, PathologyPromptConfig, Prompter
from pathorestore.training.callbacks import ExponentialAverage, StopOnNonFinite, WallClockBudget
from pathorestore.training.prompt_stages import DefocusStage, EncoderStage, PathologyPromptStage
from pathorestore.training.restoration_stages import PDiffusionStage, PDiffusionStageConfig, PFormerStage
from pathorestore.training.stage import Stage, StageConfig, frozen

# one crop in five is an oversampled one
ZOOM = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.5, 2.5)
# wider guards give some more nuclear texture at several times the loss in PSNR (tried: 1.5 to 16 px)
GUARD_PX = 1.5
# The coarse stage leaves about 0.04 on images in [-1, 1]. With ResShift's kappa of 2 the last step's noise is 0.2, five times that;
# kappa 0.2 puts it at 0.02. That alone did not cure the loss of PSNR, see the guard.
PROCESS = ResShift(steps=4, kappa=0.2, min_noise=0.1)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a stage is trained. crop_px: of the crop that is left once the margin is cut. validate_every: steps."""

    batch: int
    crop_px: int
    margin_px: int
    validate_every: int
    ema: float
    learning_rate: float
    build: Callable[["Plan", Path, int], tuple[Stage, dict[str, nn.Module]]]
    clip: float = 1.0

    def stage_config(self, seed: int) -> StageConfig:
        """The stage's configuration."""
        return StageConfig(learning_rate=self.learning_rate, margin_px=self.margin_px, seed=seed)


def _encoder(plan: Plan, out: Path, seed: int) -> tuple[Stage, dict[str, nn.Module]]:
    encoder = TinyEncoder(TinyEncoderConfig.tiny())
    return EncoderStage(encoder, plan.stage_config(seed)), {"encoder": encoder}


def _defocus(plan: Plan, out: Path, seed: int) -> tuple[Stage, dict[str, nn.Module]]:
    # unsigned: between scanners the sign of axial colour varies, so one image does not tell which side of focus it is on
    defocus = DefocusEstimator(replace(DefocusEstimatorConfig.tiny(), signed=False))
    return DefocusStage(defocus, plan.stage_config(seed)), {"defocus": defocus}


def _defocus_heads(plan: Plan, out: Path, seed: int) -> tuple[Stage, dict[str, nn.Module]]:
    # the two linear heads alone: the prompt P_D, which later stages were trained on, stays what it is
    defocus = DefocusEstimator.from_pretrained(out / "defocus")
    frozen(defocus)
    defocus.fc.requires_grad_(True)
    defocus.fc2.requires_grad_(True)
    return DefocusStage(defocus, plan.stage_config(seed)), {"defocus": defocus}


def _pathology(plan: Plan, out: Path, seed: int) -> tuple[Stage, dict[str, nn.Module]]:
    encoder, defocus = TinyEncoder.from_pretrained(out / "encoder"), DefocusEstimator.from_pretrained(out / "defocus")
    pathology = PathologyPrompt(PathologyPromptConfig.tiny())
    return PathologyPromptStage(pathology, encoder, defocus, plan.stage_config(seed)), {"pathology": pathology}


def _prompter(out: Path) -> Prompter:
    encoder, defocus = TinyEncoder.from_pretrained(out / "encoder"), DefocusEstimator.from_pretrained(out / "defocus")
    return Prompter(encoder, defocus, PathologyPrompt.from_pretrained(out / "pathology"), EdgePrompt(EdgePromptConfig.tiny()))


def _coarse(plan: Plan, out: Path, seed: int) -> tuple[Stage, dict[str, nn.Module]]:
    started = (out / "coarse" / "config.json").exists()
    coarse = PFormer.from_pretrained(out / "coarse") if started else PFormer(PFormerConfig.tiny())
    return PFormerStage(coarse, _prompter(out), plan.stage_config(seed)), {"coarse": coarse}


def _fine(plan: Plan, out: Path, seed: int) -> tuple[Stage, dict[str, nn.Module]]:
    prompter, fine = _prompter(out), PDiffusion(PDiffusionConfig.tiny())
    if (out / "fine" / "config.json").exists():
        fine = PDiffusion.from_pretrained(out / "fine").train()
        prompter.edge.load_state_dict(EdgePrompt.from_pretrained(out / "edge").state_dict())
    config = PDiffusionStageConfig(learning_rate=plan.learning_rate, margin_px=plan.margin_px, seed=seed, reuse=8, memory=64)
    stage = PDiffusionStage(fine, PROCESS, prompter, PFormer.from_pretrained(out / "coarse"), config)
    return stage, {"fine": fine, "edge": prompter.edge}


PLANS = {
    "encoder": Plan(batch=32, crop_px=128, margin_px=16, validate_every=100, ema=0.99, learning_rate=2e-3, build=_encoder),
    "defocus": Plan(batch=16, crop_px=96, margin_px=32, validate_every=200, ema=0.99, learning_rate=2e-3, build=_defocus),
    "defocus-heads": Plan(batch=16, crop_px=96, margin_px=32, validate_every=100, ema=0.98, learning_rate=3e-3, build=_defocus_heads),
    "pathology": Plan(batch=16, crop_px=128, margin_px=32, validate_every=200, ema=0.99, learning_rate=1e-3, build=_pathology),
    "coarse": Plan(batch=8, crop_px=64, margin_px=32, validate_every=400, ema=0.995, learning_rate=1e-3, build=_coarse),
    # a second, short pass of the coarse stage on crops nearer to the size of the tiles that it will meet
    "coarse-wide": Plan(batch=4, crop_px=128, margin_px=32, validate_every=200, ema=0.99, learning_rate=3e-4, build=_coarse),
    "fine": Plan(batch=8, crop_px=128, margin_px=32, validate_every=1200, ema=0.995, learning_rate=7e-4, build=_fine),
}


def train(
    name: str, *, train_dir: Path, val_dir: Path, manifest: Path | None, minutes: float, out: Path, seed: int, precision: str
) -> None:
    """Train one stage and save its parts as `out/<part>/`, with a record of how in `out/<stage>.json`."""
    plan = PLANS[name]
    with torch.random.fork_rng():
        torch.default_generator.manual_seed(seed)  # initial weights; every later draw has a generator of its own
        stage, parts = plan.build(plan, out, seed)
    average, budget = ExponentialAverage(plan.ema), WallClockBudget(minutes)
    checkpoints = out / "checkpoints" / name
    trainer = pl.Trainer(
        max_epochs=-1,
        accelerator="auto",
        devices=1,
        precision=cast(Any, precision),
        gradient_clip_val=plan.clip,
        logger=CSVLogger(out / "logs", name=name),
        callbacks=[
            budget,
            average,
            StopOnNonFinite(),
            ModelCheckpoint(checkpoints, every_n_train_steps=100, save_last=True, save_top_k=0),
            TQDMProgressBar(refresh_rate=25),
        ],
        val_check_interval=plan.validate_every,
        num_sanity_val_steps=0,
        log_every_n_steps=25,
        enable_model_summary=False,
    )
    last = checkpoints / "last.ckpt"
    resume = str(last) if last.exists() else None
    first = int(torch.load(last, weights_only=True)["global_step"]) if resume else 0
    full = plan.crop_px + 2 * plan.margin_px
    crops = SharpCrops(image_files(train_dir, manifest=manifest), CropConfig(size_px=full, zoom=ZOOM, seed=seed))
    feeder: DataLoader[Tensor] = DataLoader(crops, batch_size=plan.batch, sampler=FromStep(first * plan.batch), drop_last=True)
    trainer.fit(stage, feeder, _validation(val_dir, plan), ckpt_path=resume)
    average.swap(stage)
    for part, module in parts.items():
        cast(Any, module).save_pretrained(out / part)
    final = validate(name, val_dir=val_dir, out=out, precision=precision)
    record = {
        "stage": name,
        "command": "python -m pathorestore.training.mop_tiny " + " ".join(sys.argv[1:]),
        "seed": seed,
        "steps": trainer.global_step,
        "batch": plan.batch,
        "crop_px": plan.crop_px,
        "images": len(crops.images),
        "minutes": round(budget.spent_s / 60, 1),
        "precision": precision,
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, torch {torch.__version__}",
        "validation": final,
    }
    (out / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")


def validate(name: str, *, val_dir: Path, out: Path, precision: str) -> dict[str, float]:
    """The validation figures of a stage's parts as they are saved in `out`: of what would be shipped, not of what was being trained."""
    plan = PLANS[name]
    with torch.random.fork_rng():
        stage, parts = plan.build(plan, out, 0)
    for part, module in parts.items():
        module.load_state_dict(cast(Any, type(module)).from_pretrained(out / part).state_dict())
    trainer = pl.Trainer(accelerator="auto", devices=1, precision=cast(Any, precision), logger=False, enable_progress_bar=False)
    (figures,) = trainer.validate(stage, _validation(val_dir, plan), verbose=False)
    return {key: round(float(value), 4) for key, value in figures.items()}


def _validation(folder: Path, plan: Plan) -> DataLoader[Tensor]:
    """One centre-weighted set of crops, the same every time: at most 32, one batch of 8 at a time."""
    full = plan.crop_px + 2 * plan.margin_px
    crops = SharpCrops(image_files(folder), CropConfig(size_px=full, augment=False, seed=1))
    return DataLoader(Subset(crops, range(32)), batch_size=32 if plan.crop_px >= 128 and plan.batch > 8 else 8)


def main() -> None:
    """Parse and train, or assemble."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stage", choices=[*PLANS, "assemble"])
    parser.add_argument("--train", type=Path, help="folder of sharp training images")
    parser.add_argument("--val", type=Path, help="folder of sharp images to tune on")
    parser.add_argument("--manifest", type=Path, help="CSV with columns file, non_commercial; only rows marked no are trained on")
    parser.add_argument("--minutes", type=float, default=10.0, help="wall-clock budget of the stage")
    parser.add_argument("--out", type=Path, required=True, help="where parts, records, logs and checkpoints go")
    parser.add_argument("--to", type=Path, help="assemble: where the fp16 weights go; its name becomes the card's title")
    parser.add_argument("--data", default="", help="assemble: what the model card says of the training images and their licences")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", default="32-true", choices=["32-true", "bf16-mixed"])
    args = parser.parse_args()
    if args.stage == "assemble":
        from pathorestore.training.assemble import assemble

        assemble(args.out, args.to, data=args.data)
        return
    if args.train is None or args.val is None:
        parser.error("training needs --train and --val")
    train(
        args.stage,
        train_dir=args.train,
        val_dir=args.val,
        manifest=args.manifest,
        minutes=args.minutes,
        out=args.out,
        seed=args.seed,
        precision=args.precision,
    )


if __name__ == "__main__":
    main()
