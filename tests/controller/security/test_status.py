"""Reasons on the wire: each has the status that the registry promises, with its details and its trailers."""

import re
from pathlib import Path
from urllib.parse import unquote

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from clients.gen.backupmanager.v1 import errors_pb2
from controller import errors
from controller.security import status

PROTOS = Path(__file__).parents[3] / "protos" / "backupmanager"
REGISTRY = (PROTOS / "v1" / "errors.proto").read_text()


def promised() -> dict[str, str]:
    """Return the status that the registry's comments name, for each reason that has one."""
    found = re.findall(r"// ([A-Z_]+)(?: with RetryInfo)?\. [^\n]*\n(?:  //[^\n]*\n)*  ERROR_REASON_(\w+) =", REGISTRY)
    return {reason: name for name, reason in found}


@pytest.mark.feature("N8")
def test_every_reason_has_the_status_that_the_registry_names() -> None:
    assert {reason: code.name for reason, code in status.STATUS.items()} == promised()


@pytest.mark.feature("N8")
def test_every_reason_that_a_service_names_has_a_status() -> None:
    reasons = set()
    known = {name.removeprefix("ERROR_REASON_") for name in errors_pb2.ErrorReason.DESCRIPTOR.values_by_name}
    for path in PROTOS.rglob("*_service.proto"):
        comments = "\n".join(re.findall(r"//(.*)", path.read_text()))
        reasons |= set(re.findall(r"\b[A-Z]+(?:_[A-Z]+)+\b", comments)) & known
    assert len(reasons) > 20
    assert reasons <= set(status.STATUS)


def details(error: errors.ControllerError) -> tuple[grpc.Status, list[object]]:
    made = status.status_of(error)
    rich = status_pb2.Status.FromString(dict(made.trailing_metadata)["grpc-status-details-bin"])
    kinds = [error_details_pb2.ErrorInfo, error_details_pb2.BadRequest, error_details_pb2.RetryInfo]
    unpacked = []
    for one in rich.details:
        kind = next(kind for kind in kinds if one.Is(kind.DESCRIPTOR))
        unpacked.append(kind.FromString(one.value))
    return made, unpacked


@pytest.mark.feature("N8")
def test_a_wrong_field_comes_with_a_bad_request() -> None:
    made, (info, bad) = details(errors.InvalidField(field="page_size", problem="is negative"))
    assert made.code is grpc.StatusCode.INVALID_ARGUMENT
    assert isinstance(info, error_details_pb2.ErrorInfo)
    assert isinstance(bad, error_details_pb2.BadRequest)
    assert (info.reason, info.domain) == ("INVALID_FIELD", "backupmanager")
    assert dict(info.metadata) == {"field": "page_size", "problem": "is negative"}
    assert bad.field_violations[0].field == "page_size"


@pytest.mark.feature("N8")
def test_what_passes_by_itself_comes_with_a_time_to_retry() -> None:
    made, (_, retry) = details(errors.ShuttingDown())
    assert made.code is grpc.StatusCode.UNAVAILABLE
    assert isinstance(retry, error_details_pb2.RetryInfo)
    assert retry.retry_delay.seconds > 0


@pytest.mark.feature("N8")
def test_reason_and_facts_are_plain_trailers_too() -> None:
    trailers = dict(status.trailers_of(errors.HypervisorNotFound(hypervisor_id="Käse 100%")))
    assert trailers["backupmanager-reason"] == "HYPERVISOR_NOT_FOUND"
    assert trailers["backupmanager-fact-hypervisor_id"].isascii()
    assert unquote(trailers["backupmanager-fact-hypervisor_id"]) == "Käse 100%"


def test_long_facts_are_cut_to_what_a_peer_takes() -> None:
    error = errors.ServerNotFound(server_id="ä" * 100_000)
    made = status.status_of(error)
    assert sum(len(value) for _, value in (*made.trailing_metadata, *status.trailers_of(error))) < 4096


def test_text_that_no_wire_carries_is_replaced() -> None:
    assert status.status_of(errors.ServerNotFound(server_id="a\ud800")).details
    assert status.trailers_of(errors.ServerNotFound(server_id="a\ud800"))[1][1] == "a?"
