"""What agents say, as our own dataclasses: proto messages of a session end here.

What a job brought (`JobResult`), its progress, disks and capabilities stay in the JSON form of their message, which is how
they are kept and given out again; what rules act upon becomes typed.
"""

import base64
import json
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
from engine.units import KIB

MESSAGE_CHARACTERS_MAX = 4096
WARNINGS_MAX = 100
WORD_CHARACTERS_MAX = 128  # ids, reasons, names of stages and of disks
PATH_CHARACTERS_MAX = 1024
METADATA_MAX = 32
DISKS_MAX = 64
SENTENCE_CHARACTERS_MAX = 1024
JSON_TEXT_MAX, JSON_LIST_MAX, JSON_BYTES_MAX = 4 * KIB, 5000, 256 * KIB
_HOST_KEY_CHARACTERS_MAX = 4 * KIB


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
    acknowledged_sequence: int = 0


def event(message: event_pb2.Event) -> AgentEvent:
    kind = message.WhichOneof("event") or ""
    return AgentEvent(
        sequence=message.sequence,
        stamp=Stamp(short(message.job_id), message.attempt, message.generation, message.epoch),
        time=instant(message.time) if message.HasField("time") else None,
        kind=kind,
        said=_said(kind, message),
        body=to_json(getattr(message, kind)) if kind else {},
    )


def greeting(message: session_service_pb2.Hello) -> Greeting:
    return Greeting(
        agent_version=short(message.agent_version),
        protocol_version=message.protocol_version,
        boot_id=short(message.boot_id),
        journal_id=clean(message.journal_id),  # not cut: it is refused when it is too long
        last_sequence=message.last_sequence,
        acknowledged_sequence=message.acknowledged_sequence,
        operations=tuple(Stamp(one.job_id, one.attempt, one.generation, one.epoch) for one in message.operations),
        command_ids=tuple(message.command_ids),
        capabilities=to_json(message.capabilities),
        time=instant(message.time) if message.HasField("time") else None,
    )


def domain(message: hypervisor_pb2.Domain) -> Domain:
    return Domain(
        domain_uuid=short(message.domain_uuid),
        name=short(message.name, PATH_CHARACTERS_MAX),
        state=word(hypervisor_pb2.DomainState.DESCRIPTOR, message.state),
        guest_agent=word(hypervisor_pb2.GuestAgentState.DESCRIPTOR, message.guest_agent),
        disks=tuple(_domain_disk(disk) for disk in message.disks[:DISKS_MAX]),
    )


def log_line(message: event_pb2.JobLogLine, now: datetime) -> Line:
    entry = message.entry
    time = instant(entry.time) if entry.HasField("time") else now
    return Line(message.job_id, message.attempt, entry.sequence, time, short(entry.level), clean(entry.message))


def failure(message: failure_pb2.Failure) -> Failure:
    names = sorted(message.metadata)[:METADATA_MAX]
    return Failure(
        reason=short(message.reason) or "INTERNAL",
        message=short(message.message, MESSAGE_CHARACTERS_MAX),
        metadata={short(name): short(message.metadata[name], PATH_CHARACTERS_MAX) for name in names},
        step=short(message.step),
    )


def to_json(message: Message) -> dict[str, Any]:
    """Return the JSON form in which messages are kept, its texts and lists cut so that it fits a page with others.

    Lists that are still too long together lose their ends: what counts stands in fields of its own.
    """
    value: dict[str, Any] = json_format.MessageToDict(message, preserving_proto_field_name=True)
    count = JSON_LIST_MAX
    cut: dict[str, Any] = _cut(value, count)
    while len(json.dumps(cut)) > JSON_BYTES_MAX and count:
        count //= 2
        cut = _cut(value, count)
    return cut


def host_key(text: str) -> str:
    """Return an SSH host key as `type base64`; "" for what is none, so that nobody trusts it."""
    kind, _, rest = text.strip().partition(" ")
    body = rest.split(" ", 1)[0]
    if len(text) > _HOST_KEY_CHARACTERS_MAX or not text.isascii() or not text.isprintable():
        return ""
    try:
        raw = base64.b64decode(body, validate=True)
    except ValueError:
        return ""
    name = kind.encode()
    return f"{kind} {body}" if kind and raw.startswith(len(name).to_bytes(4, "big") + name) else ""


def clean(text: str) -> str:
    """Return text without NUL, which PostgreSQL does not take."""
    return text.replace("\0", "\ufffd")


def short(text: str, limit: int = WORD_CHARACTERS_MAX) -> str:
    """Return a clean text of at most `limit` characters."""
    return clean(text[:limit])


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
        warnings=tuple(short(text, SENTENCE_CHARACTERS_MAX) for text in message.warnings[:WARNINGS_MAX]),
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
        disks=tuple(_disk(disk) for disk in backup.disks[:DISKS_MAX]),
        skipped_disks=tuple(_skipped(one) for one in backup.skipped_disks[:DISKS_MAX]),
        consistency=word(disk_pb2.ConsistencyReached.DESCRIPTOR, backup.consistency),
        encrypted=backup.encrypted,
        stored_bytes=backup.stored_bytes,
        path=short(backup.path, PATH_CHARACTERS_MAX),
        domain_name=short(backup.domain_name, PATH_CHARACTERS_MAX),
        domain_uuid=short(message.domain_uuid),
        manifest_digest=short(message.manifest_digest),
        needed_backup_ids=tuple(message.needed_backup_ids),
        unreadable_disks=tuple(message.unreadable_disks),
    )


def _disk(message: disk_pb2.DiskBackup) -> DiskBackup:
    return DiskBackup(
        disk=short(message.disk),
        type=word(disk_pb2.BackupType.DESCRIPTOR, message.type),
        chain_id=short(message.chain_id),
        parent_backup_id=short(message.parent_backup_id),
        size_bytes=message.size_bytes,
        data_bytes=message.data_bytes,
        stored_bytes=message.stored_bytes,
        sha256=short(message.sha256),
        fallback_reason=short(message.fallback_reason, SENTENCE_CHARACTERS_MAX),
    )


def _domain_disk(message: disk_pb2.Disk) -> dict[str, Any]:
    cut = disk_pb2.Disk(
        disk=short(message.disk),
        format=short(message.format),
        size_bytes=message.size_bytes,
        path=short(message.path, PATH_CHARACTERS_MAX),
        unsupported_reason=short(message.unsupported_reason),
    )
    return to_json(cut)


def _skipped(message: disk_pb2.SkippedDisk) -> dict[str, Any]:
    cut = disk_pb2.SkippedDisk(disk=short(message.disk))
    why = failure(message.failure)
    cut.failure.reason, cut.failure.message, cut.failure.step = (
        why.reason,
        short(why.message, SENTENCE_CHARACTERS_MAX),
        why.step,
    )
    return to_json(cut)


def _cut(value: Any, count: int) -> Any:
    """Return a JSON value whose texts and lists are cut, lists to `count`."""
    match value:
        case str():
            return short(value, JSON_TEXT_MAX)
        case list():
            return [_cut(one, count) for one in value[:count]]
        case dict():
            return {short(name): _cut(value[name], count) for name in list(value)[:JSON_LIST_MAX]}
    return value
