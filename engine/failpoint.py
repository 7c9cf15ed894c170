"""Named steps at which a test may kill this process, to see what the next one makes of what is left.

    BM_KILL_AT=committed     SIGKILL at the first time that the step is reached
    BM_KILL_AT=segment:3     at the third time

A step follows each change of the host or of the storage. Without that variable it costs two comparisons. There is no other
action, and nothing that comes over the network can set it. A test goes through these lists, so that a step that is never
reached, or reached and not listed, fails: see tests/engine/test_kill.py.
"""

import os
import signal
from collections.abc import Callable

# In the order of a backup; which of them a backup reaches depends on its disks and on the domain's state.
BACKUP_STEPS = (
    "repository", "key", "prepared", "intent", "quiesced", "recorded", "scratch_made", "begun", "thawed", "mapped",
    "noted", "bitmap_added", "exported", "frame", "segment", "stored", "job_ended", "lease_held", "disk_manifest", "backup_manifest",
    "committed", "bitmap_dropped", "checkpoint_dropped", "checkpoints_dropped",
)  # fmt: skip
# While a backup that failed takes itself away, and while the next one removes what a dead one left.
UNDO_STEPS = ("bitmap_dropped", "checkpoint_dropped", "disk_swept", "swept")
RESTORE_STEPS = (
    "image_made", "defined", "checked", "stopped", "noted", "bitmap_dropped", "checkpoint_dropped", "forgotten", "exported",
    "half_written", "disk_written", "written", "started", "file_made", "file_named",
)  # fmt: skip
DELETE_STEPS = (
    "disk_marked", "marked", "unlisted", "manifest_gone", "manifests_gone", "disk_swept", "swept", "deleted",
    "bitmap_dropped", "checkpoint_dropped",
)  # fmt: skip

# Told of every step, for a test that asks which ones a job reaches.
observe: Callable[[str], None] | None = None

_step = ""
_left = 0


def kill_at(text: str) -> None:
    """Kill this process at a step, as BM_KILL_AT says it; "" for never."""
    global _step, _left
    _step, _, count = text.partition(":")
    _left = int(count or 1)


def reached(step: str) -> None:
    """Note that the work got here."""
    global _left
    if observe is not None:
        observe(step)
    if step != _step:
        return
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)


kill_at(os.environ.get("BM_KILL_AT", ""))
