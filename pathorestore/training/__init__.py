"""Training: one LightningModule per stage of MoP. The only room that imports lightning."""

from pathorestore._torchvision import ensure_torchvision

ensure_torchvision()
