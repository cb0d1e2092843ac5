"""What the ablations of the paper vary: one row a variant, each the package's own training with one thing changed.

Mixture of Prompts, arXiv 2503.12399, tables 4 to 7.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, NamedTuple, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pathorestore.diffusion.resshift import ResShift
from pathorestore.models.defocus import DefocusEstimator, DefocusEstimatorConfig
from pathorestore.models.encoders import PathologyEncoder, TinyEncoder
from pathorestore.models.pdiffusion import PDiffusion, PDiffusionConfig
from pathorestore.models.pformer import PFormer, PFormerConfig, Restormer, RestormerConfig
from pathorestore.models.prompts import EdgePrompt, EdgePromptConfig, PathologyPrompt, PathologyPromptConfig, Prompter, Prompts
from pathorestore.models.unet import UNetConfig
from pathorestore.pipelines.refine import FineSettings
from pathorestore.training.parts import Folder, trained_coarse, trained_defocus, trained_encoder, trained_prompter
from pathorestore.training.prompt_stages import DefocusStage, PathologyPromptStage
from pathorestore.training.recipe import Recipe, read_recipe
from pathorestore.training.restoration_stages import ChainTraining, PDiffusionStage, PFormerStage, RestormerStage
from pathorestore.training.stage import Stage

M = TypeVar("M", bound=nn.Module)

# the paper's names of what a router can be shown beside the features
VECTORS = {"P_D": "defocus", "P_LP": "degraded_pathology", "P_P": "pathology"}
# of an encoder row's steps; the tiny configurations have 2,000 for the prompt and 6,000 for the coarse stage
PROMPT_SHARE = 0.25


class RouterStage(PFormerStage):
    """A coarse stage whose routers see the vectors named by `sees` in place of the restored pathology prompt; () leaves the features alone.

    Several vectors are normalised each for itself before they are concatenated. The network's own normalisation, of the whole, would let
    the widest one and the one that is never negative, P_D, set the scale of the others. One vector alone is left to the network, so that
    P_P is the package's own P-former.
    """

    def __init__(self, coarse: PFormer, prompter: Prompter, *, sees: Sequence[str], **options: Any):
        super().__init__(coarse, prompter, **options)
        self.sees = tuple(sees)

    def guide(self, prompts: Prompts) -> Tensor:
        """The chosen vectors, b prompt_dim."""
        vectors: list[Tensor] = [getattr(prompts, VECTORS[name]) for name in self.sees]
        if len(vectors) > 1 and self.coarse.config.router_norm:
            vectors = [F.layer_norm(vector, vector.shape[-1:]) for vector in vectors]
        return torch.cat([prompts.pathology[:, :0], *vectors], dim=1)


class ToldStage(PDiffusionStage):
    """A fine stage that is told only the prompts named by `sees` (P_P, P_E or P_LE); the others are zero, in training as in use.

    So every row has the same network. Of a zero pathology prompt the network's own bias is left, the same context for every image.
    """

    def __init__(
        self, fine: PDiffusion, settings: FineSettings, prompter: Prompter, coarse: PFormer, *, sees: Sequence[str], **options: Any
    ):
        super().__init__(fine, settings, prompter, coarse, **options)
        self.sees = tuple(sees)

    def told(self, prompts: Prompts) -> Prompts:
        """The prompts with zeros for what is not seen."""
        pathology = prompts.pathology if "P_P" in self.sees else torch.zeros_like(prompts.pathology)
        edge = prompts.edge if {"P_E", "P_LE"} & set(self.sees) else torch.zeros_like(prompts.edge)
        return prompts._replace(pathology=pathology, edge=edge)


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What all rows of an ablation share: sizes and training by preset, parts trained before, and the seed of all that is random."""

    preset: str
    parts: Folder
    seed: int

    def recipe(self, stage: str) -> Recipe:
        """How a stage trains."""
        return read_recipe(f"{stage}_{self.preset}")

    @cached_property
    def given(self) -> Prompter:
        """The prompts of the folder of parts."""
        return trained_prompter(self.parts)

    def prompter(self, *, encoder: PathologyEncoder | None = None, pathology: PathologyPrompt | None = None) -> Prompter:
        """Prompts for a coarse stage: of the folder but for what is given; without an optics prompt, as the paper has none."""
        return Prompter(encoder or self.given.encoder, self.given.defocus, pathology or self.given.pathology, self.given.edge)

    def fresh(self, make: Callable[[], M], like: Callable[[], nn.Module] | None = None) -> M:
        """A network with the seed's initial weights: those of `like` wherever name and shape agree, so that rows start alike."""
        module, pattern = (self._seeded(build) for build in (make, like or make))
        initial = pattern.state_dict()
        shared = {name: initial[name] for name, own in module.state_dict().items() if name in initial and initial[name].shape == own.shape}
        module.load_state_dict(shared, strict=False)
        return cast(M, module)

    def _seeded(self, build: Callable[[], nn.Module]) -> nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(self.seed)
            return build()


class Phase(NamedTuple):
    """One training of a row. name: of the configuration it follows. share: of the row's steps. stage: with fresh weights."""

    name: str
    share: float
    stage: Stage
    recipe: Recipe


@dataclass(frozen=True)
class Row(ABC):
    """A row of a table. paper: what the paper reports for it."""

    name: str
    paper: str

    @abstractmethod
    def phases(self, bench: Bench) -> Iterator[Phase]:
        """The trainings of this row, one after the other: each may use what the one before, trained by then, has learnt."""

    def effort(self, bench: Bench) -> float:
        """How much work a step of this row is, beside the others of its table."""
        del bench
        return 0.0

    def facts(self) -> dict[str, str]:
        """What distinguishes this row from another of the same name, such as the weights that a user named."""
        return {}


@dataclass(frozen=True)
class RouterRow(Row):
    """A P-former whose routers see `sees`, and GAP(F) if `features`."""

    sees: tuple[str, ...] = ()
    features: bool = True

    def phases(self, bench: Bench) -> Iterator[Phase]:
        """One training."""
        recipe, prompter = bench.recipe("pformer"), bench.prompter()
        width = sum(_width(prompter, name) for name in self.sees)
        config = pformer_config(recipe, prompt_dim=width, route_features=self.features)
        coarse = bench.fresh(lambda: PFormer(config), like=lambda: PFormer(pformer_config(recipe, prompt_dim=prompter.dim)))
        yield Phase("pformer", 1.0, RouterStage(coarse, prompter, sees=self.sees, **recipe.stage_options(bench.seed)), recipe)

    def effort(self, bench: Bench) -> float:
        """More vectors, wider routers."""
        del bench
        return len(self.sees) + self.features


@dataclass(frozen=True)
class RestormerRow(Row):
    """A Restormer of the P-former's width and depth: no routers, no experts."""

    def phases(self, bench: Bench) -> Iterator[Phase]:
        """One training."""
        recipe, prompter = bench.recipe("pformer"), bench.prompter()
        pattern = pformer_config(recipe, prompt_dim=prompter.dim)
        config = RestormerConfig(**{field.name: getattr(pattern, field.name) for field in fields(RestormerConfig)})
        coarse = bench.fresh(lambda: Restormer(config), like=lambda: PFormer(pattern))
        yield Phase("pformer", 1.0, RestormerStage(coarse, prompter, **recipe.stage_options(bench.seed)), recipe)

    def effort(self, bench: Bench) -> float:
        """More than any router: its feed-forward networks are twice as wide inside."""
        del bench
        return len(VECTORS) + 2


@dataclass(frozen=True)
class PromptsRow(Row):
    """A P-diffusion over the folder's coarse stage that is told `sees`. P_LE are the edges without their weight by P_D."""

    sees: tuple[str, ...] = ()

    def phases(self, bench: Bench) -> Iterator[Phase]:
        """One training; network and edge prompt are fresh. The fine stage always starts from the coarse image, as in the paper's table."""
        recipe, given = bench.recipe("pdiffusion"), bench.given
        sizes = recipe.sizes("fine")
        config = PDiffusionConfig(**sizes | {"unet": UNetConfig(**sizes["unet"]), "prompt_dim": given.dim})
        weighted = EdgePromptConfig(defocus_dim=given.defocus.dim, channels=config.edge_channels, factor=config.factor)
        edges = replace(weighted, weighted="P_LE" not in self.sees)
        edge = bench.fresh(lambda: EdgePrompt(edges), like=lambda: EdgePrompt(weighted))
        chain = ChainTraining(**dict(recipe.model.get("chain", {})) | {"degraded_share": 0.0, "prompt_dropout": 0.0})
        stage = ToldStage(
            bench.fresh(lambda: PDiffusion(config)),
            FineSettings(**recipe.model["settings"] | {"process": ResShift(**recipe.model["settings"]["process"])}),
            Prompter(given.encoder, given.defocus, given.pathology, edge, given.optics),
            trained_coarse(bench.parts),
            sees=self.sees,
            chain=chain,
            **recipe.stage_options(bench.seed),
        )
        yield Phase("pdiffusion", 1.0, stage, recipe)

    def effort(self, bench: Bench) -> float:
        """More prompts, more work."""
        del bench
        return len(self.sees)


@dataclass(frozen=True)
class EstimatorRow(Row):
    """A defocus estimator with these weights of its two losses."""

    distance_weight: float = 1.0
    ctf_weight: float = 1.0

    def phases(self, bench: Bench) -> Iterator[Phase]:
        """One training."""
        recipe = bench.recipe("defocus")
        estimator = bench.fresh(lambda: DefocusEstimator(DefocusEstimatorConfig(**recipe.sizes("defocus"))))
        options = recipe.stage_options(bench.seed) | {"distance_weight": self.distance_weight, "ctf_weight": self.ctf_weight}
        yield Phase("defocus", 1.0, DefocusStage(estimator, **options), recipe)


@dataclass(frozen=True)
class EncoderRow(Row):
    """A pathology prompt for an encoder, then a P-former that is guided by it.

    build: makes the encoder, which stays frozen. origin: which weights it has, as far as the name does not say.
    """

    build: Callable[[Bench], PathologyEncoder] = lambda bench: trained_encoder(bench.parts)
    origin: Mapping[str, str] | None = None

    def phases(self, bench: Bench) -> Iterator[Phase]:
        """Two trainings, which share the row's steps."""
        recipe, encoder, usual = bench.recipe("pathology"), self.build(bench), bench.given.dim

        def prompt(encoder_dim: int) -> PathologyPrompt:
            sizes = recipe.sizes("pathology") | {"encoder_dim": encoder_dim, "defocus_dim": bench.given.defocus.dim}
            return PathologyPrompt(PathologyPromptConfig(**sizes))

        pathology = bench.fresh(lambda: prompt(encoder.dim), like=lambda: prompt(usual))
        options = recipe.stage_options(bench.seed)
        stage = PathologyPromptStage(pathology, cast(nn.Module, encoder), trained_defocus(bench.parts), **options)
        yield Phase("pathology", PROMPT_SHARE, stage, recipe)

        second, prompter = bench.recipe("pformer"), bench.prompter(encoder=encoder, pathology=pathology)
        config = pformer_config(second, prompt_dim=encoder.dim)
        coarse = bench.fresh(lambda: PFormer(config), like=lambda: PFormer(pformer_config(second, prompt_dim=usual)))
        options = second.stage_options(bench.seed)
        yield Phase("pformer", 1 - PROMPT_SHARE, PFormerStage(coarse, prompter, **options), second)

    def effort(self, bench: Bench) -> float:
        """The encoder's parameters."""
        return sum(parameter.numel() for parameter in cast(nn.Module, self.build(bench)).parameters())

    def facts(self) -> dict[str, str]:
        """The weights' origin."""
        return dict(self.origin or {})


def untrained_encoder(bench: Bench) -> TinyEncoder:
    """The folder's encoder as it was before training: the seed's initial weights."""
    config = trained_encoder(bench.parts).config
    return bench.fresh(lambda: TinyEncoder(config)).eval()


def pformer_config(recipe: Recipe, **changes: Any) -> PFormerConfig:
    """The coarse stage of a recipe, without hints: the paper has no optics prompt."""
    return PFormerConfig(**recipe.sizes("coarse") | {"hint_channels": 0} | changes)


def _width(prompter: Prompter, vector: str) -> int:
    return prompter.defocus.dim if vector == "P_D" else prompter.dim
