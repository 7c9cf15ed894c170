"""The checks of single fields: what they take, and that each refusal names its field."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from google.protobuf.duration_pb2 import Duration
from google.protobuf.field_mask_pb2 import FieldMask

from clients.gen.backupmanager.v1 import hypervisor_service_pb2, job_service_pb2
from controller.errors import InvalidField
from controller.services import check

UUID = "0192aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee"


@pytest.mark.parametrize(
    ("function", "given", "taken"),
    [
        (check.name, "a.b-c_1", "a.b-c_1"),
        (check.title, "Ärger & Co", "Ärger & Co"),
        (check.title, "", ""),
        (check.identifier, UUID.upper(), UUID),
        (check.path, "/a//b/./c/", "/a/b/c"),
        (check.path, "/", "/"),
        (check.disks, ["vda", "sdb", "vda"], ("vda", "sdb")),
    ],
)
def test_what_fits_is_returned_in_one_form(
    function: Callable[[str, object], object], given: object, taken: object
) -> None:
    assert function("field", given) == taken


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (check.name, ""),
        (check.name, "a b"),
        (check.name, "x" * 65),
        (check.name, "a\n"),
        (check.name, "ä"),
        (check.title, "x" * 129),
        (check.title, " a"),
        (check.title, "a\nb"),
        (check.reference, ""),
        (check.identifier, ""),
        (check.identifier, "vm-1"),
        (check.path, ""),
        (check.path, "a/b"),
        (check.path, "/a/../b"),
        (check.path, "/" + "x" * 1024),
        (check.path, "/a\nb"),
        (check.disks, ["vd a"]),
        (check.disks, [""]),
        (check.disks, [f"vd{number}" for number in range(300)]),
        (check.domain_name, "x" * 256),
    ],
)
def test_what_does_not_fit_is_refused_by_name(function: Callable[[str, object], object], given: object) -> None:
    with pytest.raises(InvalidField) as refusal:
        function("field", given)
    assert refusal.value.facts["field"] == "field"


def test_spans_have_a_least_and_a_most() -> None:
    bounds = (timedelta(minutes=1), timedelta(seconds=1), timedelta(hours=1))
    request = hypervisor_service_pb2.CreateEnrollmentTokenRequest
    assert check.span(request(), "lifetime", *bounds) == timedelta(minutes=1)
    assert check.span(request(lifetime=Duration(seconds=2)), "lifetime", *bounds) == timedelta(seconds=2)
    for seconds in (0, -5, 3601, 315_576_000_000):
        with pytest.raises(InvalidField):
            check.span(request(lifetime=Duration(seconds=seconds)), "lifetime", *bounds)


def test_instants_are_aware() -> None:
    request = job_service_pb2.ListJobsRequest()
    assert check.instant(request, "start_time") is None
    request.start_time.FromSeconds(0)
    assert check.instant(request, "start_time") == datetime(1970, 1, 1, tzinfo=UTC)


def test_a_mask_names_known_fields_and_at_least_one() -> None:
    assert check.mask(FieldMask(paths=["name"]), ("name", "etag")) == {"name"}
    for paths in ([], ["strange"], ["name", "name.x"]):
        with pytest.raises(InvalidField):
            check.mask(FieldMask(paths=paths), ("name", "etag"))


def test_lists_of_ids_have_a_length() -> None:
    assert check.identifiers("ids", [UUID, UUID], 2) == (UUID,)
    for texts in ([], [UUID] * 3, ["x"]):
        with pytest.raises(InvalidField):
            check.identifiers("ids", texts, 2)
