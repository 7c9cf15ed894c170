"""Who may import whom, as one table; and that nothing heavy is imported before it is needed.

    engine      none of ours
    clients     itself, and of the engine errors, ids and units
    agent       engine, clients
    controller  the generated clients, and of the engine only its pure shelf
    (nobody)    controller

Read from the source, not from what happens to be loaded, so that an import inside a function counts as well.
"""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("agent", "clients", "controller", "engine", "tests")

MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "engine": ("engine",),
    "clients": ("clients", "engine.errors", "engine.ids", "engine.units"),
    "agent": ("agent", "engine", "clients"),
    "controller": (
        "controller",
        "clients.gen",
        "engine.chain",
        "engine.errors",
        "engine.format.crypto",
        "engine.format.keys",
        "engine.format.manifest",
        "engine.format.names",
        "engine.ids",
        "engine.memory",
        "engine.retention",
        "engine.storage.s3_parts",
        "engine.units",
    ),
}
ONLY_IN: dict[str, tuple[str, ...]] = {
    "boto3": (),  # 43 MiB: tests alone look at buckets with it
    "botocore": (),
    "libvirt": ("engine/hypervisor",),
    "libvirt_qemu": ("engine/hypervisor",),
    "peewee": ("controller/db", "controller"),
    "playhouse": ("controller/db",),
    "pydantic": ("controller/config.py",),
    "typer": ("clients/cli",),
    "rich": ("clients/cli",),
    "yaml": ("clients/cli/storage_file.py",),
    "grpc": ("agent", "clients", "controller"),
}
# What a verb's --help, or a spec's reader, must not pay for: milliseconds of CPU on every call of a command.
LIGHT: dict[str, tuple[str, ...]] = {
    "controller.main": ("grpc", "peewee", "pydantic", "cryptography", "google.protobuf", "asyncio"),
    "engine.spec": ("grpc", "libvirt", "paramiko", "pydantic", "cryptography", "google.protobuf"),
    "engine.errors": ("grpc", "libvirt", "paramiko", "pydantic", "cryptography", "google.protobuf"),
    "engine.storage.base": ("grpc", "libvirt", "paramiko", "pydantic", "google.protobuf"),
    "clients.connect": ("grpc", "google.protobuf", "rich", "typer"),
}


def files() -> Iterator[Path]:
    for package in MAY_IMPORT:
        for path in sorted((ROOT / package).rglob("*.py")):
            if "gen" not in path.relative_to(ROOT).parts:
                yield path


def imported(path: Path) -> Iterator[str]:
    yield from imported_from(path.read_text(), path)


def imported_from(source: str, path: Path) -> Iterator[str]:
    """Yield the full name of all that a text at `path` imports; `from a import b` counts as `a.b` where that is a module."""
    for node in ast.walk(ast.parse(source, str(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(node, path)
            for alias in node.names:
                yield f"{module}.{alias.name}" if _is_module(f"{module}.{alias.name}") else module


def _absolute(node: ast.ImportFrom, path: Path) -> str:
    if not node.level:
        return node.module or ""
    package = path.relative_to(ROOT).parts[: -node.level]
    return ".".join((*package, *([node.module] if node.module else [])))


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return path.is_dir() or path.with_suffix(".py").exists()


def _below(name: str, roof: str) -> bool:
    return name == roof or name.startswith(f"{roof}.")


@pytest.mark.parametrize("package", sorted(MAY_IMPORT))
def test_a_package_imports_only_what_stands_below_it(package: str) -> None:
    strangers = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in files()
        if path.relative_to(ROOT).parts[0] == package
        for name in imported(path)
        if name.split(".")[0] in OURS and not any(_below(name, roof) for roof in MAY_IMPORT[package])
    ]
    assert not strangers


def test_the_files_that_are_looked_at_are_those_of_all_four_packages() -> None:
    found = list(files())
    assert {path.relative_to(ROOT).parts[0] for path in found} == set(MAY_IMPORT)
    assert len(found) > 60


def test_a_library_is_imported_in_its_own_corner_only() -> None:
    strangers = []
    for path in files():
        place = path.relative_to(ROOT).as_posix()
        for name in imported(path):
            corners = ONLY_IN.get(name.split(".")[0])
            if corners is not None and not any(place == one or place.startswith(f"{one}/") for one in corners):
                strangers.append(f"{place} imports {name}")
    assert not strangers


@pytest.mark.parametrize("module", sorted(LIGHT))
def test_what_is_heavy_waits_until_it_is_needed(module: str) -> None:
    program = f"import sys, {module}; print(*sys.modules)"
    loaded = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout.split()
    assert module in loaded
    heavy = [name for name in LIGHT[module] if name in loaded]
    assert not heavy


def test_the_look_itself_sees_an_import_inside_a_function() -> None:
    source = "def f():\n    from controller import jobs\n    import libvirt.x\n    from . import ids\n"
    seen = list(imported_from(source, ROOT / "engine" / "sample.py"))
    assert seen == ["controller.jobs", "libvirt.x", "engine.ids"]
