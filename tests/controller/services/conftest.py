"""One real controller for the tests of a file, and its services over a real connection."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.controller.services.api import Api
from tests.servers.controller import Controller


@pytest.fixture(scope="module")
def controller(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Controller]:
    with Controller(tmp_path_factory.mktemp("controller") / "c") as running:
        yield running
    check_log(running.log, running.admin_token)


@pytest.fixture
async def api(controller: Controller) -> AsyncIterator[Api]:
    """The services, called by an admin."""
    async with controller.channel() as channel:
        yield Api(channel)


def check_log(log: Path, secret: str) -> None:
    """No test of these files makes the controller fail by a fault of its own, nor write down what is secret (S28)."""
    text = log.read_text()
    assert "a call ended" in text, "it really logs at the most talkative level"
    assert secret not in text
    assert "PRIVATE KEY" not in text
    assert "long enough" not in text  # the passphrase that these tests use
    assert "by a fault of ours" not in text, text[text.index("by a fault of ours") - 200 :][:4000]
    assert "Traceback" not in text, text[text.index("Traceback") - 300 :][:4000]
