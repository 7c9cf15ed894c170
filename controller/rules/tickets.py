"""Where a restore ticket stands. Pure."""

from datetime import datetime
from typing import Literal, TypeAlias

State: TypeAlias = Literal["active", "expired", "revoking", "revoked"]


def state_of(expire_time: datetime, revoke_time: datetime | None, gone_time: datetime | None, now: datetime) -> State:
    """Return a ticket's state: revoked once its hypervisor has said so, and with its time over whatever it has said."""
    if gone_time is not None:
        return "revoked"
    if now >= expire_time:
        return "expired"
    return "active" if revoke_time is None else "revoking"
