"""The guided way of `bmctl storage add`: what was not given as an option is asked, explained in a line and checked at once.

which type ─► its name ─► the fields of the type ─► secrets, hidden ─► encryption ─► made ─► tested from a hypervisor, if wanted
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clients.cli import ask, storage_report
from clients.cli.failures import Usage
from clients.cli.results import conclude
from clients.cli.storage_fields import ABOUT, FIELDS, Field, checked

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from clients.cli.output import Screen
    from clients.cli.session import Controller
    from clients.gen.backupmanager.v1.storage_pb2 import Storage

_TRIES = 5  # a paste of the wrong thing must not ask for ever


def which_type() -> str:
    """Ask for the type of a storage."""
    for kind, about in ABOUT.items():
        _say(f"  {kind:<7} {about}")
    return str(_until_right("Type", "sftp", _type))


def name() -> str:
    _say("  A unique name: letters, digits, `.`, `-` or `_`.")
    return str(_until_right("Name", "", _name))


def place(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Ask for the fields of a type that `given` (by field) does not have, and return all of them."""
    values = dict(given)
    for field in FIELDS[kind]:
        if field.name not in values and field.asked:
            values[field.name] = _field(field)
    return values


def key_file() -> str:
    """Ask for the file of an SSH private key, and see that it is one."""
    _say("  File of the private key that logs in there: RSA, ECDSA or Ed25519.")
    usual = Path.home() / ".ssh" / "id_ed25519"
    return str(_until_right("Private key", str(usual) if usual.exists() else "", _key_file))


async def offer_test(controller: Controller, screen: Screen, storage: Storage) -> None:
    """Offer to test a new storage from a hypervisor that is online, and show the report."""
    from clients.cli.options import request_id
    from clients.gen.backupmanager.v1.hypervisor_pb2 import HYPERVISOR_STATE_ONLINE
    from clients.gen.backupmanager.v1.hypervisor_service_pb2 import ListHypervisorsRequest
    from clients.gen.backupmanager.v1.storage_service_pb2 import TestStorageRequest

    reply, _ = await controller.every(controller.hypervisors.ListHypervisors, ListHypervisorsRequest(), "hypervisors")
    online = [one.name for one in reply.hypervisors if one.state == HYPERVISOR_STATE_ONLINE]
    if not online:
        screen.note("No hypervisor is online to test it from.")
        return
    _say(f"\n  Hypervisors that are online: {', '.join(online[:20])}")
    chosen = ask.line("Test it now from which one? `-` for none", online[0])
    if chosen == "-":
        return
    asked = TestStorageRequest(storage_id=storage.storage_id, hypervisor_id=chosen, request_id=request_id(""))
    started = await controller.call(controller.storages.TestStorage, asked)
    await conclude(controller, screen, started.job_id, wait=True, drawing=storage_report.checklist)


def _field(field: Field) -> Any:
    _say(f"  {field.about}")
    label = field.name.replace("_", " ").capitalize()
    if field.kind is bool:
        return ask.yes(label)
    shown = "" if field.default is None else str(field.default)
    return _until_right(label, shown, lambda answer: checked(field, answer))


def _until_right(label: str, default: str, check: Callable[[str], Any]) -> Any:
    """Ask until the answer passes; say at once what is wrong with one that does not."""
    for _ in range(_TRIES):
        try:
            return check(ask.line(label, default))
        except Usage as error:
            _say(f"  ✗ {error.facts['problem']}")
    raise Usage(field=label.lower(), problem="no answer was right; give it as an option")


def _type(answer: str) -> str:
    if answer not in FIELDS:
        raise Usage(field="type", problem=f"one of {', '.join(FIELDS)}")
    return answer


def _name(answer: str) -> str:
    if not answer or len(answer) > 64 or not all(one.isascii() and (one.isalnum() or one in ".-_") for one in answer):
        raise Usage(field="NAME", problem="1 to 64 letters, digits, `.`, `-` or `_`")
    return answer


def _key_file(answer: str) -> str:
    path = str(Path(answer).expanduser()) if answer else ""
    if "PRIVATE KEY" not in ask.read_file(path or "/", option="--key-file"):
        raise Usage(field="--key-file", problem=f"{answer} holds no private key")
    return path


def _say(text: str) -> None:
    print(text, file=sys.stderr)
