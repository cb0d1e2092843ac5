"""A few training steps of the coarse stage on simulated defocus, from Python, then the network as a folder of weights."""

from dataclasses import replace
from pathlib import Path

from PIL import Image
from skimage import data

import pathorestore as pr
from pathorestore.data.drawing import CropConfig
from pathorestore.training import PFormerStage, SharpImages, trained_prompter

# isort: split
# after pathorestore.training, which makes torchvision importable where its operators are missing
import pytorch_lightning as pl

Image.fromarray(data.immunohistochemistry()).save("sharp.png")
Path("manifest.csv").write_text("path,split\nsharp.png,train\n")
images = SharpImages(Path("manifest.csv"), crops=CropConfig(crop_px=64, margin_px=16), batch_size=2, val_crops=0)

# the prompts of the embedded weights; the coarse stage starts from scratch
prompter = trained_prompter("embedded")
config = replace(pr.PFormerConfig.tiny(), hint_channels=prompter.optics.channels)
stage = PFormerStage(pr.PFormer(config), prompter)

trainer = pl.Trainer(max_steps=3, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
trainer.fit(stage, datamodule=images)
print(f"L1 after {trainer.global_step} steps: {trainer.callback_metrics['train_l1']:.4f}")
stage.coarse.save_pretrained("pformer")
