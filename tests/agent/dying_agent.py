"""bm-agent that kills itself with SIGKILL at a chosen step: `python -m tests.agent.dying_agent POINT run --config …`.

POINT is `module:Class.method:before` or `…:after`; it dies at that call's begin, or when it has succeeded.
"""

import importlib
import inspect
import os
import signal
import sys
from typing import Any

from agent.main import main


def die_at(point: str) -> None:
    module_name, path, moment = point.split(":")
    class_name, method_name = path.split(".")
    owner = getattr(importlib.import_module(module_name), class_name)
    original = getattr(owner, method_name)

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    async def asynchronous(*args: Any, **kwargs: Any) -> Any:
        if moment == "before":
            die()
        await original(*args, **kwargs)
        die()

    def synchronous(*args: Any, **kwargs: Any) -> Any:
        if moment == "before":
            die()
        original(*args, **kwargs)
        die()

    setattr(owner, method_name, asynchronous if inspect.iscoroutinefunction(original) else synchronous)


if __name__ == "__main__":
    die_at(sys.argv[1])
    sys.exit(main(sys.argv[2:]))
