"""The metrics as torchmetrics: they add up images over batches and processes and average over images."""

from pathorestore.metrics.accumulators.blind import BRISQUE as BRISQUE
from pathorestore.metrics.accumulators.blind import NIQE as NIQE
from pathorestore.metrics.accumulators.blind_score import BlindScore as BlindScore
from pathorestore.metrics.accumulators.embedding import EmbeddingSimilarity as EmbeddingSimilarity
from pathorestore.metrics.accumulators.fidelity import PSNR as PSNR
from pathorestore.metrics.accumulators.fidelity import SSIM as SSIM
from pathorestore.metrics.accumulators.frechet import FrechetDistance as FrechetDistance
from pathorestore.metrics.accumulators.nuclei import NucleiF1 as NucleiF1
from pathorestore.metrics.accumulators.nuclei import NucleiL1 as NucleiL1
from pathorestore.metrics.accumulators.perceptual import DISTS as DISTS
from pathorestore.metrics.accumulators.perceptual import LPIPS as LPIPS
from pathorestore.metrics.accumulators.stain import StainShift as StainShift
from pathorestore.metrics.accumulators.structure import GMSD as GMSD
from pathorestore.metrics.accumulators.structure import MSSSIM as MSSSIM
from pathorestore.metrics.accumulators.structure import EdgePreservation as EdgePreservation
from pathorestore.metrics.accumulators.structure import PowerSpectrumDistance as PowerSpectrumDistance
