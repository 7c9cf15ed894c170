"""Every way the controller says no, as a type with facts. What the hypervisor, the storage or the format has to say stands
in `engine/errors.py`; the reasons of both are the values of `backupmanager.v1.ErrorReason`.
"""

from engine.errors import BackupManagerError


class CannotStart(Exception):
    """The controller cannot start here; the text says why and what helps. For the command line, not for calls."""


class ControllerError(BackupManagerError):
    """Root of what the controller raises. Servicers let it pass; one interceptor makes a status of it."""


class InvalidField(ControllerError):
    """A field of a request is missing or wrong."""

    reason = "INVALID_FIELD"
    template = "{field}: {problem}"


class Unauthenticated(ControllerError):
    reason = "UNAUTHENTICATED"
    template = "{problem}"


class PermissionDenied(ControllerError):
    reason = "PERMISSION_DENIED"
    template = "{problem}"


class InvalidPageToken(ControllerError):
    reason = "INVALID_PAGE_TOKEN"
    template = "the page token is not one of this list"


class RequestIdReused(ControllerError):
    """The id was used with another body; the same body would have been answered with the same job."""

    reason = "REQUEST_ID_REUSED"
    template = "request_id {request_id} was used for job {job_id} with another body"
    remedy = "Use a new request_id for a new request"


class EtagMismatch(ControllerError):
    reason = "ETAG_MISMATCH"
    template = "the resource has changed, its etag is {etag}"
    remedy = "Read it again"


class ConfirmationStale(ControllerError):
    reason = "CONFIRMATION_STALE"
    template = "the confirmation does not belong to what would happen now"
    remedy = "Ask for a new preview"


class Internal(ControllerError):
    reason = "INTERNAL"
    template = "a fault of our own; the controller's log has error_id {error_id}"


class ShuttingDown(ControllerError):
    reason = "SHUTTING_DOWN"
    template = "the controller is stopping or starting"


class Unsupported(ControllerError):
    reason = "UNSUPPORTED"
    template = "{problem}"


# ---- hypervisors --------------------------------------------------------------------------------------------------------


class HypervisorNotFound(ControllerError):
    reason = "HYPERVISOR_NOT_FOUND"
    template = "no hypervisor {hypervisor_id}"


class HypervisorUnreachable(ControllerError):
    """No agent is connected. `last_contact_time` is ISO 8601, "never" for one that was never heard of."""

    reason = "HYPERVISOR_UNREACHABLE"
    template = "the agent of hypervisor {hypervisor_id} is not connected, last contact {last_contact_time}"
    remedy = "Check that bm-agent runs there and reaches this controller"


class HypervisorBanned(ControllerError):
    reason = "HYPERVISOR_BANNED"
    template = "hypervisor {hypervisor_id} is banned"
    remedy = "Lift the ban, or choose another hypervisor"


class EnrollmentTokenInvalid(ControllerError):
    reason = "ENROLLMENT_TOKEN_INVALID"
    template = "the enrollment token is unknown, used or expired"
    remedy = "Make a new one"


class HypervisorExists(ControllerError):
    reason = "HYPERVISOR_EXISTS"
    template = "there is a hypervisor {name} already"
    remedy = "Ask for a renewal to enroll it again"


class ClockSkew(ControllerError):
    reason = "CLOCK_SKEW"
    template = "the clock of hypervisor {hypervisor_id} is off by {offset_seconds} s"
    remedy = "Set its clock; backups and deletes are refused until then"


# ---- servers ------------------------------------------------------------------------------------------------------------


class ServerNotFound(ControllerError):
    reason = "SERVER_NOT_FOUND"
    template = "no server {server_id}"


class ServerExists(ControllerError):
    reason = "SERVER_EXISTS"
    template = "server {server_id} has this external id or domain already"


class ServerBusy(ControllerError):
    """Another job works on the server, or waits to. Wait for that job, or cancel it."""

    reason = "VM_BUSY"
    template = "server {server_id} is busy with job {job_id}"
    remedy = "Wait for that job, or cancel it"


class ServerLocked(ControllerError):
    reason = "VM_LOCKED"
    template = "server {server_id} is locked: {lock_reason}"
    remedy = "Wait for the end of the lock, or take it away: bmctl server unlock SERVER"


class ServerDeleted(ControllerError):
    reason = "SERVER_DELETED"
    template = "server {server_id} is deleted"
    remedy = "Register it again, or restore to files"


class ServerConflict(ControllerError):
    """Two claims on one server: a backup of the wrong one, or a restore over it, could not be undone."""

    reason = "SERVER_CONFLICT"
    template = "server {server_id} is claimed by more than one hypervisor: {hypervisor_ids}"
    remedy = "Remove its domain from all but one, or say where it lives: bmctl server update SERVER --hypervisor NAME"


class AccessLevelDenied(ControllerError):
    reason = "ACCESS_LEVEL_DENIED"
    template = "the access level of server {server_id} does not include this: {level}"
    remedy = "Change its level; an administrator may override it once, which is logged"


# ---- packages -----------------------------------------------------------------------------------------------------------


class PackageNotFound(ControllerError):
    reason = "PACKAGE_NOT_FOUND"
    template = "no package {package_id}"


class PackageExists(ControllerError):
    reason = "PACKAGE_EXISTS"
    template = "there is a package {name} already"


class PackageInUse(ControllerError):
    reason = "PACKAGE_IN_USE"
    template = "package {package_id} is in use by {server_count} servers"
    remedy = "Give these another package first"


# ---- the portal: what an end user is told, and no more ------------------------------------------------------------------


class NotIncluded(AccessLevelDenied):
    """The same reason in words for an end user, without a level that means nothing to them."""

    template = "this is not included for server {server_id}"
    remedy = ""


class CooldownActive(ControllerError):
    reason = "COOLDOWN_ACTIVE"
    template = "this was done a short while ago; it is possible again in {retry_seconds} s"


class SelfServiceOff(ControllerError):
    reason = "SELF_SERVICE_OFF"
    template = "the provider has switched this off: {act}"


class PortalRefused(ControllerError):
    """All else that is in an end user's way: `refusal` is a word of PortalRefusal, `advice` a sentence for the user."""

    reason = "PORTAL_REFUSED"
    template = "{advice}"


class PointNotFound(ControllerError):
    reason = "POINT_NOT_FOUND"
    template = "no backup {point_id}"


class DriveNotFound(ControllerError):
    reason = "DRIVE_NOT_FOUND"
    template = "no {drive}"


# ---- storages -----------------------------------------------------------------------------------------------------------


class StorageNotFound(ControllerError):
    reason = "STORAGE_NOT_FOUND"
    template = "no storage {storage_id}"


class StorageExists(ControllerError):
    reason = "STORAGE_EXISTS"
    template = "there is a storage {name} already"


class StorageDisabled(ControllerError):
    reason = "STORAGE_DISABLED"
    template = "storage {storage_id} is disabled"
    remedy = "Enable it, or choose another storage"


class StorageReadOnly(ControllerError):
    reason = "STORAGE_READ_ONLY"
    template = "storage {storage_id} is read-only"
    remedy = "Allow writing again, or choose another storage"


class DeleteBound(ControllerError):
    """Deletes on this storage are one hypervisor's alone."""

    reason = "DELETE_BOUND"
    template = "on storage {storage_id} only hypervisor {hypervisor_id} deletes"
    remedy = "Let that hypervisor do it, or bind the storage's deletes to another one"


class StorageUnreconciled(ControllerError):
    """The controller's memory was lost or set back: what it knows of the storage may be older than what lies there."""

    reason = "STORAGE_UNRECONCILED"
    template = (
        "nothing is deleted on storage {storage_id}: it was not reconciled since epoch {epoch} of the controller began"
    )
    remedy = "Run bmctl storage reconcile, and wait for its job to end"


class RetentionChanged(ControllerError):
    """Something that was to be pruned is kept now: the policy or the backups changed while the job waited."""

    reason = "RETENTION_CHANGED"
    template = "backup {backup_id} is kept by now, nothing was deleted"


class PurgeNotFound(ControllerError):
    reason = "PURGE_NOT_FOUND"
    template = "no purge {purge_id}"


class PurgeEnded(ControllerError):
    """It was cancelled, or is done."""

    reason = "PURGE_ENDED"
    template = "purge {purge_id} has ended: {state}"


class PurgeRunning(ControllerError):
    """Its deletion has been sent to a hypervisor. Cancel that job, if it must not go on."""

    reason = "PURGE_RUNNING"
    template = "purge {purge_id} runs already, as job {job_id}"
    remedy = "Cancel the job to stop what it has not deleted yet"


class StorageInUse(ControllerError):
    reason = "STORAGE_IN_USE"
    template = "storage {storage_id} is in use: {backup_count} backups lie there, {schedule_count} schedules use it"
    remedy = "Delete the backups and the schedules first"


class StorageOfBundles(StorageInUse):
    template = "storage {storage_id} is the one that recovery bundles are written to"
    remedy = "Choose another one first: bmctl settings set bundle-storage-id=NAME, or none with an empty name"


class RecoveryKeyMissing(ControllerError):
    """No bundle can be sealed: a key that nobody was shown would be of no use."""

    reason = "RECOVERY_KEY_MISSING"
    template = "this controller has no recovery key, so no bundle can be written"
    remedy = "Run bm-controller backup once where the controller runs, and keep the key that it prints"


class EncryptionImmutable(ControllerError):
    reason = "ENCRYPTION_IMMUTABLE"
    template = "encryption of storage {storage_id} cannot be changed while it holds backups"
    remedy = "Add another storage for what is to be encrypted otherwise"


class EncryptionUnproven(ControllerError):
    """Whether backups lie there that the catalog does not know is open: ask a hypervisor first (S25)."""

    reason = "ENCRYPTION_UNPROVEN"
    template = (
        "encryption of storage {storage_id} cannot be changed before it is known that no backups lie there: {problem}"
    )
    remedy = "Reconcile the storage (`bmctl storage reconcile`), and ask again within an hour"


class StorageImmutable(ControllerError):
    """Its type never changes; its place does not while backups lie there, unless a probe found its repository there (S0)."""

    reason = "STORAGE_IMMUTABLE"
    template = "{field} of a storage cannot be changed"
    remedy = "Add another storage; a new place that carries the same repository is accepted once `bmctl storage probe` found it"


# ---- schedules ----------------------------------------------------------------------------------------------------------


class ScheduleNotFound(ControllerError):
    """No schedule has this id, or the hypervisor of this name has none."""

    reason = "SCHEDULE_NOT_FOUND"
    template = "no schedule {schedule_id}"


class ScheduleExists(ControllerError):
    reason = "SCHEDULE_EXISTS"
    template = "hypervisor {hypervisor_id} has schedule {schedule_id} already"
    remedy = "Change that one, or delete it first"


class ScheduleDeleted(ControllerError):
    reason = "SCHEDULE_DELETED"
    template = "schedule {schedule_id} is deleted"
    remedy = "Undelete it first"


class StorageOutOfReach(ControllerError):
    """A hypervisor has no way to a storage, as its agent said of the host: `problem` names what is missing there."""

    reason = "STORAGE_OUT_OF_REACH"
    template = "hypervisor {hypervisor_id} cannot use storage {storage_id}: {problem}"
    remedy = "Put it right there, wait some seconds until the agent has seen it, and try again"


class BindAddressUnsupported(ControllerError):
    """The source address of its connections cannot be chosen, for the reason that `problem` gives (D19)."""

    reason = "BIND_ADDRESS_UNSUPPORTED"
    template = "a {type} storage takes no bind address: {problem}"
    remedy = "Leave the bind address out"


class PresetNotFound(ControllerError):
    reason = "PRESET_NOT_FOUND"
    template = "no preset {preset}; there are {known}"


# ---- backups, jobs, tokens ----------------------------------------------------------------------------------------------


class BackupNotFound(ControllerError):
    reason = "BACKUP_NOT_FOUND"
    template = "no backup {backup_id} of server {server_id}"


class DiskNotFound(ControllerError):
    reason = "DISK_NOT_FOUND"
    template = "{domain} has no disk {disk}"


class JobNotFound(ControllerError):
    reason = "JOB_NOT_FOUND"
    template = "no job {job_id}"


class JobEnded(ControllerError):
    reason = "JOB_ENDED"
    template = "job {job_id} has ended: {state}"


class BatchNotFound(ControllerError):
    reason = "BATCH_NOT_FOUND"
    template = "no batch {batch_id}"


class BatchEnded(ControllerError):
    reason = "BATCH_ENDED"
    template = "batch {batch_id} has ended: {state}"


class BatchWaiting(ControllerError):
    """At most one batch of a schedule waits at a time."""

    reason = "BATCH_WAITING"
    template = "batch {batch_id} of schedule {schedule_id} waits already: {wait}"
    remedy = "Wait for that batch, or cancel it"


class NothingToRetry(ControllerError):
    reason = "NOTHING_TO_RETRY"
    template = "no server of batch {batch_id} failed"


class DispatchPaused(ControllerError):
    reason = "DISPATCH_PAUSED"
    template = "the dispatcher is paused"
    remedy = "Resume it in the settings"


class AccessTokenNotFound(ControllerError):
    reason = "ACCESS_TOKEN_NOT_FOUND"
    template = "no access token {access_token_id}"


# ---- events and webhooks ------------------------------------------------------------------------------------------------


class CursorExpired(ControllerError):
    """Events between the cursor and the oldest that is kept are gone; or the cursor is ahead of a log that was put back."""

    reason = "CURSOR_EXPIRED"
    template = "the log of events does not go on at {cursor}: it has {oldest} to {newest}"
    remedy = "Read what you keep anew, and go on from the newest"


class WebhookNotFound(ControllerError):
    reason = "WEBHOOK_NOT_FOUND"
    template = "no webhook {webhook_id}"


class WebhookExists(ControllerError):
    reason = "WEBHOOK_EXISTS"
    template = "there is a webhook {name} already"


class WebhookDeliveryNotFound(ControllerError):
    reason = "WEBHOOK_DELIVERY_NOT_FOUND"
    template = "webhook {webhook_id} has no dead delivery {delivery_id}"
    remedy = "Only what was given up can be sent again; what waits is tried by itself"


class LookTooLong(ControllerError):
    """A look at a storage that neither ends well nor fails: a mount that hangs, as a rule."""

    reason = "STORAGE_HANGS"
    template = "the look at the storage did not end within {minutes} minutes"
    remedy = "Look for a mount that hangs on the hypervisor, or a server that takes connections and does not answer"


class TicketNotFound(ControllerError):
    reason = "TICKET_NOT_FOUND"
    template = "there is no restore ticket {ticket_id}"


# ---- ends of jobs, and of sessions --------------------------------------------------------------------------------------


class JobStale(ControllerError):
    """A job ran (or waited) longer than allowed."""

    reason = "JOB_STALE"
    template = "the job took longer than {hours} hours and was stopped"
    remedy = "See the job's log for what it waited for; the limit is a global setting"


class CommandNotAccepted(ControllerError):
    reason = "COMMAND_NOT_ACCEPTED"
    template = "no agent accepted the job within {seconds} s"
    remedy = "Check the agent's connection and its log"


class OperationLost(ControllerError):
    reason = "OPERATION_LOST"
    template = "the hypervisor no longer knows the job, after a crash or a restored snapshot"
    remedy = "Start it again"


class StaleGeneration(ControllerError):
    """A result, a command or a session of an attempt that is no longer the current one."""

    reason = "STALE_GENERATION"
    template = "{problem}; the current generation is {generation}"


class JobCancelled(ControllerError):
    reason = "CANCELLED"
    template = "the job was cancelled"
