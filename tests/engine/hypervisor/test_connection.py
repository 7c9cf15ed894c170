"""Errors of libvirt become ours, and what libvirt tells by itself arrives."""

import uuid
from pathlib import Path

import pytest

from engine.errors import DomainNotFound, HypervisorError, LibvirtUnreachable
from engine.hypervisor import qmp
from engine.hypervisor.connection import Connection, DomainEvent, code_of, open_connection
from tests.servers.guest import MIB, DiskFile
from tests.servers.libvirtd import Libvirtd
from tests.waiting import wait_until


def test_a_daemon_that_is_not_there_is_unreachable(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(LibvirtUnreachable) as caught:
        open_connection(f"qemu+unix:///system?socket={tmp_path}/no-socket")
    assert caught.value.reason == "LIBVIRT_UNREACHABLE"
    assert capfd.readouterr().err == ""  # libvirt's own printing is silenced


def test_a_domain_is_found_by_uuid_and_by_name(connection: Connection, blank_domain) -> None:
    made = blank_domain([], running=False)
    assert connection.domain(made.uuid).name == made.name
    assert connection.domain(made.name).uuid == made.uuid


@pytest.mark.parametrize("key", [str(uuid.UUID(int=7)), "no-such-name"])
def test_an_unknown_domain_is_not_found(connection: Connection, key: str) -> None:
    with pytest.raises(DomainNotFound) as caught:
        connection.domain(key)
    assert code_of(caught.value) == 42
    assert caught.value.facts["domain"] == key


def test_a_refusal_carries_libvirts_code(connection: Connection, blank_domain) -> None:
    domain = connection.domain(blank_domain([], running=False).uuid)
    with pytest.raises(HypervisorError) as caught, domain.translated("virDomainSuspend"):
        domain.handle.suspend()
    assert code_of(caught.value) == 55


def test_a_killed_daemon_is_noticed_and_domains_go_on(libvirtd: Libvirtd, blank_domain) -> None:
    made = blank_domain([])
    closed: list[bool] = []
    with open_connection(libvirtd.uri) as connection:
        domain = connection.domain(made.uuid)
        connection.watch_domains(lambda _event: None, lambda: closed.append(True))
        libvirtd.kill()
        try:
            wait_until(lambda: closed, 10, "the closed callback")
            assert not connection.alive()
            with pytest.raises(LibvirtUnreachable):
                qmp.execute(domain, "query-status")
        finally:
            libvirtd.start()
    with open_connection(libvirtd.uri) as connection:
        assert qmp.execute(connection.domain(made.uuid), "query-status")["running"]


def test_changes_of_domains_arrive(connection: Connection, blank_domain, tmp_path: Path) -> None:
    seen: list[DomainEvent] = []
    end = connection.watch_domains(seen.append)
    made = blank_domain([DiskFile("vda", tmp_path / "a.qcow2").create(MIB)])
    only: list[DomainEvent] = []
    end_only = connection.watch_domain(connection.domain(made.uuid), only.append)
    made.handle.suspend()
    made.close()
    wait_until(
        lambda: [one.change for one in seen if one.uuid == made.uuid][-1:] == ["undefined"], 10, "the last event"
    )
    changes = [one.change for one in seen if one.uuid == made.uuid]
    assert changes[0] == "defined"
    assert [one for one in changes if one in {"started", "suspended", "stopped"}] == ["started", "suspended", "stopped"]
    assert not any(one.io_error for one in seen)
    assert [one.change for one in only if one.change != "shutdown"] == ["suspended", "stopped", "undefined"]
    end()
    end_only()


def test_a_failing_watcher_ends_nothing(connection: Connection, blank_domain, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[str] = []

    def fail(event: DomainEvent) -> None:
        seen.append(event.change)
        raise RuntimeError("on purpose")

    end = connection.watch_domains(fail)
    made = blank_domain([], running=False)
    made.close()
    wait_until(lambda: "undefined" in seen, 10, "both events")
    assert "a watcher of domains failed" in caplog.text
    end()
