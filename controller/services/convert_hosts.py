"""Hypervisors, their domains, servers and packages as messages."""

from datetime import datetime
from typing import Any

from clients.gen.backupmanager.v1 import (
    access_level_pb2,
    disk_pb2,
    hypervisor_pb2,
    package_pb2,
    server_pb2,
)
from controller.hypervisors import Domain, Hypervisor
from controller.packages import Package
from controller.rules.access import Lock
from controller.rules.access import Resolved as ResolvedAccess
from controller.servers import Server
from controller.services import convert


def hypervisor(record: Hypervisor) -> hypervisor_pb2.Hypervisor:
    return hypervisor_pb2.Hypervisor(
        hypervisor_id=record.hypervisor_id,
        name=record.name,
        state=convert.enum_number(hypervisor_pb2.HypervisorState.DESCRIPTOR, record.state),
        agent_version=record.agent_version,
        last_contact_time=convert.time(record.last_contact_time),
        create_time=convert.time(record.create_time),
        certificate_expire_time=convert.time(record.certificate_expire_time),
        clock_offset=convert.span(record.clock_offset),
        capabilities=convert.from_json(hypervisor_pb2.HypervisorCapabilities, record.capabilities),
        scratch_free_bytes=record.scratch_free_bytes,
        load=record.load,
    )


def domain(record: Domain) -> hypervisor_pb2.Domain:
    return hypervisor_pb2.Domain(
        domain_uuid=record.domain_uuid,
        name=record.name,
        state=convert.enum_number(hypervisor_pb2.DomainState.DESCRIPTOR, record.state),
        disks=convert.all_from_json(disk_pb2.Disk, record.disks),
        guest_agent=convert.enum_number(hypervisor_pb2.GuestAgentState.DESCRIPTOR, record.guest_agent),
        server_id=record.server_id,
    )


def server(record: Server, access: ResolvedAccess, now: datetime) -> server_pb2.Server:
    lock = record.lock if record.lock is not None and record.lock.holds(now) else None
    return server_pb2.Server(
        server_id=record.server_id,
        external_id=record.external_id,
        name=record.name,
        hypervisor_id=record.hypervisor_id,
        domain_uuid=record.domain_uuid,
        domain_name=record.domain_name,
        domain_state=convert.enum_number(hypervisor_pb2.DomainState.DESCRIPTOR, record.domain_state),
        disks=convert.all_from_json(disk_pb2.Disk, record.disks),
        guest_agent=convert.enum_number(hypervisor_pb2.GuestAgentState.DESCRIPTOR, record.guest_agent),
        state=convert.enum_number(server_pb2.ServerState.DESCRIPTOR, record.state),
        busy_job_id=record.busy_job_id,
        create_time=convert.time(record.create_time),
        delete_time=convert.time(record.delete_time),
        last_backup_time=convert.time(record.last_backup_time),
        etag=record.etag,
        package_id=record.package_id,
        access=server_pb2.ServerAccess(
            level=_level(access.level),
            origin=convert.enum_number(server_pb2.AccessOrigin.DESCRIPTOR, access.origin),
            override=_level(record.access_override),
        ),
        commissioned=record.commissioned,
        owner=record.owner,
        owner_time=convert.time(record.owner_time),
        history_time=convert.time(record.history_time),
        lock=None if lock is None else _lock(lock),
        rival_hypervisor_ids=record.rival_hypervisor_ids,
        domain_gone=record.place_state == "gone",
    )


def package(record: Package) -> package_pb2.Package:
    return package_pb2.Package(
        package_id=record.package_id,
        name=record.name,
        default_level=_level(record.default_level),
        server_count=record.server_count,
        create_time=convert.time(record.create_time),
        update_time=convert.time(record.update_time),
        etag=record.etag,
    )


def _lock(record: Lock) -> server_pb2.ServerLock:
    return server_pb2.ServerLock(
        reason=record.reason, lock_time=convert.time(record.lock_time), expire_time=convert.time(record.expire_time)
    )


def _level(word: str) -> Any:
    return convert.enum_number(access_level_pb2.AccessLevel.DESCRIPTOR, word)
