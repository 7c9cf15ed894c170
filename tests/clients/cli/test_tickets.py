"""`bmctl ticket`: what lies on hypervisors, and taking it back; and what a storage's change says of it."""

import pytest

from clients.gen.backupmanager.v1 import ticket_pb2
from tests.clients import rows
from tests.clients.bmctl import Bmctl
from tests.clients.canned import Canned

pytestmark = pytest.mark.feature("M11")
NOBODY = "01938a00-0000-7000-8000-0000000000ff"


def test_tickets_are_listed_with_what_they_are_for(bmctl: Bmctl, canned: Canned) -> None:
    shown = bmctl("ticket", "list", "--hypervisor", "hv1", "--all").out
    for part in ("web1", "active", "hv1", "offsite", "in 2", rows.JOB):
        assert part in shown
    (request,) = canned.calls["ListTickets"]
    assert (request.hypervisor_id, request.include_ended) == ("hv1", True)
    assert bmctl("ticket", "list", "-o", "json").json["tickets"][0]["path"].endswith(".json")
    del canned.tickets[:]
    assert "No restore ticket can be used now." in bmctl("ticket", "list").out


def test_who_revokes_one_is_told_what_that_does_and_what_it_cannot_do(bmctl: Bmctl, canned: Canned) -> None:
    said = bmctl("ticket", "revoke", rows.JOB)
    assert said.code == 0, said.err
    assert f"Ticket {rows.JOB}: revoked; hv1 has been sent the word" in said.out
    assert "bmctl storage update offsite" in said.out
    assert canned.tickets[0].state == ticket_pb2.RESTORE_TICKET_STATE_REVOKING
    assert bmctl("ticket", "revoke", rows.JOB, "-o", "json").json["tickets"][0]["state"].endswith("_REVOKING")
    refused = bmctl("ticket", "revoke", NOBODY)
    assert refused.code == 3
    assert "bmctl ticket list --all" in refused.err


def test_a_storages_end_tells_of_its_tickets(bmctl: Bmctl) -> None:
    said = bmctl("storage", "delete", "nas", "--yes")
    assert said.code == 0
    assert "1 restore ticket revoked" in said.err
