"""Reading an NBD export with QEMU's own tools, so that tests of our side do not trust our own reader."""

import json
import subprocess
from pathlib import Path


def copy_export(socket: Path, export: str, target: Path) -> Path:
    """Copy a whole export into the new raw file `target`."""
    source = f"nbd+unix:///{export}?socket={socket}"
    subprocess.run(
        ["qemu-img", "convert", "-f", "raw", "-O", "raw", source, str(target)], check=True, capture_output=True
    )
    return target


def dirty_extents(socket: Path, export: str, bitmap: str) -> list[tuple[int, int]]:
    """Return (start, length) of each dirty extent of an export's bitmap.

    qemu-img shows a bitmap as if it were the allocation, inverted: what is dirty has `data: false`.
    """
    options = (
        f"driver=nbd,server.type=unix,server.path={socket},export={export},x-dirty-bitmap=qemu:dirty-bitmap:{bitmap}"
    )
    command = ["qemu-img", "map", "--output=json", "--image-opts", options]
    shown = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return [(one["start"], one["length"]) for one in shown if not one["data"]]
