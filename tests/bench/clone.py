"""How long a newcomer waits: `make demo` and `make test` in a fresh clone, its Python environment included.

Once each, whatever the number of rounds: the tests alone take many minutes. A `small` benchmark leaves them out.
"""

import subprocess
import tempfile
import time
from pathlib import Path

from tests.bench.bench import Bench
from tests.bench.figures import note
from tests.bench.rounds import progress

ROOT = Path(__file__).parents[2]


def measure(bench: Bench) -> bool:
    met = True
    for target in ("demo",) if bench.part > 1 else ("demo", "test"):
        with tempfile.TemporaryDirectory(prefix="bm-clone-") as folder:  # not below build/: sockets' paths are short
            progress(f"clone: make {target}")
            clone = Path(folder) / "clone"
            subprocess.run(["git", "clone", "-q", str(ROOT), str(clone)], check=True)
            begun = time.perf_counter()
            done = subprocess.run(["make", "-C", str(clone), target], stdout=subprocess.DEVNULL, check=False)
            note(f"make {target} in a fresh clone, system packages installed", [time.perf_counter() - begun], "s")
            met = met and done.returncode == 0
    return met
