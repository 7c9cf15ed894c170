"""What each method demands of its caller: one table, and a method that is not in it is refused.

    listener   caller               methods
    public     anybody              health, reflection, Enroll (its one-time token is looked at by the method itself)
    public     bearer token         everything of backupmanager.v1, by scope
    agents'    client certificate   Session, RenewCertificate

A scope includes those below it: admin, operator, viewer. `portal` stands aside: a customer's token reaches only the
methods made for it, and what says of the caller itself. Permission is looked at before anything else of a request, so
that a refusal tells nothing about what exists.
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Scope: TypeAlias = Literal["admin", "operator", "viewer", "portal"]
Demand: TypeAlias = Literal["admin", "operator", "viewer", "portal", "any", "open", "certificate"]

_RANK = {"viewer": 1, "operator": 2, "admin": 3}


@dataclass(frozen=True, slots=True)
class Rule:
    """What a method demands, and for a method that changes something, where it names what it changes.

    `resource` is a path of fields into the request; where that is empty or unset, into the response (a new thing's id).
    A rule with either is audited, and one whose method changes the caller itself.
    """

    demand: Demand
    resource: str = ""
    made: str = ""
    changes_caller: bool = False

    @property
    def audited(self) -> bool:
        return bool(self.resource or self.made) or self.changes_caller


_V1 = "/backupmanager.v1."
_AGENT = "/backupmanager.agent.v1."

RULES: dict[str, Rule] = {
    f"{_V1}HypervisorService/CreateEnrollmentToken": Rule("admin", made="hypervisor_id"),
    f"{_V1}HypervisorService/ListHypervisors": Rule("viewer"),
    f"{_V1}HypervisorService/GetHypervisor": Rule("viewer"),
    f"{_V1}HypervisorService/ListDomains": Rule("viewer"),
    f"{_V1}HypervisorService/BanHypervisor": Rule("admin", "hypervisor_id"),
    f"{_V1}HypervisorService/UnbanHypervisor": Rule("admin", "hypervisor_id"),
    f"{_V1}ServerService/RegisterServer": Rule("operator", "external_id", made="server.server_id"),
    f"{_V1}ServerService/ListServers": Rule("viewer"),
    f"{_V1}ServerService/GetServer": Rule("viewer"),
    f"{_V1}ServerService/UpdateServer": Rule("operator", "server.server_id"),
    f"{_V1}ServerService/DeleteServer": Rule("operator", "server_id"),
    f"{_V1}ServerService/CommissionServer": Rule("operator", "server_id"),
    f"{_V1}ServerService/DecommissionServer": Rule("operator", "server_id"),
    f"{_V1}ServerService/SetServerLock": Rule("operator", "server_id"),
    f"{_V1}ServerService/ClearServerLock": Rule("operator", "server_id"),
    f"{_V1}ServerService/SetServerOwner": Rule("operator", "server_id"),
    f"{_V1}ServerService/SetServerPackage": Rule("operator", "server_id"),
    f"{_V1}ServerService/SetServerAccess": Rule("operator", "server_id"),
    f"{_V1}ServerService/BulkSetServerAccess": Rule("operator", "server_ids", made="group_id"),
    f"{_V1}PackageService/CreatePackage": Rule("operator", "name", made="package.package_id"),
    f"{_V1}PackageService/ListPackages": Rule("viewer"),
    f"{_V1}PackageService/GetPackage": Rule("viewer"),
    f"{_V1}PackageService/UpdatePackage": Rule("operator", "package.package_id"),
    f"{_V1}PackageService/DeletePackage": Rule("operator", "package_id"),
    f"{_V1}StorageService/CreateStorage": Rule("admin", "name", made="storage.storage_id"),
    f"{_V1}StorageService/ListStorages": Rule("viewer"),
    f"{_V1}StorageService/GetStorage": Rule("viewer"),
    f"{_V1}StorageService/UpdateStorage": Rule("admin", "storage.storage_id"),
    f"{_V1}StorageService/DeleteStorage": Rule("admin", "storage_id"),
    f"{_V1}StorageService/TestStorage": Rule("operator", "storage_id", made="job_id"),
    f"{_V1}StorageService/ReindexStorage": Rule("operator", "storage_id", made="job_id"),
    f"{_V1}SettingsService/GetSettings": Rule("viewer"),
    f"{_V1}SettingsService/UpdateSettings": Rule("admin", "update_mask.paths"),
    f"{_V1}RetentionService/GetRetentionPresets": Rule("viewer"),
    f"{_V1}RetentionService/GetRetentionVerdict": Rule("viewer"),
    f"{_V1}RetentionService/PreviewRetention": Rule("viewer"),
    f"{_V1}RetentionService/ListExpirations": Rule("viewer"),
    f"{_V1}PurgeService/PreviewPurge": Rule("operator"),
    f"{_V1}PurgeService/StartPurge": Rule("admin", "target.server_id", made="target_id"),
    f"{_V1}PurgeService/ListPurges": Rule("viewer"),
    f"{_V1}PurgeService/CancelPurge": Rule("operator", "purge_id"),
    f"{_V1}ScheduleService/CreateSchedule": Rule("admin", "hypervisor_id", made="schedule.schedule_id"),
    f"{_V1}ScheduleService/ListSchedules": Rule("viewer"),
    f"{_V1}ScheduleService/GetSchedule": Rule("viewer"),
    f"{_V1}ScheduleService/UpdateSchedule": Rule("admin", "schedule.schedule_id"),
    f"{_V1}ScheduleService/EnableSchedule": Rule("operator", "schedule_id"),
    f"{_V1}ScheduleService/DisableSchedule": Rule("operator", "schedule_id"),
    f"{_V1}ScheduleService/DeleteSchedule": Rule("admin", "schedule_id"),
    f"{_V1}ScheduleService/UndeleteSchedule": Rule("admin", "schedule_id"),
    f"{_V1}ScheduleService/CloneSchedule": Rule("admin", "schedule_id"),
    f"{_V1}ScheduleService/PreviewNextRuns": Rule("viewer"),
    f"{_V1}PresetService/ListPresets": Rule("viewer"),
    f"{_V1}PresetService/ApplyPreset": Rule("admin", "storage_id"),
    f"{_V1}StorageService/ProbeStorage": Rule("admin", "storage_id", made="job_id"),
    f"{_V1}StorageService/ReconcileStorage": Rule("operator", "storage_id", made="job_id"),
    f"{_V1}StorageService/ExportStorageKey": Rule("admin", "storage_id"),
    f"{_V1}StorageService/CheckStorage": Rule("operator", "storage_id", made="job_id"),
    f"{_V1}StorageService/ListStorageChecks": Rule("viewer"),
    f"{_V1}StorageService/ListServerUsages": Rule("viewer"),
    f"{_V1}OverviewService/GetOverview": Rule("viewer"),
    f"{_V1}OverviewService/DiagnoseServer": Rule("viewer"),
    f"{_V1}BackupService/ListBackupChains": Rule("viewer"),
    f"{_V1}BackupService/StartBackup": Rule("operator", "server_id", made="job_id"),
    f"{_V1}BackupService/ListBackups": Rule("viewer"),
    f"{_V1}BackupService/GetBackup": Rule("viewer"),
    f"{_V1}BackupService/PreviewRestore": Rule("operator"),
    f"{_V1}BackupService/StartRestore": Rule("operator", "backup_id", made="job_id"),
    f"{_V1}BackupService/StartVerify": Rule("operator", "backup_id", made="job_id"),
    f"{_V1}BackupService/CreateRestoreTicket": Rule("operator", "backup_id", made="job_id"),
    f"{_V1}TicketService/ListTickets": Rule("viewer"),
    f"{_V1}TicketService/RevokeTicket": Rule("operator", "ticket_id"),
    f"{_V1}BackupService/PreviewDelete": Rule("operator"),
    f"{_V1}BackupService/StartDelete": Rule("admin", "backup_ids", made="job_id"),
    f"{_V1}BatchService/ListBatches": Rule("viewer"),
    f"{_V1}BatchService/GetBatch": Rule("viewer"),
    f"{_V1}BatchService/StartBatch": Rule("operator", "schedule_id", made="batch.batch_id"),
    f"{_V1}BatchService/CancelBatch": Rule("operator", "batch_id"),
    f"{_V1}BatchService/RetryBatch": Rule("operator", "batch_id", made="batch.batch_id"),
    f"{_V1}JobService/ListJobs": Rule("viewer"),
    f"{_V1}JobService/GetJob": Rule("viewer"),
    f"{_V1}JobService/WatchJob": Rule("viewer"),
    f"{_V1}JobService/PollJob": Rule("viewer"),
    f"{_V1}JobService/CancelJob": Rule("operator", "job_id"),
    f"{_V1}JobService/ListJobLogEntries": Rule("viewer"),
    f"{_V1}EventService/WatchEvents": Rule("viewer"),
    f"{_V1}EventService/PollEvents": Rule("viewer"),
    f"{_V1}SystemLogService/ListSystemLogEntries": Rule("viewer"),
    f"{_V1}AuditService/ListAuditEntries": Rule("admin"),
    f"{_V1}WebhookService/CreateWebhook": Rule("admin", "name", made="webhook.webhook_id"),
    f"{_V1}WebhookService/ListWebhooks": Rule("admin"),
    f"{_V1}WebhookService/GetWebhook": Rule("admin"),
    f"{_V1}WebhookService/UpdateWebhook": Rule("admin", "webhook.webhook_id"),
    f"{_V1}WebhookService/DeleteWebhook": Rule("admin", "webhook_id"),
    f"{_V1}WebhookService/TestWebhook": Rule("admin", "webhook_id"),
    f"{_V1}WebhookService/ListWebhookDeliveries": Rule("admin"),
    f"{_V1}WebhookService/ResendWebhookDeliveries": Rule("admin", "webhook_id"),
    f"{_V1}AccessTokenService/CreateAccessToken": Rule("admin", "name", made="access_token.access_token_id"),
    f"{_V1}AccessTokenService/CreatePortalToken": Rule("operator", "server_ids", made="access_token.access_token_id"),
    f"{_V1}AccessTokenService/ListAccessTokens": Rule("admin"),
    f"{_V1}AccessTokenService/RevokeAccessToken": Rule("admin", "access_token_id"),
    f"{_V1}SystemService/GetVersion": Rule("any"),
    f"{_V1}SystemService/GetCapabilities": Rule("any"),
    f"{_V1}SystemService/GetRecovery": Rule("viewer"),
    f"{_V1}PortalService/ListPortalServers": Rule("portal"),
    f"{_V1}PortalService/GetPortalServer": Rule("portal"),
    f"{_V1}PortalService/ListPortalDrives": Rule("portal"),
    f"{_V1}PortalService/ListPortalBackups": Rule("portal"),
    f"{_V1}PortalService/StartPortalBackup": Rule("portal", "server_id", made="operation.operation_id"),
    f"{_V1}PortalService/PreviewPortalRestore": Rule("portal"),
    f"{_V1}PortalService/StartPortalRestore": Rule("portal", "server_id", made="operation.operation_id"),
    f"{_V1}PortalService/ListPortalOperations": Rule("portal"),
    f"{_V1}PortalService/GetPortalOperation": Rule("portal"),
    f"{_V1}PortalService/WatchPortalOperation": Rule("portal"),
    f"{_V1}PortalService/PollPortalOperation": Rule("portal"),
    f"{_AGENT}EnrollmentService/Enroll": Rule("open", made="hypervisor_id"),
    f"{_AGENT}SessionService/Session": Rule("certificate"),
    f"{_AGENT}SessionService/RenewCertificate": Rule("certificate", changes_caller=True),
    "/grpc.health.v1.Health/Check": Rule("open"),
    "/grpc.health.v1.Health/List": Rule("open"),
    "/grpc.health.v1.Health/Watch": Rule("open"),
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo": Rule("open"),
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo": Rule("open"),
}


def allows(scope: Scope, demand: Demand) -> bool:
    """Tell whether a token of `scope` satisfies a method that demands `demand`."""
    if demand in {"any", "open"}:
        return True
    if demand == "portal":
        return scope == "portal"  # nobody else: the others have services that hide nothing
    return _RANK.get(scope, 0) >= _RANK.get(demand, len(_RANK) + 1)
