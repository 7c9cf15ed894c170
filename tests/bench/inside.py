"""bm-engine with a look inside: `python -m tests.bench.inside START ARGUMENTS…`; START is the monotonic clock at its start.

The last line on stdout is JSON: seconds until the first read of a disk was asked for, and the process's peak memory.
"""

import json
import sys
import time
from typing import Any

from engine import cli
from engine.nbd.client import Client
from tests.bench.process import peak_mib


def main() -> None:
    start = float(sys.argv[1])
    first: list[float] = []
    read_into = Client.read_into

    def watched(self: Client, *arguments: Any) -> None:
        first.append(time.monotonic())
        setattr(Client, "read_into", read_into)  # noqa: B010 -- a plain assignment is refused by mypy
        read_into(self, *arguments)

    setattr(Client, "read_into", watched)  # noqa: B010 -- likewise
    try:
        cli.main(sys.argv[2:])
    finally:
        print(json.dumps({"first_read_seconds": first[0] - start if first else 0.0, "peak_mib": peak_mib()}))


if __name__ == "__main__":
    main()
