"""The matrix of capabilities says what each backend of the engine says of itself, read from its source: no server is needed."""

import ast
from dataclasses import fields
from pathlib import Path

import pytest

from controller.rules import capabilities, storage_types
from controller.services.storage_checks import types
from engine.storage.base import Abilities

BACKENDS = Path(__file__).parents[3] / "engine" / "storage"
DEFAULTS = {one.name: one.default for one in fields(Abilities)}


def said(kind: str) -> tuple[dict[str, bool], set[str]]:
    """Return what a backend says at once, and the names of what only its server can tell."""
    always: dict[str, bool] = {}
    depends: set[str] = set()
    for node in ast.walk(ast.parse((BACKENDS / f"{kind}.py").read_text())):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id == "Abilities":
            for one in node.keywords:
                if isinstance(one.value, ast.Constant):
                    always[str(one.arg)] = bool(one.value.value)
                else:
                    depends.add(str(one.arg))
        if node.func.id == "replace" and ast.unparse(node.args[0]) == "self.abilities":
            depends |= {str(one.arg) for one in node.keywords}
    return always, depends


@pytest.mark.feature("S2")
@pytest.mark.parametrize("kind", sorted(kind for kind in capabilities.BY_TYPE if (BACKENDS / f"{kind}.py").exists()))
def test_the_matrix_is_what_the_backend_says(kind: str) -> None:
    always, depends = said(kind)
    assert always
    told = capabilities.BY_TYPE[kind]
    assert set(told.depends_on_server) == depends
    for name, default in DEFAULTS.items():
        expected = False if name in depends else always.get(name, default)
        assert getattr(told, name) == expected, name


@pytest.mark.feature("S2")
def test_every_type_stands_in_every_table() -> None:
    assert set(capabilities.BY_TYPE) == set(storage_types.BY_TYPE) == set(types.BY_TYPE)
    assert {"local", "sftp", "ftp", "rclone"} <= {path.stem for path in BACKENDS.glob("*.py")}
    for kind, one in storage_types.BY_TYPE.items():
        assert set(one.place) <= set(types.BY_TYPE[kind].message.DESCRIPTOR.fields_by_name)
