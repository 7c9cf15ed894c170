"""Disk images at rest: what they are, making them, and the dirty bitmaps inside them. All through qemu-img."""

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.errors import HypervisorError, ImageBusy, TargetError
from engine.source.export import IMAGE_FORMATS, image_source

TOOL_SECONDS = 300.0  # qemu-img only reads and writes metadata here, but perhaps on a storage that is busy


@dataclass(frozen=True, slots=True)
class Bitmap:
    """A persistent dirty bitmap. An inconsistent one was not stored properly (QEMU was killed): it can only be removed."""

    name: str
    granularity_bytes: int
    recording: bool
    inconsistent: bool


@dataclass(frozen=True, slots=True)
class ImageInfo:
    """`size_bytes` is the disk's, `allocated_bytes` what the file occupies; `backing` is "" for an image that stands alone."""

    format: str
    size_bytes: int
    allocated_bytes: int
    backing: str
    bitmaps: tuple[Bitmap, ...]
    compat: str  # of qcow2: "0.10" cannot hold bitmaps; "" for other formats


def image_info(path: str, image_format: str) -> ImageInfo:
    """Return what the image's metadata says, also while a domain uses it (it may then be a moment old).

    Raises HypervisorError.
    """
    source = _source(path, image_format, read_only=True, shared=True)
    info = json.loads(_qemu_img(path, "info", "--output=json", source))
    specific = info.get("format-specific", {}).get("data", {})
    return ImageInfo(
        format=info["format"],
        size_bytes=info["virtual-size"],
        allocated_bytes=info.get("actual-size", 0),
        backing=info.get("full-backing-filename") or info.get("backing-filename", ""),
        bitmaps=tuple(_bitmap(one) for one in specific.get("bitmaps", [])),
        compat=specific.get("compat", ""),
    )


def image_files(path: str, image_format: str) -> tuple[str, ...]:
    """Return every file that the image's content comes from: itself, those it lies on, and external data files.

    What it lies on somewhere in the network is left out. Raises HypervisorError.
    """
    source = _source(path, image_format, read_only=True, shared=True)
    chain = json.loads(_qemu_img(path, "info", "--backing-chain", "--output=json", source))
    files, place = [], path
    for info in chain:
        data = info.get("format-specific", {}).get("data", {}).get("data-file")
        files += [place, *([str(Path(place).parent / data)] if data else [])]
        place = info.get("full-backing-filename", "")
    return tuple(file for file in dict.fromkeys(files) if file.startswith("/"))


def list_bitmaps(path: str, image_format: str = "qcow2") -> tuple[Bitmap, ...]:
    """Return the persistent dirty bitmaps of an image; a raw one has none."""
    return image_info(path, image_format).bitmaps


def image_in_use(path: str, image_format: str) -> bool:
    """Tell whether some process has the image open for writing, by QEMU's own image locks."""
    try:
        _qemu_img(path, "info", _source(path, image_format, read_only=True))
    except ImageBusy:
        return True
    return False


def create_image(path: str, image_format: str, size_bytes: int) -> None:
    """Make an empty image. Raises TargetError if something is there already, or if it cannot be made."""
    if image_format not in IMAGE_FORMATS or not path.startswith("/"):
        raise TargetError(target=path, detail=f"an absolute path and one of {', '.join(IMAGE_FORMATS)} are needed")
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))  # qemu-img would write over a file
    except OSError as error:
        raise TargetError(target=path, detail=error.strerror) from error
    try:
        _qemu_img(path, "create", "-q", "-f", image_format, "--", path, str(size_bytes))
    except HypervisorError as error:
        Path(path).unlink()
        raise TargetError(target=path, detail=error.facts["detail"]) from error


def add_bitmap(path: str, name: str) -> None:
    """Add a recording, persistent dirty bitmap to a qcow2 image that nobody has open. Raises ImageBusy, HypervisorError."""
    _change_bitmap(path, "--add", name)


def remove_bitmap(path: str, name: str) -> None:
    """Remove a persistent dirty bitmap, also an inconsistent one. Raises ImageBusy, HypervisorError."""
    _change_bitmap(path, "--remove", name)


def _change_bitmap(path: str, change: str, name: str) -> None:
    _qemu_img(path, "bitmap", change, "--", _source(path, "qcow2", read_only=False), name)


def _bitmap(data: dict[str, Any]) -> Bitmap:
    flags = data.get("flags", [])
    return Bitmap(data["name"], data["granularity"], recording="auto" in flags, inconsistent="in-use" in flags)


def _source(path: str, image_format: str, *, read_only: bool, shared: bool = False) -> str:
    try:
        return image_source(path, image_format, read_only=read_only, shared=shared)
    except OSError as error:
        raise HypervisorError(operation="open image", detail=f"{path}: {error.strerror}") from error


def _qemu_img(path: str, verb: str, *arguments: str) -> str:
    """Run qemu-img and return its output. Raises ImageBusy if the image `path` is locked, else HypervisorError."""
    command = ["qemu-img", verb, *arguments]
    try:
        done = subprocess.run(
            command,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=TOOL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise HypervisorError(operation=f"qemu-img {verb}", detail=f"{path}: {error}") from error
    if done.returncode == 0:
        return done.stdout
    message = done.stderr.strip()
    if "Failed to get" in message and "lock" in message:
        raise ImageBusy(path=path)
    raise HypervisorError(operation=f"qemu-img {verb}", detail=message or f"{path}: exit status {done.returncode}")
