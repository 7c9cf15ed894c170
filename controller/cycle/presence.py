"""Telling when a hypervisor went offline or came back: online is no column, so somebody has to look.

A session's beginning tells at once that a hypervisor is there; silence is found by the tick. Each change is one conditional
statement whose outcome is the answer, so of two controllers one tells it.
"""

from datetime import datetime
from typing import TYPE_CHECKING, Any

from controller import happenings, system_log
from controller.db import models
from controller.db.fields import to_microseconds
from controller.db.statements import statement
from controller.limits import Limits

if TYPE_CHECKING:
    from controller.cycle.tick import Round

_Presence, _Hypervisor = models.HypervisorPresence, models.Hypervisor
_ARRIVED = """
    INSERT INTO hypervisor_presence (hypervisor_id, online, change_time) VALUES (?, TRUE, ?)
    ON CONFLICT (hypervisor_id) DO UPDATE SET online = TRUE, change_time = excluded.change_time
        WHERE NOT hypervisor_presence.online
    RETURNING hypervisor_id
"""


async def step(around: "Round") -> None:
    """Look who came and who went."""
    await around.database.run(run, around.limits, around.listening_since, around.now)


def arrived(hypervisor_id: str, now: datetime) -> None:
    """A session of the hypervisor begins."""
    if statement(_ARRIVED, hypervisor_id, to_microseconds(now)):
        happenings.record("hypervisor.online", now, hypervisor_id=hypervisor_id)


def run(limits: Limits, listening_since: datetime, now: datetime) -> None:
    """Tell of every hypervisor that fell silent, or is heard again without a new session.

    While nobody could have been heard, since we have only begun to listen, nobody is silent.
    """
    silent_since = now - limits.silence_max
    for hypervisor_id, _ in _hypervisors(~_Presence.online & (_Hypervisor.last_contact_time >= silent_since)):
        arrived(hypervisor_id, now)
    if listening_since > silent_since:
        return
    for hypervisor_id, last in _hypervisors(_Presence.online & (_Hypervisor.last_contact_time < silent_since)):
        gone = _Presence.update(online=False, change_time=now).where(
            (_Presence.hypervisor_id == hypervisor_id) & _Presence.online
        )
        if gone.execute():
            body = {"last_contact_time": last.isoformat()}
            text = f"hypervisor is offline: nothing was heard from its agent since {last:%Y-%m-%d %H:%M:%S} UTC"
            system_log.write("warning", "inventory", text, now, hypervisor_id=hypervisor_id)
            happenings.record("hypervisor.offline", now, hypervisor_id=hypervisor_id, body=body)


def _hypervisors(which: Any) -> list[tuple[str, datetime]]:
    query: Any = (  # peewee's types do not know of tuples
        _Presence.select(_Presence.hypervisor_id, _Hypervisor.last_contact_time)
        .join(_Hypervisor, on=(_Hypervisor.hypervisor_id == _Presence.hypervisor_id))
        .where(which)
    )
    return list(query.tuples())
