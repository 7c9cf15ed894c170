"""Whether a hypervisor has what a storage needs there, by what its agent said of the host in its last hello. Pure.

nothing said yet (never connected)     nobody knows: not in the way
its type is not among the host's       an old agent, or a program that is not installed
rclone, and the remotes were told      the remote has to be one of them; a storage of rclone lives in each host's own configuration
"""

import hashlib
from collections.abc import Mapping
from typing import Any


def problem_of(kind: str, config: Mapping[str, Any], capabilities: Mapping[str, Any]) -> str:
    """Return what is missing on a host for a storage of this type and settings, "" for nothing.

    `capabilities` is the JSON form of HypervisorCapabilities.
    """
    types = capabilities.get("storage_types") or ()
    if not types:
        return ""
    if kind not in types:
        return "the program rclone is not installed there" if kind == "rclone" else "its agent is too old for this type"
    if kind != "rclone" or not capabilities.get("rclone_remotes_known"):
        return ""
    remote = str(config.get("remote", ""))
    if hashlib.sha256(remote.encode()).hexdigest() in (capabilities.get("rclone_remotes") or ()):
        return ""
    return f"rclone's configuration there has no remote {remote}"
