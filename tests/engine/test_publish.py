"""The restored file gets its name, also where there are no links."""

import errno
import os
from pathlib import Path

import pytest

from engine import restore_files
from engine.errors import TargetError


@pytest.mark.feature("T20")
def test_a_file_system_without_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object) -> None:
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    part, final = tmp_path / ".vda.raw.part", tmp_path / "vda.raw"
    part.write_text("whole")
    restore_files.publish(part, final)
    assert (final.read_text(), part.exists()) == ("whole", False)

    part.write_text("another")
    with pytest.raises(TargetError):
        restore_files.publish(part, final)
    assert (final.read_text(), part.read_text()) == ("whole", "another")
