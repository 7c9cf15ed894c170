"""Vectors of every type of backup: what a differential holds and needs, what may build on one, and a copy beside them.

    chain-plain/, chain-sealed/    full ◄─ incremental ◄─ differential ◄─ incremental        copy, a chain of its own
                                     └─────── needs ────────┘ └── needs ──┘

    chains.json                    what they restore to (SHA-256); chains-compressed.json as compressed.json

A differential's parent is the point whose tracking it read; the layers that it needs are the full's and its own. So a reader that
applied the incremental between them, or that took `parent_backup_id` for what is needed, would give other bytes.
"""

from dataclasses import dataclass

from engine.format import markers, names
from engine.format.manifest import Layer
from engine.spec import BackupType
from tests.engine.format import samples
from tests.engine.format.samples import FULL, INCREMENTAL, TIME, Item, Objects, Writing, frame, zero

DIFFERENTIAL = "00000000-0000-7000-8000-00000000000c"
LATER = "00000000-0000-7000-8000-00000000000d"
COPY = "00000000-0000-7000-8000-00000000000e"


def third_image() -> bytes:
    """The second image after the guest wrote one place anew and one for the first time, and zeroed what it had written last."""
    image = bytearray(samples.second_image())
    image[2048:2348] = samples.noise(300, "eight")
    image[4000:4100] = samples.text(100, "nine")
    image[8000:8192] = bytes(192)
    return bytes(image)


def fourth_image() -> bytes:
    image = bytearray(third_image())
    image[150:250] = samples.text(100, "ten")
    image[4000:4050] = bytes(50)
    return bytes(image)


@dataclass(frozen=True, slots=True)
class _Step:
    """A backup: `below` are the ones whose layers it needs beside its own."""

    backup_id: str
    type: BackupType
    parent: str
    below: tuple[str, ...]
    image: bytes
    items: tuple[Item, ...]


def steps() -> tuple[_Step, ...]:
    """Return what the guest's owner did, in order."""
    since_the_full = (zero(1024, 256), zero(8000, 192), frame((100, 100), (2048, 300)), frame((4000, 100)))
    since_then = (zero(4000, 50), frame((150, 100)))
    return (
        _Step(FULL, "full", "", (), samples.first_image(), samples.FULL_ITEMS),
        _Step(INCREMENTAL, "incremental", FULL, (FULL,), samples.second_image(), samples.DIRTY_ITEMS),
        _Step(DIFFERENTIAL, "differential", INCREMENTAL, (FULL,), third_image(), since_the_full),
        _Step(LATER, "incremental", DIFFERENTIAL, (FULL, DIFFERENTIAL), fourth_image(), since_then),
        _Step(COPY, "copy", "", (), fourth_image(), (frame((0, 4000)), zero(4000, 50), frame((4050, 4142)))),
    )


def repository(how: Writing, wrapped_key: str) -> Objects:
    """Return a repository with one server, one disk and its five backups. `wrapped_key` is the key's object, "" without."""
    marker = markers.Repository(samples.REPOSITORY, samples.INSTALLATION, markers.FORMAT, TIME)
    objects: Objects = {names.REPOSITORY: marker.dump()}
    own: dict[str, Layer] = {}
    for step in steps():
        segments = samples.write_layer(objects, how, step.backup_id, "vda", step.image, step.items)
        own[step.backup_id] = Layer(step.backup_id, segments)
        layers = (*(own[one] for one in step.below), own[step.backup_id])
        value = samples.disk_manifest(how, step.backup_id, "vda", len(step.image), layers, step.parent, step.type)
        data = samples.put_manifest(objects, how, value)
        server = samples.server_manifest(how, step.backup_id, {"vda": (value, data)}, wrapped_key)
        samples.put_manifest(objects, how, server)
    return objects
