"""What bm-engine costs before it does anything."""

import sys

from tests.bench.bench import Bench
from tests.bench.figures import figure
from tests.bench.process import run

PROCESSES = 10


def measure(bench: Bench) -> bool:
    command = [sys.executable, "-m", "engine.cli", "--help"]
    run(command)
    seconds = [run(command).cpu_seconds for _ in range(max(PROCESSES, bench.rounds))]
    return figure("bm-engine --help, CPU time, ms", [one * 1000 for one in seconds], "<= 100")
