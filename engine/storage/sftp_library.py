"""Loading paramiko at a price that an engine can pay.

paramiko tries to import `invoke`, which it needs for one line of ssh_config files (`Match exec`) that is never read here. With it
come asyncio, a YAML parser and unittest: half of what paramiko takes, 5.6 of 11.7 MiB and half of its CPU time (paramiko 5.1,
invoke 3.0). paramiko is as content without: its config module notes the ImportError for the day the line is read.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from engine.memory import give_back_libraries

_lock = threading.Lock()


def load() -> None:
    """Import paramiko, if nobody has. From then on `import paramiko` costs nothing. Any thread may call it."""
    with _lock:
        if "paramiko" not in sys.modules:
            with _absent("invoke"):
                import paramiko  # noqa: F401  # for what follows: each user imports it by itself
            give_back_libraries()


@contextmanager
def _absent(name: str) -> Iterator[None]:
    """Let an import of the module `name` fail, unless it is loaded already. Source: the import system's reference, sys.modules."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # the documented way to say: not there
    try:
        yield
    finally:
        sys.modules.pop(name, None)
