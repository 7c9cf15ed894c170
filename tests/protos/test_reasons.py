"""The registry of reasons, against the code that gives them: none is dead, and none is missing."""

import ast
import inspect
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

from agent import errors as of_agent
from clients.gen.backupmanager.v1 import errors_pb2
from controller import errors as of_controller
from engine import errors as of_engine
from engine.errors import BackupManagerError

ROOT = Path(__file__).parents[2]
REGISTRY = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.DESCRIPTOR.values_by_name} - {
    "UNSPECIFIED"
}
MODULES = (of_engine, of_agent, of_controller)
HOSTS_OWN = {  # what the agent's own command line says on its host, and no call ever carries
    "AGENT_RUNNING", "ALREADY_ENROLLED", "CERTIFICATE_EXPIRED", "CERTIFICATE_UNUSABLE", "NOT_ENROLLED", "SESSION_ENDED",
}  # fmt: skip


def kinds(module: ModuleType) -> Iterator[type[BackupManagerError]]:
    for _, kind in inspect.getmembers(module, inspect.isclass):
        if issubclass(kind, BackupManagerError) and kind.__module__ == module.__name__ and hasattr(kind, "reason"):
            yield kind


@cache
def made() -> frozenset[str]:
    """Return the names of all that the product calls, raises, or hands on by name, and its constants."""
    found: set[str] = set()
    for file in (one for folder in ("engine", "agent", "controller") for one in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text())):
            match node:
                case (
                    ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name))
                    | ast.Raise(exc=ast.Name(id=name) | ast.Attribute(attr=name))
                    | ast.Return(value=ast.Name(id=name))
                    | ast.Attribute(value=ast.Name(id=name), attr="reason")
                ):
                    found.add(name)
    return frozenset(found)


@pytest.mark.feature("N8")
def test_each_reason_of_the_registry_is_given_by_somebody_and_nobody_gives_another() -> None:
    given = {kind.reason for module in MODULES for kind in kinds(module)}
    assert given - HOSTS_OWN == REGISTRY


@pytest.mark.feature("N8")
@pytest.mark.parametrize("module", MODULES, ids=lambda one: one.__name__)
def test_no_error_is_a_dead_one(module: ModuleType) -> None:
    """Each is made somewhere, or is the root of one that is."""
    roots = {base.__name__ for one in MODULES for kind in kinds(one) for base in kind.__mro__[1:]}
    assert [kind.__name__ for kind in kinds(module) if kind.__name__ not in made() | roots] == []
