"""What importing costs, as a ratio to importing torch in equally fresh interpreters. The budget is 1.2."""

import statistics
import subprocess
import sys

from pytest_benchmark.fixture import BenchmarkFixture

ROUNDS = 5
STATEMENTS = {
    "torch": "import torch",
    "package": "import pathorestore",
    # what a program pays that uses everything: the networks bring torch with them
    "all_names": "import pathorestore; [getattr(pathorestore, name) for name in pathorestore.__all__]",
}


def seconds(statement: str) -> float:
    """Time one statement in a fresh interpreter, the interpreter's own start left out."""
    code = f"import time; start = time.perf_counter(); {statement}; print(time.perf_counter() - start)"
    return float(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)


def test_import_time(benchmark: BenchmarkFixture) -> None:
    # interleaved, so that a slow minute of the machine weighs on all three alike; the first round only fills the disk cache
    rounds = [{name: seconds(statement) for name, statement in STATEMENTS.items()} for _ in range(ROUNDS + 1)][1:]
    medians = {name: statistics.median(times[name] for times in rounds) for name in STATEMENTS}
    benchmark.extra_info.update({f"median_s_{name}": round(value, 4) for name, value in medians.items()})
    for name in ("package", "all_names"):
        benchmark.extra_info[f"ratio_{name}_to_torch"] = round(medians[name] / medians["torch"], 3)
    print("\n" + "  ".join(f"{key}={value}" for key, value in benchmark.extra_info.items()))
    benchmark.pedantic(seconds, args=(STATEMENTS["package"],), rounds=3)
