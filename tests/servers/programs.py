"""Programs in front of real ones, which do what the real one does but say something else of themselves."""

import os
import shutil
from pathlib import Path


def older_qemu_nbd(folder: Path) -> str:
    """Return a PATH on which qemu-nbd calls itself 7.1, so that images are read by plain calls, which /proc/PID/io counts."""
    real = shutil.which("qemu-nbd")
    assert real is not None, "qemu-utils is not installed"
    before = folder / "older"
    before.mkdir()
    program = before / "qemu-nbd"
    program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "qemu-nbd 7.1.0" && exit\nexec {real} "$@"\n')
    program.chmod(0o755)
    return f"{before}:{os.environ['PATH']}"
