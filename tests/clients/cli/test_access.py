"""bmctl's panel verbs against the real controller: packages, levels, locks, owners, service, and tokens for end users."""

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.bmctl import Bmctl
from tests.servers.controller import Controller
from tests.servers.station import Station


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    with Controller(tmp_path / "controller") as running:
        yield running


@pytest.mark.feature("A2", "A4", "A5", "N2", "N4", "X15")
def test_the_panel_s_word_from_the_command_line(tmp_path: Path, controller: Controller) -> None:
    bmctl = Bmctl(tmp_path)
    bmctl.log_in(controller.api, controller.authority_pem, controller.admin_token)
    asyncio.run(Station.enroll(controller, "hv1"))
    for name in ("web", "db"):
        register = ("server", "register", str(uuid.uuid4()), "--hypervisor", "hv1", "--name", name, "--owner", "alice")
        assert bmctl(*register).code == 0

    assert bmctl("package", "create", "gold", "--level", "full-access").code == 0
    shown = bmctl("server", "package", "web", "gold").out
    assert "full access (its package's)" in shown
    assert "gold" in shown
    assert "view and restore (its own)" in bmctl("server", "access", "set", "web", "view-and-restore").out
    assert (
        "2 servers, 2 of them changed" in bmctl("server", "access", "bulk", "disabled", "--hypervisor", "hv1", "-y").out
    )
    level = bmctl("server", "access", "get", "db", "-o", "json").json["access"]
    assert (level["level"], level["origin"]) == ("ACCESS_LEVEL_DISABLED", "ACCESS_ORIGIN_SERVER")
    assert bmctl("server", "access", "bulk", "inherit", "-y").code == 2, "of which servers was not said"
    used = bmctl("package", "delete", "gold", "--yes", "-o", "json")
    assert (used.code, used.error["reason"]) == (4, "PACKAGE_IN_USE")
    assert "inherit" in bmctl("package", "update", "gold", "--level", "inherit").out
    assert "1" in bmctl("package", "list").out

    assert "rescue, until" in bmctl("server", "lock", "web", "--reason", "rescue", "--for", "2h").out
    assert "locked" in bmctl("server", "list").out
    assert "rescue" not in bmctl("server", "unlock", "web").out
    assert "leaves it out" in bmctl("server", "decommission", "web").out
    assert "leaves it out" not in bmctl("server", "commission", "web").out

    made = bmctl("token", "portal", "web", "db", "--owner", "alice", "--lifetime", "30m", "-o", "json").json
    assert made["access_token"]["scope"] == "ACCESS_SCOPE_PORTAL"
    assert bmctl("server", "owner", "web", "bob", "--yes").code == 0
    mixed = bmctl("token", "portal", "web", "db", "-o", "json")
    assert (mixed.code, mixed.error["reason"]) == (2, "INVALID_FIELD")
