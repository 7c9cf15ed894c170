"""One figure: what was measured, what was aimed at, and whether it was met."""

import json
import operator
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


def note(name: str, value: float, unit: str) -> None:
    """Print a figure without an aim, for whoever wants to know the absolute size."""
    print(json.dumps({"figure": name, "value": round(value, 3), "unit": unit}), flush=True)
