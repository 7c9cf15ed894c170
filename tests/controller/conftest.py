"""What the controller's tests share."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.controller.world import World


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    world = World.open(tmp_path / "controller")
    try:
        yield world
    finally:
        world.close()
