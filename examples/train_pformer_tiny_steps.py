"""A few training steps of the coarse stage on simulated defocus, then the network as a folder of weights."""

from pathlib import Path

from PIL import Image
from skimage import data
from torch.utils.data import DataLoader

import pathorestore as pr
from pathorestore.data.sharp_crops import CropConfig, SharpCrops
from pathorestore.training.restoration_stages import PFormerStage
from pathorestore.training.stage import StageConfig

# isort: split
# after pathorestore.training, which makes torchvision importable where its operators are missing
import pytorch_lightning as pl

Image.fromarray(data.immunohistochemistry()).save("sharp.png")
crops = SharpCrops([Path("sharp.png")], CropConfig(size_px=96))

# untrained prompts will do here; a real run takes trained ones, by from_pretrained
prompter = pr.Prompter(
    encoder=pr.TinyEncoder(pr.TinyEncoderConfig.tiny()),
    defocus=pr.DefocusEstimator(pr.DefocusEstimatorConfig.tiny()),
    pathology=pr.PathologyPrompt(pr.PathologyPromptConfig.tiny()),
    edge=pr.EdgePrompt(pr.EdgePromptConfig.tiny()),
)
stage = PFormerStage(pr.PFormer(pr.PFormerConfig.tiny()), prompter, StageConfig(margin_px=16))

trainer = pl.Trainer(
    max_steps=3, limit_val_batches=0, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False
)
trainer.fit(stage, DataLoader(crops, batch_size=2), DataLoader(crops))
print(f"L1 after {trainer.global_step} steps: {trainer.callback_metrics['train_l1']:.4f}")
stage.coarse.save_pretrained("pformer")
