"""What happened and who is told: events, logs and webhooks as messages."""

from clients.gen.backupmanager.v1 import (
    audit_pb2,
    event_pb2,
    system_log_pb2,
    webhook_pb2,
)
from controller.audit_log import AuditEntry
from controller.deliveries import Delivery
from controller.events import Event
from controller.services import convert
from controller.system_log import LogEntry as SystemLogEntry
from controller.webhooks import Webhook


def event(record: Event) -> event_pb2.Event:
    return event_pb2.Event(
        sequence=record.sequence,
        time=convert.time(record.time),
        kind=record.kind,
        job_id=record.job_id,
        server_id=record.server_id,
        storage_id=record.storage_id,
        hypervisor_id=record.hypervisor_id,
        schedule_id=record.schedule_id,
        batch_id=record.batch_id,
        facts=record.facts,
    )


def system_log_entry(record: SystemLogEntry) -> system_log_pb2.SystemLogEntry:
    return system_log_pb2.SystemLogEntry(
        sequence=record.sequence,
        time=convert.time(record.time),
        level=convert.enum_number(system_log_pb2.LogLevel.DESCRIPTOR, record.level),
        source=convert.enum_number(system_log_pb2.LogSource.DESCRIPTOR, record.source),
        message=record.message,
        schedule_id=record.schedule_id,
        storage_id=record.storage_id,
        hypervisor_id=record.hypervisor_id,
        server_id=record.server_id,
        batch_id=record.batch_id,
        job_id=record.job_id,
    )


def audit_entry(record: AuditEntry) -> audit_pb2.AuditEntry:
    return audit_pb2.AuditEntry(
        sequence=record.sequence,
        time=convert.time(record.time),
        access_token_id=record.access_token_id,
        caller=record.caller,
        method=record.method,
        resource=record.resource,
        made=record.made,
        outcome=record.outcome,
        peer=record.peer,
    )


def webhook(record: Webhook) -> webhook_pb2.Webhook:
    return webhook_pb2.Webhook(
        webhook_id=record.webhook_id,
        name=record.name,
        url=record.url,
        kinds=record.kinds,
        ca_certificate=record.ca_certificate,
        enabled=record.enabled,
        secret_fingerprint=record.secret_fingerprint,
        create_time=convert.time(record.create_time),
        update_time=convert.time(record.update_time),
        success_time=convert.time(record.success_time),
        failure_time=convert.time(record.failure_time),
        failure=record.failure,
        delivered_count=record.delivered_count,
        waiting_count=record.waiting_count,
        dead_count=record.dead_count,
        missed_count=record.missed_count,
        hold_time=convert.time(record.hold_time),
        previous_secret_expire_time=convert.time(record.previous_secret_expire_time),
        etag=record.etag,
    )


def webhook_delivery(record: Delivery) -> webhook_pb2.WebhookDelivery:
    waiting = record.state == "waiting"
    return webhook_pb2.WebhookDelivery(
        delivery_id=record.delivery_id,
        webhook_id=record.webhook_id,
        sequence=record.sequence,
        kind=record.kind,
        state=convert.enum_number(webhook_pb2.WebhookDeliveryState.DESCRIPTOR, record.state),
        attempts=record.attempts,
        create_time=convert.time(record.create_time),
        attempt_time=convert.time(record.attempt_time),
        due_time=convert.time(record.due_time) if waiting else None,
        failure=record.failure,
    )
