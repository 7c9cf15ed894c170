"""Event lines on a disk that is full for a while."""

import errno
import json
import os
from pathlib import Path

import pytest

from engine.worker import Events


@pytest.mark.feature("N15")
@pytest.mark.parametrize("room", [0, 7])
def test_progress_without_room_is_dropped_and_lines_stay_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    real, left = os.write, [1 << 20]

    def write(descriptor: int, data: bytes) -> int:
        taken = real(descriptor, data[: left[0]]) if left[0] else 0
        left[0] -= taken
        if not taken:
            raise OSError(errno.ENOSPC, "No space left on device")
        return taken

    monkeypatch.setattr(os, "write", write)
    descriptor = os.open(tmp_path / "events", os.O_CREAT | os.O_WRONLY)
    try:
        events = Events(descriptor)
        events.send("started")
        left[0] = room
        events.send("progress", bytes_done=1)
        events.send("log", message="m")
        with pytest.raises(OSError, match="No space"):
            Events(descriptor).send("finished")
        left[0] = 1 << 20
        events.send("finished", durable=True)
    finally:
        os.close(descriptor)

    lines = [json.loads(line) for line in (tmp_path / "events").read_text().splitlines()]
    assert [one["n"] for one in lines] == list(range(1, len(lines) + 1))
    assert [one["type"] for one in lines] == ["started", *(["progress"] if room else []), "finished"]
