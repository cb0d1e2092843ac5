"""Put trained parts together into one restorer on disk, with a model card that says how they came to be."""

import json
from pathlib import Path

import torch

from pathorestore.hub import ModelCard
from pathorestore.models.defocus import DefocusEstimator
from pathorestore.models.encoders import TinyEncoder
from pathorestore.models.pdiffusion import PDiffusion
from pathorestore.models.pformer import PFormer
from pathorestore.models.prompts import EdgePrompt, PathologyPrompt, Prompter
from pathorestore.pipelines.mop import MoPRestorer
from pathorestore.pipelines.refine import DiffusionRefiner, FineSettings


def assemble(out: Path, to: Path | None, *, data: str = "") -> None:
    """Collect the parts of `out` into a `MoPRestorer` in fp16 safetensors at `to`, with the records of its training in the card.

    data: what the card says of the training images.
    """
    if to is None:
        raise ValueError("assemble needs --to, the folder that the weights go to")
    from pathorestore.training.mop_tiny import GUARD_PX, PROCESS

    prompter = Prompter(
        TinyEncoder.from_pretrained(out / "encoder"),
        DefocusEstimator.from_pretrained(out / "defocus"),
        PathologyPrompt.from_pretrained(out / "pathology"),
        EdgePrompt.from_pretrained(out / "edge"),
    )
    fine = DiffusionRefiner(PDiffusion.from_pretrained(out / "fine"), FineSettings(process=PROCESS, guard_px=GUARD_PX))
    restorer = MoPRestorer(prompter, PFormer.from_pretrained(out / "coarse"), fine)
    restorer.save_pretrained(to, card=_card(out, title=to.name, data=data), dtype=torch.float16)


def _card(out: Path, *, title: str, data: str) -> ModelCard:
    order = ("encoder", "defocus", "defocus-heads", "pathology", "coarse-start", "coarse", "coarse-wide", "fine-start", "fine")
    records = [json.loads((out / f"{name}.json").read_text(encoding="utf-8")) for name in order if (out / f"{name}.json").exists()]
    metrics = {f"{record['stage']}: {key} (val crops)": value for record in records for key, value in record["validation"].items()}
    minutes = ", ".join(f"{record['stage']} {record['minutes']:g} min ({record['steps']} steps of {record['batch']})" for record in records)
    images = records[0].get("images", "an unrecorded number of") if records else "no"
    stages = " ".join(f"{record['stage']}:{record['minutes']:g}:{record['precision']}" for record in records)
    return ModelCard(
        title=title,
        summary=(
            "A two-stage defocus restorer: a 0.85 M parameter P-former and a 1.45 M parameter P-diffusion (4 ResShift steps), "
            "told by a defocus estimator (unsigned distance), a self-supervised encoder and Canny edges. Trained on simulated defocus: "
            "expect less on real slides, most of all where the blur comes with a section's depth."
        ),
        data=f"{data or 'not described'}; {images} sharp images, defocused by Setting.ideal() in most batches, else by Setting.scanner()",
        seed=str(records[0]["seed"]) if records else "",
        command=f"python -m pathorestore.training.mop_tiny STAGE --minutes M --precision P, for STAGE:M:P in {stages}",
        duration=f"{minutes}; on {records[0]['machine']}" if records else "",
        metrics=metrics,
        references=(
            "Mixture of Prompts: arXiv 2503.12399. Restormer: Zamir et al., CVPR 2022. ResShift: Yue et al., NeurIPS 2023. "
            "RandStainNA: Shen et al., MICCAI 2022. VICReg: Bardes et al., ICLR 2022.",
        ),
    )
