"""Named steps at which a test may kill this process, to see what the next one makes of what is left.

    BM_KILL_AT=committed     SIGKILL at the first time that the step is reached
    BM_KILL_AT=segment:3     at the third time

Without that variable a step costs one comparison. There is no other action, and nothing that comes over the network can
set it.
"""

import os
import signal

# Every step, in the order of a backup and of a restore; tests go through all of them, so a step cannot be forgotten.
BACKUP_STEPS = (
    "prepared", "intent", "recorded", "begun", "thawed", "mapped", "noted", "segment", "stored", "job_ended", "lease_held",
    "disk_manifest", "committed", "checkpoints_dropped",
)  # fmt: skip
RESTORE_STEPS = ("checked", "stopped", "forgotten", "half_written", "written", "started")
DELETE_STEPS = ("marked", "unlisted", "manifests_gone", "deleted")

_step, _, _count = os.environ.get("BM_KILL_AT", "").partition(":")
_left = int(_count or 1)


def reached(step: str) -> None:
    """Note that the work got here."""
    global _left
    if step != _step:
        return
    _left -= 1
    if _left == 0:
        os.kill(os.getpid(), signal.SIGKILL)
