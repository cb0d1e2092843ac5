"""The contrastive encoder of LPFM: the same patch in every stain and quality, and the same degradation of every patch."""

import copy
from dataclasses import dataclass, replace
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from pytorch_lightning.cli import OptimizerCallable
from torch import Tensor

from pathorestore.data.batches import PairBatch
from pathorestore.data.synthetic import sharp_middle
from pathorestore.degradations.blind import applied, summary
from pathorestore.degradations.blind_recipes import Recipe
from pathorestore.degradations.composed import Composed, Theta
from pathorestore.degradations.stain import SYNTHETIC_STAINS, RandStainNA, hed_jitter, synthetic_stain
from pathorestore.functional.color import luminance
from pathorestore.functional.noise import stream
from pathorestore.hub import Pretrained
from pathorestore.losses import domain_lean, info_nce, supervised_contrast
from pathorestore.models.contrastive import ContrastiveEncoder, Impression
from pathorestore.training.schedules import Schedule
from pathorestore.training.stage import Batch, Stage, frozen

_FAULTS, _VIEWS = 14, 15  # salts of the random streams
_HED_SIGMA = 0.3
_GREY_SHARE = 0.1
_RESTAINED_SHARE = 0.5
_PLAIN_SHARE = 0.5
_RIDGE, _PACE = 0.05, 0.02  # of the covariance of contents: against directions that are all but empty, and how fast it follows
_UNTOUCHED = -1


class Views(NamedTuple):
    """Views of patches, those of one behind each other: n images 3 s s, theta n 5; which patch, degradation and stain each has, n."""

    image: Tensor
    theta: Tensor
    patch: Tensor
    fault: Tensor
    stain: Tensor

    def to(self, device: torch.device) -> "Views":
        """The same there."""
        return Views(*(value.to(device) for value in self))


@dataclass(frozen=True, kw_only=True)
class Contrast:
    """What is contrasted with what. faults: degradations that all patches of a batch meet; alone: further ones, of each patch its own.

    view_px: side of a view. temperature: of both contrasts. degradation_weight, theta_weight, stain_weight: of these losses. queue: content
    keys of earlier batches as further negatives, found by a moving average of the encoder with `momentum` (He et al., MoCo, CVPR 2020); 0
    contrasts within the batch.
    """

    faults: int = 3
    alone: int = 3
    view_px: int = 64
    temperature: float = 0.1
    degradation_weight: float = 1.0
    theta_weight: float = 0.1
    stain_weight: float = 0.0
    queue: int = 0
    momentum: float = 0.999

    def __post_init__(self) -> None:
        weights = (self.degradation_weight, self.theta_weight, self.stain_weight)
        if (
            self.faults < 2
            or self.alone < 0
            or self.view_px < 16
            or self.queue < 0
            or not 0 <= self.momentum < 1
            or self.temperature <= 0
            or min(weights) < 0
        ):
            raise ValueError(
                "expected faults >= 2, alone >= 0, view_px >= 16, queue >= 0, momentum in [0, 1), temperature > 0 and no negative weight; "
                f"got {self}"
            )


class ContrastiveStage(Stage):
    """Patches times degradations: a batch in which each patch is seen in each degradation, every time in another stain, window and turn.

    And in some that no other patch meets, so that there are more to learn parameters from. The content head learns that views of a patch
    belong together, the degradation head that views of a degradation do; a third regresses its parameters (smooth L1). Contents of one
    stain must not lie apart from those of another: `domain_lean` of whitened contents, as linear classifiers see them. Of pairs, degraded
    and clean are taken for two stains of one tissue, seen in turns. Stain is varied before the degradation, as in life, so that noise keeps
    its level.

    recipe: of the degradations; `Composed.any()` unless given. Under several processes each contrasts its own views.
    """

    trained = ("contrastive",)
    figures = ("retrieval", "same_fault", "theta_mae", "stain_lean")

    def __init__(
        self,
        contrastive: ContrastiveEncoder,
        *,
        recipe: Recipe | None = None,
        contrast: Contrast | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        schedule: Schedule | None = None,
        seed: int = 0,
    ):
        super().__init__(optimizer=optimizer, schedule=schedule)
        self.contrastive, self.recipe, self.contrast = contrastive, recipe or Composed.any(), contrast or Contrast()
        self.stain = RandStainNA.mop()
        self.simulation = replace(self.simulation, seed=seed)
        self.keys = frozen(copy.deepcopy(contrastive)) if self.contrast.queue else None
        width = contrastive.config.content_dim
        self.register_buffer("queue", F.normalize(torch.randn(self.contrast.queue, width), dim=1))
        self.register_buffer("covariance", torch.eye(width) / width)

    def parts(self) -> dict[str, Pretrained]:
        """The encoder with its heads."""
        return {"contrastive": self.contrastive}

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Both contrasts, the regression and the lean to stains."""
        views = self.views(batch)
        told: Impression = self.contrastive(views.image)
        content = self._content_loss(told.content, views)
        degradation = supervised_contrast(told.degradation, views.fault, temperature=self.contrast.temperature)
        theta = F.smooth_l1_loss(told.theta, views.theta)
        self._follow(told.content)
        lean = domain_lean(self._whitened(told.content), views.stain, views.patch)
        terms = {"train_content": content, "train_degradation": degradation, "train_theta": theta, "train_lean": lean}
        self.log_dict(terms, prog_bar=True)
        weights = self.contrast
        return content + weights.degradation_weight * degradation + weights.theta_weight * theta + weights.stain_weight * lean

    def on_train_batch_end(self, *args: object) -> None:
        """The encoder of the keys follows."""
        del args
        if self.keys is not None:
            with torch.no_grad():
                for own, learnt in zip(self.keys.parameters(), self.contrastive.parameters(), strict=True):
                    own.lerp_(learnt, 1 - self.contrast.momentum)

    def evaluate(self, batch: Batch) -> None:
        """Is the nearest content, of all other views, of the same patch, and the nearest degradation the same; error of theta; lean."""
        views = self.views(batch)
        told: Impression = self.contrastive(views.image)
        shared = views.fault < self.contrast.faults
        self.score("retrieval", _nearest(told.content, views.patch), progress_bar=True)
        self.score("same_fault", _nearest(told.degradation[shared], views.fault[shared]), progress_bar=True)
        self.score("theta_mae", (told.theta - views.theta).abs().mean(dim=1), progress_bar=True)
        self.score("stain_lean", domain_lean(self._whitened(told.content), views.stain, views.patch)[None])

    def pictures(self, batch: Batch) -> dict[str, Tensor]:
        """The views of each patch."""
        views = self.views(batch)
        return {f"view {number}": views.image[number :: self._views_each] for number in range(self._views_each)}

    @property
    def _views_each(self) -> int:
        """Of a patch."""
        return self.contrast.faults + self.contrast.alone

    def views(self, batch: Batch) -> Views:
        """Each patch in each degradation."""
        with torch.no_grad(), torch.autocast("cpu", enabled=False):  # degradations work there, in single precision
            return self._views(batch)

    def _views(self, batch: Batch) -> Views:
        sources = (batch.degraded, batch.clean) if isinstance(batch, PairBatch) else (sharp_middle(batch),)
        size = (self.contrast.view_px, self.contrast.view_px)
        # one draw for all patches of the batch; what the stages draw themselves, such as noise, is each view's own
        shared = [self.recipe.plan(size, stream(self.simulation.seed, _FAULTS, int(batch.key[0]), n)) for n in range(self.contrast.faults)]
        images, plans, faults, stains = [], [], [], []
        for index, generator in enumerate(self.streams(batch.key, salt=_VIEWS)):
            own = [self.recipe.plan(size, generator) for _ in range(self.contrast.alone)]
            for number, stages in enumerate([*shared, *own]):
                turn = number % len(sources)
                view, stain = self._view(sources[turn][index : index + 1].float().cpu(), generator)
                images.append(applied(stages, view, generator=generator))
                plans.append(stages)
                stains.append(stain * len(sources) + turn)
                # what is untouched is alike, whoever drew it
                faults.append(_UNTOUCHED if not stages else number if number < len(shared) else len(plans) + len(shared))
        theta = Theta.of([summary(stages, size) for stages in plans]).normalised()
        device = sources[0].device
        patch = torch.arange(len(batch.key)).repeat_interleave(self._views_each)
        return Views(torch.cat(images), theta, patch, torch.tensor(faults), torch.tensor(stains)).to(device)

    def _view(self, image: Tensor, generator: torch.Generator) -> tuple[Tensor, int]:
        """A window of 1 3 h w, turned or mirrored, colours plain, varied or grey; as stained, 0, or in a synthetic stain, its number."""
        slack = [side - self.contrast.view_px for side in image.shape[-2:]]
        if min(slack) < 0:
            got = tuple(image.shape[-2:])
            raise ValueError(f"crops of {got} px are smaller than view_px={self.contrast.view_px}; enlarge the crops or lower view_px")
        top, left = (int(torch.randint(room + 1, (), generator=generator)) for room in slack)
        view = image[..., top : top + self.contrast.view_px, left : left + self.contrast.view_px]
        view = torch.rot90(view, int(torch.randint(4, (), generator=generator)), dims=(2, 3))
        view = view.flip(-1) if torch.rand((), generator=generator) < 0.5 else view
        stain = 0
        if torch.rand((), generator=generator) < _RESTAINED_SHARE:
            stain = 1 + int(torch.randint(len(SYNTHETIC_STAINS), (), generator=generator))
            view = synthetic_stain(view, SYNTHETIC_STAINS[stain - 1])
        if torch.rand((), generator=generator) < _PLAIN_SHARE:
            return view, stain
        view = hed_jitter(self.stain(view, generator=generator), sigma=_HED_SIGMA, generator=generator)
        return luminance(view).expand_as(view) if torch.rand((), generator=generator) < _GREY_SHARE else view, stain

    @torch.no_grad()
    def _follow(self, content: Tensor) -> None:
        """Let the covariance follow."""
        cast(Tensor, self.covariance).lerp_(content.detach().float().T.cov(), _PACE)

    def _whitened(self, content: Tensor) -> Tensor:
        """Contents n d whose directions all vary as much."""
        found = cast(Tensor, self.covariance)
        values, directions = torch.linalg.eigh(found + _RIDGE * found.diagonal().mean() * torch.eye(len(found), device=found.device))
        return content.float() @ (directions * values.rsqrt())

    def _content_loss(self, content: Tensor, views: Views) -> Tensor:
        if self.keys is None:
            return supervised_contrast(content, views.patch, temperature=self.contrast.temperature)
        with torch.no_grad():
            key = cast(Impression, self.keys(views.image[1 :: self._views_each])).content
        queue = cast(Tensor, self.queue)
        loss = info_nce(content[:: self._views_each], key, temperature=self.contrast.temperature, negatives=queue.clone())
        queue.copy_(torch.cat([key, queue])[: len(queue)])
        return loss


def _nearest(vector: Tensor, label: Tensor) -> Tensor:
    """Whether the nearest other one has the same label."""
    likeness = (vector @ vector.T).fill_diagonal_(-torch.inf)
    return label[likeness.argmax(dim=1)] == label
