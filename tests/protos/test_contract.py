"""The contract: generated code is fresh, names lint clean, secrets go in and never come out, reasons are one registry."""

import filecmp
import importlib
import inspect
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor, ServiceDescriptor

import engine.errors
from clients.gen.backupmanager.v1 import errors_pb2
from clients.generate import ROOT, TARGET, generate

SHOWN_ONCE = {
    "CreateEnrollmentTokenResponse.token",
    "CreateAccessTokenResponse.secret",
    "CreatePortalTokenResponse.secret",
}


def services() -> Iterator[ServiceDescriptor]:
    pool = descriptor_pool.Default()
    for path in sorted((TARGET / "backupmanager" / "v1").glob("*_service_pb2.py")):
        importlib.import_module(f"clients.gen.backupmanager.v1.{path.stem}")
        file = pool.FindFileByName(f"backupmanager/v1/{path.stem.removesuffix('_pb2')}.proto")
        yield from file.services_by_name.values()


def fields(message: Descriptor, seen: set[str]) -> Iterator[FieldDescriptor]:
    if message.full_name in seen:
        return
    seen.add(message.full_name)
    for field in message.fields:
        yield field
        if field.message_type is not None:
            yield from fields(field.message_type, seen)


@pytest.mark.feature("N8")
def test_the_committed_clients_are_what_the_protos_say(tmp_path: Path) -> None:
    generate(tmp_path / "gen")
    fresh, committed = tmp_path / "gen", TARGET
    names = sorted(str(path.relative_to(fresh)) for path in fresh.rglob("*.py*"))
    assert names == sorted(
        str(path.relative_to(committed)) for path in committed.rglob("*.py*") if path.suffix != ".pyc"
    )
    _, different, missing = filecmp.cmpfiles(fresh, committed, names, shallow=False)
    assert not different, "run make generate"
    assert not missing


def test_buf_finds_nothing_to_complain_of() -> None:
    buf = Path(sys.executable).parent / "buf"
    outcome = subprocess.run([buf, "lint"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stdout


@pytest.mark.feature("S28")
def test_no_response_can_hold_a_secret() -> None:
    leaks = []
    for service in services():
        for method in service.methods:
            for field in fields(method.output_type, set()):
                name = field.full_name.removeprefix("backupmanager.v1.")
                if field.GetOptions().debug_redact and name not in SHOWN_ONCE:
                    leaks.append(f"{method.full_name}: {name}")
    assert not leaks


@pytest.mark.feature("N7")
def test_what_starts_work_takes_a_request_id() -> None:
    starting = {
        method for service in services() for method in service.methods if "job_id" in method.output_type.fields_by_name
    }
    assert len(starting) >= 6
    for method in starting:
        assert "request_id" in method.input_type.fields_by_name, method.full_name


@pytest.mark.feature("N9")
def test_lists_page_from_the_first_day() -> None:
    lists = [method for service in services() for method in service.methods if method.name.startswith("List")]
    assert len(lists) >= 7
    for method in lists:
        assert {"page_size", "page_token"} <= set(method.input_type.fields_by_name), method.full_name
        assert "next_page_token" in method.output_type.fields_by_name, method.full_name


@pytest.mark.feature("N8")
def test_every_reason_that_code_raises_is_in_the_registry() -> None:
    registered = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.DESCRIPTOR.values_by_name}
    modules = [engine.errors]
    if (ROOT / "controller" / "errors.py").exists():
        modules.append(importlib.import_module("controller.errors"))
    raised = {
        kind.reason
        for module in modules
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if issubclass(kind, engine.errors.BackupManagerError) and hasattr(kind, "reason")
    }
    assert raised
    assert raised <= registered
