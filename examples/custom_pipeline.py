"""Put a system together from parts: an encoder of your own, a coarse stage, no fine stage, tiles around it all."""

import torch
import torch.nn.functional as F
from torch import nn

import pathorestore as pr
from pathorestore.image import to_uint8
from pathorestore.models.encoders import Embedding


class ColourEncoder(nn.Module):
    """Any callable from images to an `Embedding` of width `dim` is a pathology encoder; this one only knows mean colours."""

    dim = 48

    def forward(self, image: torch.Tensor) -> Embedding:
        tokens = F.adaptive_avg_pool2d(image, 8).flatten(2).transpose(1, 2).repeat(1, 1, self.dim // 3)
        return Embedding(tokens.mean(dim=1), tokens)


# as a rule from_pretrained("some/folder"); untrained networks show the wiring just as well
prompter = pr.Prompter(
    encoder=ColourEncoder(),
    defocus=pr.DefocusEstimator(pr.DefocusEstimatorConfig.tiny()),
    pathology=pr.PathologyPrompt(pr.PathologyPromptConfig(encoder_dim=48)),
    edge=pr.EdgePrompt(pr.EdgePromptConfig.tiny()),
)
coarse = pr.PFormer(pr.PFormerConfig(dim=16, blocks=(1, 1, 1, 1), refinement=1, prompt_dim=48))
restorer = pr.TiledRestorer(pr.MoPRestorer(prompter.eval(), coarse.eval(), fine=pr.KeepCoarse()), tile_px=64, overlap_px=8)

blurred = torch.rand(1, 3, 100, 150, generator=torch.Generator().manual_seed(0))
restored = restorer.restore(blurred, seed=0)
print(f"{tuple(blurred.shape)} in, {tuple(restored.shape)} out, {to_uint8(restored).dtype} on disk")
