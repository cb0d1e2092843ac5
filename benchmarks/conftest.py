"""Ratios that a busy machine cannot bend: contenders take turns within one benchmark, and what is reported is the median of the rounds' ratios."""

import os
import statistics
import time
from collections.abc import Callable, Mapping

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from pathorestore.diffusion.resshift import ResShift
from pathorestore.models.defocus import DefocusEstimator, DefocusEstimatorConfig
from pathorestore.models.encoders import TinyEncoder, TinyEncoderConfig
from pathorestore.models.pdiffusion import PDiffusion, PDiffusionConfig
from pathorestore.models.pformer import PFormer, PFormerConfig
from pathorestore.models.prompts import EdgePrompt, EdgePromptConfig, PathologyPrompt, PathologyPromptConfig, Prompter
from pathorestore.pipelines.mop import MoPRestorer
from pathorestore.pipelines.refine import DiffusionRefiner

Contenders = Mapping[str, Callable[[], object]]


class TakingTurns:
    """Times contenders one after the other, round by round. The first is what the benchmark is about, the others what it is compared with."""

    def __init__(self, benchmark: BenchmarkFixture):
        self.benchmark = benchmark

    def __call__(self, contenders: Contenders, *, rounds: int = 9) -> dict[str, float]:
        """Median seconds of each; the ratio of each other contender to the first goes to `extra_info`, above 1 where the first is faster."""
        rounds = max(1, round(rounds * float(os.environ.get("PATHORESTORE_BENCH_ROUNDS", "1"))))
        seconds: dict[str, list[float]] = {name: [] for name in contenders}
        first, *others = contenders

        def timed(name: str) -> None:
            start = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - start)

        def setup() -> None:
            for name in others:
                timed(name)

        for warm_up in contenders.values():
            warm_up()
        self.benchmark.pedantic(timed, args=(first,), setup=setup, rounds=rounds)
        medians = {name: statistics.median(times) for name, times in seconds.items()}
        self.benchmark.extra_info.update({f"s {name}": round(value, 4) for name, value in medians.items()})
        for name in others:
            ratio = statistics.median(other / own for other, own in zip(seconds[name], seconds[first], strict=True))
            self.benchmark.extra_info[f"{name} / {first}"] = round(ratio, 3)
        return medians


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
    return MoPRestorer(prompter, PFormer(PFormerConfig.tiny()), DiffusionRefiner(PDiffusion(PDiffusionConfig.tiny()), ResShift())).eval()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Everything that benchmarks noted, as one Markdown table."""
    session = getattr(config, "_benchmarksession", None)
    noted = [(bench.name, key, value) for bench in getattr(session, "benchmarks", []) for key, value in bench.extra_info.items()]
    if not noted:
        return
    terminalreporter.section(f"ratios and figures ({torch.get_num_threads()} threads, torch {torch.__version__})")
    for line in ("| benchmark | figure | value |", "| --- | --- | --- |", *(f"| {name} | {key} | {value} |" for name, key, value in noted)):
        terminalreporter.write_line(line)
