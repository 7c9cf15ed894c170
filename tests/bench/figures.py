"""One figure: what was measured, what was aimed at, and whether it was met. One JSON line each, on stdout."""

import json
import operator
import shutil
import statistics
from collections.abc import Callable, Sequence

_COMPARE: dict[str, Callable[[float, float], bool]] = {">=": operator.ge, "<=": operator.le}


def figure(name: str, values: Sequence[float], aim: str) -> bool:
    """Print the median of `values` as a JSON line and tell whether the aim (such as ">= 0.95") is met."""
    value = statistics.median(values)
    sign, _, limit = aim.partition(" ")
    met = _COMPARE[sign](value, float(limit))
    line = {
        "figure": name, "value": round(value, 4), "aim": aim, "met": met, "rounds": len(values),
        "min": round(min(values), 4), "max": round(max(values), 4),
    }  # fmt: skip
    print(json.dumps(line), flush=True)
    return met


def note(name: str, values: Sequence[float], unit: str) -> None:
    """Print a figure without an aim, for whoever wants to know the absolute size."""
    line = {
        "figure": name, "value": round(statistics.median(values), 3), "unit": unit, "rounds": len(values),
        "min": round(min(values), 3), "max": round(max(values), 3),
    }  # fmt: skip
    print(json.dumps(line), flush=True)


def absent(name: str, aim: str, program: str) -> bool:
    """Tell whether a program to compare with is missing; then print that as a figure which is not met."""
    if shutil.which(program):
        return False
    line = {"figure": name, "value": None, "aim": aim, "met": False, "rounds": 0, "missing": program}
    print(json.dumps(line), flush=True)
    return True


def failed(name: str, aim: str, error: str) -> None:
    """Print a figure that is not met because it could not be measured, and why."""
    line = {"figure": name, "value": None, "aim": aim, "met": False, "rounds": 0, "error": error}
    print(json.dumps(line), flush=True)
