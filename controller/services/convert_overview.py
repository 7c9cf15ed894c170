"""Overviews and diagnoses as messages; see `convert.py` for everything else."""

from dataclasses import asdict

from clients.gen.backupmanager.v1 import overview_pb2, overview_service_pb2
from controller.batches import Batch
from controller.diagnosis import Diagnosis
from controller.failing import ServerFailure
from controller.overview import Error, Overview, PendingPurge, StorageLine, Upcoming
from controller.rules.states import FAILED, WELL
from controller.services import convert, convert_storages


def overview(record: Overview) -> overview_pb2.Overview:
    names = record.names
    return overview_pb2.Overview(
        time=convert.time(record.time),
        counts=overview_pb2.OverviewCounts(**asdict(record.counts)),
        recent_batches=[_batch(one, record) for one in record.batches],
        upcoming=[_upcoming(one, record) for one in record.upcoming],
        recent_errors=[_error(one, record) for one in record.errors],
        failing_servers=[_failing(one, record) for one in record.failing],
        unprotected_servers=[
            overview_pb2.UnprotectedServer(
                server_id=one.server_id,
                server_name=one.server_name,
                hypervisor_name=names.hypervisors.get(one.hypervisor_id, ""),
                create_time=convert.time(one.create_time),
            )
            for one in record.unprotected
        ],
        pending_purges=[_purge(one) for one in record.purges],
        storages=[_storage(one) for one in record.storages],
        paused=record.paused,
        discrepancies=[
            overview_pb2.Discrepancy(
                server_id=one.server_id,
                server_name=names.servers.get(one.server_id, ""),
                storage_id=one.storage_id,
                storage_name=names.storages.get(one.storage_id, ""),
                missing_count=one.missing_count,
                damaged_count=one.damaged_count,
                adopted_count=one.adopted_count,
            )
            for one in record.discrepancies
        ],
    )


def diagnosis(record: Diagnosis) -> overview_service_pb2.DiagnoseServerResponse:
    return overview_service_pb2.DiagnoseServerResponse(
        server_id=record.server_id,
        server_name=record.server_name,
        summary=record.summary,
        will_be_backed_up=record.will_be_backed_up,
        next_time=convert.time(record.next_time),
        findings=[
            overview_pb2.Finding(
                step=one.step,
                state=convert.enum_number(overview_pb2.FindingState.DESCRIPTOR, one.state),
                sentence=one.sentence,
                remedy=one.remedy,
                reason=one.reason,
                facts=dict(one.facts),
            )
            for one in record.findings
        ],
    )


def _batch(one: Batch, record: Overview) -> overview_pb2.BatchSummary:
    jobs = record.job_states.get(one.batch_id, {})
    return overview_pb2.BatchSummary(
        batch_id=one.batch_id,
        state=one.state,
        hypervisor_id=one.hypervisor_id,
        hypervisor_name=record.names.hypervisors.get(one.hypervisor_id, ""),
        storage_name=record.names.storages.get(one.storage_id, ""),
        server_count=sum(jobs.values()),
        completed_count=sum(jobs.get(word, 0) for word in WELL),
        failed_count=jobs.get(FAILED, 0),
        create_time=convert.time(one.create_time),
        start_time=convert.time(one.start_time),
        end_time=convert.time(one.end_time),
    )


def _upcoming(one: Upcoming, record: Overview) -> overview_pb2.UpcomingRun:
    return overview_pb2.UpcomingRun(
        schedule_id=one.schedule_id,
        hypervisor_id=one.hypervisor_id,
        hypervisor_name=record.names.hypervisors.get(one.hypervisor_id, ""),
        storage_name=record.names.storages.get(one.storage_id, ""),
        due_time=convert.time(one.due_time),
        overdue=one.overdue,
        online=one.hypervisor_id in record.online,
    )


def _error(one: Error, record: Overview) -> overview_pb2.RecentError:
    return overview_pb2.RecentError(
        job_id=one.job_id,
        type=one.type,
        time=convert.time(one.time),
        server_id=one.server_id,
        server_name=record.names.servers.get(one.server_id, ""),
        storage_name=record.names.storages.get(one.storage_id, ""),
        hypervisor_name=record.names.hypervisors.get(one.hypervisor_id, ""),
        failure=convert.failure_from_json(one.failure),
    )


def _failing(one: ServerFailure, record: Overview) -> overview_pb2.FailingServer:
    return overview_pb2.FailingServer(
        server_id=one.server_id,
        server_name=record.names.servers.get(one.server_id, ""),
        hypervisor_name=record.names.hypervisors.get(one.hypervisor_id, ""),
        failure_count=one.failure_count,
        first_time=convert.time(one.first_time),
        last_time=convert.time(one.last_time),
        job_id=one.job_id,
        failure=convert.failure_from_json(one.failure),
        last_backup_time=convert.time(record.last_backup_times.get(one.server_id)),
    )


def _purge(one: PendingPurge) -> overview_pb2.PendingPurge:
    return overview_pb2.PendingPurge(
        server_id=one.server_id,
        server_name=one.server_name,
        delete_time=convert.time(one.delete_time),
        purge_time=convert.time(one.purge_time),
        backup_count=one.backup_count,
        stored_bytes=one.stored_bytes,
    )


def _storage(one: StorageLine) -> overview_pb2.StorageSummary:
    return overview_pb2.StorageSummary(
        storage_id=one.storage_id,
        name=one.name,
        type=one.type,
        enabled=one.enabled,
        read_only=one.read_only,
        health=convert_storages.storage_health(one.health),
        usage=convert_storages.storage_usage(one.total, one.health),
        backup_count=one.total.backup_count,
        last_backup_time=convert.time(one.total.last_backup_time),
    )
