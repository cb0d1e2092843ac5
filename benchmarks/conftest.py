"""Fixtures of the benchmarks, and the table at their end."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture
from taking_turns import TakingTurns

from pathorestore.diffusion.resshift import ResShift
from pathorestore.models.defocus import DefocusEstimator, DefocusEstimatorConfig
from pathorestore.models.encoders import TinyEncoder, TinyEncoderConfig
from pathorestore.models.pdiffusion import PDiffusion, PDiffusionConfig
from pathorestore.models.pformer import PFormer, PFormerConfig
from pathorestore.models.prompts import EdgePrompt, EdgePromptConfig, PathologyPrompt, PathologyPromptConfig, Prompter
from pathorestore.pipelines.mop import MoPRestorer
from pathorestore.pipelines.refine import DiffusionRefiner, FineSettings


@pytest.fixture
def taking_turns(benchmark: BenchmarkFixture) -> TakingTurns:
    """See `TakingTurns`."""
    return TakingTurns(benchmark)


@pytest.fixture(scope="session")
def untrained() -> MoPRestorer:
    """A tiny two-stage restorer as it is born; training changes no time."""
    torch.manual_seed(0)
    encoder, defocus = TinyEncoder(TinyEncoderConfig.tiny()), DefocusEstimator(DefocusEstimatorConfig.tiny())
    prompter = Prompter(encoder, defocus, PathologyPrompt(PathologyPromptConfig.tiny()), EdgePrompt(EdgePromptConfig.tiny()))
    return MoPRestorer(
        prompter, PFormer(PFormerConfig.tiny()), DiffusionRefiner(PDiffusion(PDiffusionConfig.tiny()), FineSettings(process=ResShift()))
    ).eval()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Everything that benchmarks noted, as one Markdown table."""
    session = getattr(config, "_benchmarksession", None)
    noted = [(bench.name, key, value) for bench in getattr(session, "benchmarks", []) for key, value in bench.extra_info.items()]
    if not noted:
        return
    terminalreporter.section(f"ratios and figures ({torch.get_num_threads()} threads, torch {torch.__version__})")
    for line in ("| benchmark | figure | value |", "| --- | --- | --- |", *(f"| {name} | {key} | {value} |" for name, key, value in noted)):
        terminalreporter.write_line(line)
