"""A session's beginning: who is there, what is it doing, and what do we make of it.

    Hello ──► protocol ──► journal: where we are in it, or that it went back in time ──► verdict on each operation ──► Welcome
          └──► commands that lie in its journal are settled
          └──► suspects: jobs that we hold for sent and that it does not name. Judged only when all events up to
               Hello.last_sequence are stored, since their fate may be among these

Operations are named until their result is acknowledged, so a job that is not named and has no result was lost: by a crash of
the host, or with a journal from a restored snapshot.
"""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal, TypeAlias

from controller import installation, jobs, set_back
from controller.agents import events, outbox, ownership
from controller.agents.convert import Greeting
from controller.agents.outbox import Stamp
from controller.cycle import dispatch, presence
from controller.db import models
from controller.db.fields import to_microseconds
from controller.db.statements import statement
from controller.errors import InvalidField, OperationLost, Unsupported
from controller.installation import Installation
from controller.jobs import DISPATCHED, SENT, End
from controller.limits import CLOCK_OFFSET_WARNED, Limits
from engine.ids import new_id

log = logging.getLogger(__name__)

PROTOCOL_VERSION = 1
PROTOCOL_VERSION_MIN = 1  # this one and the two before, once there are any (N13)
JOURNAL_CHARACTERS_MAX = 64
OPERATIONS_MAX = 1000
COMMAND_IDS_MAX = 5000  # as many as an agent names

Verdict: TypeAlias = Literal["keep", "cancel", "unknown"]


@dataclass(frozen=True, slots=True)
class Suspect:
    """A job that was sent and is not named. `received`: the agent had confirmed to have its command."""

    stamp: Stamp
    received: bool


@dataclass(frozen=True, slots=True)
class Welcome:
    """What we answer, and what the session has to remember. With a closed journal nothing is taken, nothing is sent and
    nobody is suspected: the agent comes again with a new one.
    """

    session_id: str
    protocol_version: int
    stored_sequence: int
    journal_closed: bool
    verdicts: tuple[tuple[Stamp, Verdict], ...]
    suspects: tuple[Suspect, ...]
    time: datetime
    epoch: int


def greet(hypervisor_id: str, greeting: Greeting, owner: str, limits: Limits, now: datetime) -> Welcome:
    """Begin a session of the controller that is `owner`; a new epoch, if the agent shows that our memory was set back.

    Raises Unsupported, InvalidField.
    """
    protocol = _protocol(greeting)
    if not 0 < len(greeting.journal_id) <= JOURNAL_CHARACTERS_MAX:
        raise InvalidField(field="hello.journal_id", problem=f"must have 1 to {JOURNAL_CHARACTERS_MAX} characters")
    if len(greeting.operations) > OPERATIONS_MAX:
        raise InvalidField(field="hello.operations", problem=f"are more than {OPERATIONS_MAX}")
    if len(greeting.command_ids) > COMMAND_IDS_MAX:
        raise InvalidField(field="hello.command_ids", problem=f"are more than {COMMAND_IDS_MAX}")
    set_back.heard(hypervisor_id, greeting.journal_id, greeting.acknowledged_sequence, limits, now)
    own = installation.get()
    session_id = _register(hypervisor_id, greeting, protocol, now)
    ownership.begin(hypervisor_id, session_id, owner)
    presence.arrived(hypervisor_id, now)
    outbox.receive_all(hypervisor_id, greeting.command_ids, now)
    stored = _stored_sequence(hypervisor_id, greeting, now)
    closed = stored > greeting.last_sequence
    return Welcome(
        session_id=session_id,
        protocol_version=protocol,
        stored_sequence=stored,
        journal_closed=closed,
        verdicts=tuple((one, _verdict(hypervisor_id, one, own)) for one in greeting.operations),
        suspects=() if closed else _suspects(hypervisor_id, greeting),
        time=now,
        epoch=own.epoch,
    )


def judge(hypervisor_id: str, suspects: tuple[Suspect, ...], limits: Limits, now: datetime) -> list[str]:
    """End the suspects that are lost, and return their ids.

    All events up to Hello.last_sequence must be stored, and no command sent in this session yet: what runs by now was
    accepted before Hello, and Hello does not name it.
    """
    lost = []
    for suspect in suspects:
        job = jobs.find(suspect.stamp.job_id)
        if job is None or job.ended or job.stamp != suspect.stamp:
            continue
        if job.state == DISPATCHED and not suspect.received:
            continue  # it is not known to have arrived: it is sent again
        how = jobs.stopped(job.cancel_reason, job.batch_id) if job.cancel_time else End.failed(OperationLost())
        if jobs.end(job.job_id, how, now, fence=True):
            log.error("job lost by its hypervisor job_id=%s hypervisor_id=%s", job.job_id, hypervisor_id)
            lost.append(job.job_id)
            dispatch.after_end(job, limits, now)
    return lost


def _protocol(greeting: Greeting) -> int:
    if greeting.protocol_version < PROTOCOL_VERSION_MIN:
        raise Unsupported(
            problem=f"the agent speaks protocol {greeting.protocol_version}, this controller {PROTOCOL_VERSION_MIN}"
            f" to {PROTOCOL_VERSION}; update the agent"
        )
    return min(greeting.protocol_version, PROTOCOL_VERSION)


_REGISTER = """
    UPDATE hypervisor SET session_id = ?, session_count = session_count + 1, agent_version = ?, protocol_version = ?,
        boot_id = ?, capabilities = ?, clock_offset_microseconds = ?, last_contact_time = ?
    WHERE hypervisor_id = ?
"""


def _register(hypervisor_id: str, greeting: Greeting, protocol: int, now: datetime) -> str:
    """Make this the hypervisor's session, whoever had it before, and keep what the host says of itself."""
    session_id = new_id(now)
    offset = greeting.time - now if greeting.time else None
    if offset is not None and abs(offset) > CLOCK_OFFSET_WARNED:
        log.warning("clock off hypervisor_id=%s seconds=%d", hypervisor_id, offset.total_seconds())
    statement(
        _REGISTER,
        session_id,
        greeting.agent_version,
        protocol,
        greeting.boot_id,
        models.Hypervisor.capabilities.db_value(greeting.capabilities),
        None if offset is None else offset // timedelta(microseconds=1),
        to_microseconds(now),
        hypervisor_id,
    )
    return session_id


def _stored_sequence(hypervisor_id: str, greeting: Greeting, now: datetime) -> int:
    """Return what Welcome says of the journal; above its last sequence when it is to be given up."""
    stored, closed = events.open_journal(hypervisor_id, greeting.journal_id, now)
    if closed or stored > greeting.last_sequence:
        events.close_journal(hypervisor_id, greeting.journal_id, now)
        log.warning(
            "journal went back in time hypervisor_id=%s journal_id=%s stored=%d last=%d",
            hypervisor_id,
            greeting.journal_id,
            stored,
            greeting.last_sequence,
        )
        return max(stored, greeting.last_sequence + 1)
    return stored


def _verdict(hypervisor_id: str, operation: Stamp, own: Installation) -> Verdict:
    job = jobs.find(operation.job_id)
    if job is None or job.hypervisor_id != hypervisor_id:
        return "unknown"
    current = operation == job.stamp and operation.epoch == own.epoch
    return "keep" if current and not job.ended and job.cancel_time is None else "cancel"


def _suspects(hypervisor_id: str, greeting: Greeting) -> tuple[Suspect, ...]:
    named = {(one.job_id, one.attempt) for one in greeting.operations}
    held = set(greeting.command_ids)
    found = []
    for job in jobs.live(hypervisor_id=hypervisor_id, states=SENT):
        received = outbox.run_received(job.job_id, job.attempt)
        if (job.job_id, job.attempt) not in named and not (job.state == DISPATCHED and received in held):
            found.append(Suspect(job.stamp, bool(received)))
    return tuple(found)
