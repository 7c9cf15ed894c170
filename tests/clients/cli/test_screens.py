"""Every verb that only reads, drawn for 80 and for 120 cells, with the longest names and texts that there may be.

What answers is made from the descriptors, so a new field is long from the day it is there.
"""

import io
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from rich.cells import cell_len
from rich.console import Console

from clients.cli import main, output
from tests.clients.bmctl import Bmctl
from tests.clients.canned import TOKEN, Canned
from tests.controller.services.rpc import METHODS

ID = "01938a00-0000-7000-8000-00000000000a"
NAME = "kvm-" + "n" * 55 + "-last"  # as long as a name may be
SENTENCE = "The storage said that it could not do what it was asked to do, " * 3
VERBS = (
    "overview", "diagnose web1", "recovery", "version", "hypervisor list", f"hypervisor show {ID}", "hypervisor domains hv",
    "server list", "server show web1", "server tree web1", "server access get web1", "package list", "storage list",
    "storage show nas", "storage health nas", "schedule list", "schedule show hv", "schedule next-runs hv",
    "batch list", f"batch show {ID}", "preset list", "backup list", f"backup show {ID}", f"retention explain {ID}",
    "retention warnings", "retention simulate web1 --retention gfs-3m", "purge list", "job list", f"job show {ID}",
    "webhook list", "webhook show hook", "webhook deliveries hook", "audit list", "settings show",
    "token list",
)  # fmt: skip


def fill(kind: Descriptor, depth: int = 0) -> Message:
    """Return a message whose every field says as much as it may."""
    made = GetMessageClass(kind)()
    oneofs: set[str] = set()
    for field in kind.fields:
        oneof = field.containing_oneof
        if depth > 6 or field.name == "next_page_token" or (oneof is not None and oneof.name in oneofs):
            continue
        if oneof is not None:
            oneofs.add(oneof.name)
        if field.is_repeated:
            if field.message_type is None or not field.message_type.GetOptions().map_entry:
                values = [_value(field, depth) for _ in range(2)]
                getattr(made, field.name).extend(values)
        elif field.message_type is not None:
            getattr(made, field.name).CopyFrom(_value(field, depth))
        else:
            setattr(made, field.name, _value(field, depth))
    return made


def _value(field: FieldDescriptor, depth: int) -> Any:
    if field.message_type is not None:
        made: Any = GetMessageClass(field.message_type)()
        match field.message_type.full_name:
            case "google.protobuf.Timestamp":
                made.FromDatetime(datetime.now(UTC) - timedelta(days=3, hours=5))
            case "google.protobuf.Duration":
                made.FromTimedelta(timedelta(hours=30, minutes=12))
            case _:
                made = fill(field.message_type, depth + 1)
        return made
    if field.enum_type is not None:
        return max(field.enum_type.values, key=lambda one: len(one.name)).number
    if field.type == FieldDescriptor.TYPE_STRING:
        if field.name.endswith(("_id", "_ids", "_uuid")):
            return ID
        if field.name in {"name", "title", "owner", "requester"} or field.name.endswith("name"):
            return NAME
        return SENTENCE
    if field.type == FieldDescriptor.TYPE_BOOL:
        return True
    if field.type == FieldDescriptor.TYPE_BYTES:
        return b"x"
    if field.type in {FieldDescriptor.TYPE_DOUBLE, FieldDescriptor.TYPE_FLOAT}:
        return 1234.5
    return 123_456_789 if field.type == FieldDescriptor.TYPE_INT32 else 123_456_789_012_345


class Talkative(Canned):
    """A controller that answers every call with as much as fits into the reply."""

    def reply(self, method: str) -> Callable[[Any], Any]:
        path = next(one for one in METHODS if one.endswith(f"/{method}"))
        service, name = path.strip("/").split("/")
        found = descriptor_pool.Default().FindServiceByName(service).FindMethodByName(name)
        return lambda _: fill(found.output_type)


@pytest.fixture(scope="module")
def talkative() -> Iterator[Talkative]:
    with Talkative() as controller:
        yield controller


def show(verb: str, width: int, talkative: Talkative, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    bmctl = Bmctl(folder)
    bmctl.log_in(talkative.address, talkative.authority, TOKEN)
    for name in ("BMCTL_CONFIG", "TZ"):
        monkeypatch.setenv(name, bmctl.environment[name])
    screen = io.StringIO()

    def console(_: Any) -> Console:
        return Console(file=screen, width=width, highlight=False, emoji=False, markup=False, no_color=True)

    monkeypatch.setattr(output, "console", console)
    main.app(verb.split(), prog_name="bmctl", standalone_mode=False)
    return screen.getvalue()


@pytest.mark.feature("M1", "M5", "M6", "M8", "M10", "D17", "R18", "E1", "N11")
@pytest.mark.share(4)
@pytest.mark.parametrize("verb", VERBS)
def test_nothing_leaves_the_screen_or_is_cut_without_a_sign(
    talkative: Talkative, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    for width in (80, 120):
        shown = show(verb, width, talkative, tmp_path, monkeypatch)
        assert shown.strip()
        assert max(cell_len(line.rstrip()) for line in shown.splitlines()) <= width, shown
        assert ID[:9] not in shown.replace(ID, ""), f"an id that is cut is of no use\n{shown}"
        for cut in re.findall(r"kvm-n+(?!n)(?!-last|[-last]*\u2026|[-last]*\s*$).*", shown, re.MULTILINE):
            raise AssertionError(f"cut without a sign: {cut}\n{shown}")


@pytest.mark.parametrize("verb", [f"job log {ID}", "log list"])
def test_a_line_of_a_log_is_one_line_whatever_the_width(
    talkative: Talkative, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    shown = show(verb, 80, talkative, tmp_path, monkeypatch)
    assert len(shown.splitlines()) == 2, shown
