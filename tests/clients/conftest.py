"""bmctl, logged in to a canned controller."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.bmctl import Bmctl
from tests.clients.canned import TOKEN, Canned


@pytest.fixture
def canned() -> Iterator[Canned]:
    with Canned() as controller:
        yield controller


@pytest.fixture
def bmctl(tmp_path: Path, canned: Canned) -> Bmctl:
    runner = Bmctl(tmp_path)
    runner.log_in(canned.address, canned.authority, TOKEN)
    return runner
