"""`bmctl events`, `webhook`, `log` and `audit` against the real controller, which is restarted while somebody follows."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.bmctl import Bmctl
from tests.servers.controller import Controller
from tests.servers.receiver import Receiver
from tests.servers.sshd import free_port
from tests.waiting import wait_until


@pytest.fixture
def controller(tmp_path: Path) -> Iterator[Controller]:
    port = free_port()
    networks = ["127.0.0.0/8"]
    with Controller(tmp_path / "controller", listen=f"127.0.0.1:{port}", webhook_networks=networks) as running:
        yield running


@pytest.fixture
def bmctl(tmp_path: Path, controller: Controller) -> Bmctl:
    runner = Bmctl(tmp_path)
    runner.log_in(controller.api, controller.authority_pem, controller.admin_token)
    return runner


def add_storage(bmctl: Bmctl, name: str) -> None:
    assert bmctl("storage", "add", "local", name, "--path", "/srv/x", "--allow-local").code == 0


@pytest.mark.feature("N6")
def test_following_goes_on_over_a_restart_and_shows_each_event_once(bmctl: Bmctl, controller: Controller) -> None:
    follower = bmctl.start("events", "--follow", "--kind", "storage.", "--output", "json")
    try:
        assert follower.stdout is not None
        add_storage(bmctl, "one")
        kinds = [json.loads(follower.stdout.readline())["kind"]]
        controller.restart()
        add_storage(bmctl, "two")
        assert bmctl("storage", "update", "two", "--disable").code == 0
        kinds += [json.loads(follower.stdout.readline())["kind"] for _ in range(2)]
    finally:
        follower.kill()
        follower.communicate()
    assert kinds == ["storage.created", "storage.created", "storage.updated"]
    shown = bmctl("events", "--kind", "storage.")
    assert [line.split()[2] for line in shown.out.splitlines()] == kinds
    assert "storage two" in shown.out


@pytest.mark.feature("N5", "N6", "M9")
def test_webhooks_and_logs_for_people_and_scripts(bmctl: Bmctl) -> None:
    with Receiver() as receiver:
        made = bmctl("webhook", "create", "panel", receiver.url, "--kind", "storage.")
        assert len(made.out.strip()) >= 32
        receiver.answers = [200, 500]
        assert "answered 200" in bmctl("webhook", "test", "panel").out
        refused = bmctl("webhook", "test", "panel", "-o", "json")
        assert (refused.code, refused.error["reason"], refused.json["http_status"]) == (6, "WEBHOOK_FAILED", 500)
        receiver.answers = [503]
        add_storage(bmctl, "one")
        wait_until(lambda: "503" in bmctl("webhook", "deliveries", "panel").out, 30, "the failure to be shown")
        assert bmctl("webhook", "update", "panel", "--disable", "-o", "json").json["webhook"]["enabled"] is False
        assert "disabled" in bmctl("webhook", "show", "panel").out
        assert bmctl("webhook", "delete", "panel", "--yes").code == 0
    done = bmctl("audit", "list", "--method", "Webhook", "-o", "json").json["entries"]
    assert {one["outcome"] for one in done} == {"OK"}
    assert bmctl("audit", "list", "--failed").out.strip() == "No such calls."
    assert bmctl("log", "list", "--level", "error", "--source", "purge").code == 0
    assert bmctl("events", "--cursor", "99999", "-o", "json").error["reason"] == "CURSOR_EXPIRED"
