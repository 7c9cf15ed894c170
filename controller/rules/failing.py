"""Whether the end of a backup is a failure of its server (M3). Pure."""

from typing import Literal, TypeAlias

Meaning: TypeAlias = Literal["success", "failure", "nothing"]

# Somebody wanted it so, or nobody has tried: no failure (S21).
_NO_FAILURE = frozenset({"ACCESS_LEVEL_DENIED", "CANCELLED", "STORAGE_DISABLED", "STORAGE_READ_ONLY", "VM_LOCKED"})


def meaning(state: str, reason: str) -> Meaning:
    """Return what a backup job's end says of its server; `reason` is that of a failed one."""
    if state.startswith("completed"):
        return "success"
    return "failure" if state == "failed" and reason not in _NO_FAILURE else "nothing"
