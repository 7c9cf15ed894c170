"""`make bench`, or `python -m tests.bench [GROUP…] [--rounds N]`: measures, prints JSON lines, exits 1 if an aim was missed.

Each group of figures is a module here with `measure(bench) -> bool`. Progress goes to stderr. What was started is gone
afterwards, also after Ctrl-C and SIGTERM.
"""

import argparse
import json
import os
import signal
import sys
import tempfile
import traceback
from importlib import import_module
from pathlib import Path
from typing import NoReturn

from tests.bench.bench import Bench
from tests.bench.rounds import progress

ROUNDS = 7
SMALL_PART = 8
GROUPS = (
    "startup",
    "pipeline",
    "incremental",
    "growth",
    "peers",
    "running",
    "restore",
    "memory",
    "rates",
    "fleet",
    "storages",
    "clone",
)
BUILD = Path(__file__).parents[2] / "build"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("groups", nargs="*", metavar="GROUP", help=f"one of {', '.join(GROUPS)}; all if left out")
    parser.add_argument(
        "--rounds", type=int, default=ROUNDS, help="a figure is the median of so many; fewer only try it out"
    )
    parser.add_argument(
        "--small", action="store_true", help="an eighth of the disk: tries the benchmark out, no figure counts"
    )
    options = parser.parse_args()
    unknown = set(options.groups) - set(GROUPS)
    if unknown or options.rounds < 1:
        parser.error(f"no such group: {', '.join(sorted(unknown))}" if unknown else "at least one round")
    signal.signal(signal.SIGTERM, _interrupt)
    BUILD.mkdir(exist_ok=True)
    met = True
    with tempfile.TemporaryDirectory(prefix="bench-", dir=BUILD) as folder:
        _keep_bytecode(Path(folder))
        bench = Bench(Path(folder), options.rounds, SMALL_PART if options.small else 1)
        for group in options.groups or GROUPS:
            progress(f"== {group}")
            met = _measure(group, bench) and met
    sys.exit(0 if met else 1)


def _measure(group: str, bench: Bench) -> bool:
    """Measure one group. Where that fails the others are measured all the same, and the benchmark has failed."""
    try:
        return bool(import_module(f"tests.bench.{group}").measure(bench))
    except Exception as error:
        print(json.dumps({"figure": group, "value": None, "met": False, "error": str(error)}), flush=True)
        traceback.print_exc()
        return False


def _keep_bytecode(folder: Path) -> None:
    """Let every Python program that is measured, ours or not, find its modules compiled, as where it is installed."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    os.environ["PYTHONPYCACHEPREFIX"] = str(folder / "bytecode")


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    main()
