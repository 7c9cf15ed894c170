"""What a differential holds: all that changed since the chain's full, which no bitmap of its own records (T3).

    full ──► incremental ──► incremental ──► now
             └── extents ─┘  └── extents ─┘  └── dirty ──┘      the union of these, read from the disk as it is now

It needs the full and nothing else, so its layers are the full's and its own.
"""

from collections.abc import Iterable, Iterator

from engine.coverage import Coverage
from engine.extents import Extent
from engine.format.crypto import ServerKey
from engine.format.manifest import DiskManifest
from engine.rebuild import open_segment
from engine.storage.base import Storage


def changed_since_full(
    recorded: Iterable[Extent], storage: Storage, parent: DiskManifest, key: ServerKey | None
) -> Iterator[Extent]:
    """Yield the extents, ascending and disjoint; `recorded` is what changed since `parent`, the chain's newest point.

    Reads the indexes of every point after the full. Raises what the storage raises, ChainBroken, SegmentCorrupt.
    """
    changed = Coverage()
    changed.add((extent.start, extent.end) for extent in recorded)
    for layer in parent.layers[1:]:
        for segment in layer.segments:
            with open_segment(storage, parent, layer.backup_id, segment, key) as reader:
                pieces = [one.extents if not isinstance(one, Extent) else (one,) for one in reader.entries()]
            changed.add(sorted((extent.start, extent.end) for extents in pieces for extent in extents))
    for start, end in changed:
        yield Extent(start, end - start)
