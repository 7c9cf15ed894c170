"""QEMU's own monitor, for what libvirt has no call for: looking at bitmaps, and removing those that nobody knows any more."""

import json
from typing import Any

import libvirt_qemu

from engine.errors import HypervisorError, QmpFailed
from engine.hypervisor.connection import Domain


def execute(domain: Domain, command: str, **arguments: object) -> Any:
    """Run one QMP command and return its `return` value. Arguments are given with `_` where QMP has `-`.

    libvirt marks the domain as tainted (custom-monitor) for it, which is a log line and nothing more.
    Raises QmpFailed when QEMU refuses, HypervisorError when the domain does not run.
    """
    return execute_raw(domain, command, {name.replace("_", "-"): value for name, value in arguments.items()})


def execute_raw(domain: Domain, command: str, arguments: dict[str, object]) -> Any:
    """As `execute`, with the arguments exactly as QMP wants them (some of its names do have a `_`)."""
    request = json.dumps({"execute": command, "arguments": arguments} if arguments else {"execute": command})
    with domain.translated(f"QMP {command}"):
        reply = libvirt_qemu.qemuMonitorCommand(domain.handle, request, 0)
    return _result(domain, command, reply)


def _result(domain: Domain, command: str, reply: str) -> Any:
    try:
        answer = json.loads(reply)
    except ValueError as error:
        raise HypervisorError(operation=f"QMP {command}", domain=domain.name, detail="no JSON", code=0) from error
    if "error" in answer:
        detail, kind = answer["error"].get("desc", ""), answer["error"].get("class", "")
        raise QmpFailed(domain=domain.name, operation=command, detail=detail, kind=kind)
    return answer.get("return")
