"""Ratios that a busy machine cannot bend: contenders take turns in one benchmark; reported is the median of the rounds' ratios."""

import os
import statistics
import time
from collections.abc import Callable, Mapping

from pytest_benchmark.fixture import BenchmarkFixture

Contenders = Mapping[str, Callable[[], object]]


class TakingTurns:
    """Times contenders one after the other, round by round: the first is what the benchmark is about, the others what it is compared with.

    PATHORESTORE_BENCH_ROUNDS multiplies the number of rounds.
    """

    def __init__(self, benchmark: BenchmarkFixture):
        self.benchmark = benchmark

    def __call__(self, contenders: Contenders, *, rounds: int = 9) -> dict[str, float]:
        """Median seconds of each. Ratios of the other contenders to the first go to `extra_info`, above 1 where the first is faster."""
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
