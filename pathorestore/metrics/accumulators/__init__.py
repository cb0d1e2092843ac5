"""The metrics as torchmetrics: they add up images over batches and processes and average over images."""

from pathorestore.metrics.accumulators.fidelity import PSNR as PSNR
from pathorestore.metrics.accumulators.fidelity import SSIM as SSIM
from pathorestore.metrics.accumulators.nuclei import NucleiL1 as NucleiL1
