"""What agents say, as our own dataclasses: proto messages of a session end here.

What a job brought (`JobResult`), its progress, disks and capabilities stay in the JSON form of their message, which is how
they are kept and given out again; what rules act upon becomes typed.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeAlias

from google.protobuf import json_format
from google.protobuf.descriptor import EnumDescriptor
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from clients.gen.backupmanager.agent.v1 import event_pb2, session_service_pb2
from clients.gen.backupmanager.v1 import disk_pb2, failure_pb2, hypervisor_pb2, job_pb2
from controller.agents.outbox import Stamp
from controller.backups import BackupRecord, DiskBackup
from controller.hypervisors import Domain
from controller.job_log import Line
from controller.jobs import Failure

MESSAGE_CHARACTERS_MAX = 4096
WARNINGS_MAX = 1000


@dataclass(frozen=True, slots=True)
class Accepted:
    """The agent took the command up."""


@dataclass(frozen=True, slots=True)
class Rejected:
    """The agent will not do it."""

    failure: Failure


@dataclass(frozen=True, slots=True)
class Records:
    """What a reindex found."""

    records: tuple[BackupRecord, ...]


@dataclass(frozen=True, slots=True)
class Finished:
    """The work ended. `result` is the JSON form of JobResult, or None."""

    state: str
    failure: Failure | None = None
    warnings: tuple[str, ...] = ()
    result: dict[str, Any] | None = None
    record: BackupRecord | None = None


Said: TypeAlias = Accepted | Rejected | Records | Finished


@dataclass(frozen=True, slots=True)
class AgentEvent:
    """A durable event. `said` is None for one of a kind that this version does not know; `body` is its JSON form."""

    sequence: int
    stamp: Stamp
    time: datetime | None
    kind: str
    said: Said | None
    body: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Greeting:
    """A Hello. `operations` are those in flight, `command_ids` the commands that lie in the journal."""

    agent_version: str
    protocol_version: int
    boot_id: str
    journal_id: str
    last_sequence: int
    operations: tuple[Stamp, ...]
    command_ids: tuple[str, ...]
    capabilities: dict[str, Any]
    time: datetime | None


def event(message: event_pb2.Event) -> AgentEvent:
    kind = message.WhichOneof("event") or ""
    return AgentEvent(
        sequence=message.sequence,
        stamp=Stamp(message.job_id, message.attempt, message.generation, message.epoch),
        time=instant(message.time) if message.HasField("time") else None,
        kind=kind,
        said=_said(kind, message),
        body=to_json(getattr(message, kind)) if kind else {},
    )


def greeting(message: session_service_pb2.Hello) -> Greeting:
    return Greeting(
        agent_version=clean(message.agent_version),
        protocol_version=message.protocol_version,
        boot_id=clean(message.boot_id),
        journal_id=clean(message.journal_id),
        last_sequence=message.last_sequence,
        operations=tuple(Stamp(one.job_id, one.attempt, one.generation, one.epoch) for one in message.operations),
        command_ids=tuple(message.command_ids),
        capabilities=to_json(message.capabilities),
        time=instant(message.time) if message.HasField("time") else None,
    )


def domain(message: hypervisor_pb2.Domain) -> Domain:
    return Domain(
        domain_uuid=clean(message.domain_uuid),
        name=clean(message.name),
        state=word(hypervisor_pb2.DomainState.DESCRIPTOR, message.state),
        guest_agent=word(hypervisor_pb2.GuestAgentState.DESCRIPTOR, message.guest_agent),
        disks=tuple(to_json(disk) for disk in message.disks),
    )


def log_line(message: event_pb2.JobLogLine, now: datetime) -> Line:
    entry = message.entry
    time = instant(entry.time) if entry.HasField("time") else now
    return Line(message.job_id, message.attempt, entry.sequence, time, clean(entry.level), clean(entry.message))


def failure(message: failure_pb2.Failure) -> Failure:
    text = message.message[:MESSAGE_CHARACTERS_MAX]
    return Failure(message.reason or "INTERNAL", text, dict(message.metadata), message.step)


def to_json(message: Message) -> dict[str, Any]:
    """Return the JSON form in which messages are kept."""
    return json_format.MessageToDict(message, preserving_proto_field_name=True)


def clean(text: str) -> str:
    """Return text without NUL, which PostgreSQL does not take."""
    return text.replace("\0", "\ufffd")


def instant(value: Timestamp) -> datetime:
    """Return an instant; one that no calendar has (a broken clock) becomes the nearest that one has."""
    try:
        return value.ToDatetime(tzinfo=UTC)
    except (ValueError, OverflowError):
        return datetime.max.replace(tzinfo=UTC) if value.seconds > 0 else datetime.min.replace(tzinfo=UTC)


def word(kind: EnumDescriptor, number: int) -> str:
    """Return an enum value's word, such as "shut_off"; "" for 0 and for one that a newer agent has."""
    value = kind.values_by_number.get(number)
    prefix = kind.values_by_number[0].name.removesuffix("UNSPECIFIED")
    return value.name.removeprefix(prefix).lower() if value is not None and number else ""


def _said(kind: str, message: event_pb2.Event) -> Said | None:
    match kind:
        case "accepted":
            return Accepted()
        case "rejected":
            return Rejected(failure(message.rejected.failure))
        case "records":
            return Records(tuple(_record(one) for one in message.records.backups))
        case "finished":
            return _finished(message.finished)
    return None


def _finished(message: event_pb2.OperationFinished) -> Finished:
    return Finished(
        state=word(job_pb2.JobState.DESCRIPTOR, message.state),
        failure=failure(message.failure) if message.HasField("failure") else None,
        warnings=tuple(text[:MESSAGE_CHARACTERS_MAX] for text in message.warnings[:WARNINGS_MAX]),
        result=to_json(message.result) if message.HasField("result") else None,
        record=_record(message.record) if message.HasField("record") else None,
    )


def _record(message: event_pb2.BackupRecord) -> BackupRecord:
    backup = message.backup
    return BackupRecord(
        backup_id=backup.backup_id,
        server_id=backup.server_id,
        job_id=backup.job_id,
        create_time=instant(backup.create_time),
        disks=tuple(_disk(disk) for disk in backup.disks),
        skipped_disks=tuple(to_json(one) for one in backup.skipped_disks),
        consistency=word(disk_pb2.ConsistencyReached.DESCRIPTOR, backup.consistency),
        encrypted=backup.encrypted,
        stored_bytes=backup.stored_bytes,
        path=clean(backup.path),
        domain_name=clean(backup.domain_name),
        domain_uuid=clean(message.domain_uuid),
        manifest_digest=message.manifest_digest,
        needed_backup_ids=tuple(message.needed_backup_ids),
        unreadable_disks=tuple(message.unreadable_disks),
    )


def _disk(message: disk_pb2.DiskBackup) -> DiskBackup:
    return DiskBackup(
        disk=message.disk,
        type=word(disk_pb2.BackupType.DESCRIPTOR, message.type),
        chain_id=message.chain_id,
        parent_backup_id=message.parent_backup_id,
        size_bytes=message.size_bytes,
        data_bytes=message.data_bytes,
        stored_bytes=message.stored_bytes,
        sha256=message.sha256,
        fallback_reason=message.fallback_reason,
    )
