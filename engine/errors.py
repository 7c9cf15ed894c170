"""Every way our work fails, as a type with facts.

An error has a `reason`, a string that never changes its meaning and that every program may compare (it is also the name of
a value of `backupmanager.v1.ErrorReason`); a message made from its facts; and the facts themselves, which travel as
`ErrorInfo.metadata`. A fact never holds a secret. What belongs to the hypervisor, the storage or the format stands here;
what only the controller can say stands in `controller/errors.py`.
"""

from typing import ClassVar

from engine.remedies import remedy


class BackupManagerError(Exception):
    """The root of all errors that we raise on purpose. Raise a subclass with its facts as keywords."""

    reason: ClassVar[str]
    template: ClassVar[str]
    remedy: ClassVar[str] = ""
    result: dict[str, object] | None = None  # what a job had found by then: one of results.py, in JSON types

    def __init__(self, **facts: object) -> None:
        self.facts = {name: str(value) for name, value in facts.items()}
        super().__init__(self.template.format(**facts))

    @property
    def message(self) -> str:
        """One sentence for people: what failed, and what to do about it where we know."""
        return f"{self}. {self.advice}" if self.advice else str(self)

    @property
    def advice(self) -> str:
        """What to do about it, without a full stop; "" where nothing is known."""
        return self.remedy


class EngineError(BackupManagerError):
    """Root of what the engine raises."""


class InvalidSpec(EngineError):
    reason = "INVALID_FIELD"
    template = "{field}: {problem}"


class Cancelled(EngineError):
    """A person or the controller asked for the end of the work."""

    reason = "CANCELLED"
    template = "the work was cancelled"


class EngineCrashed(EngineError):
    reason = "ENGINE_CRASHED"
    template = "the engine process ended without a result: {detail}"
    remedy = "Look at the job's log; the next run starts afresh"


class LeaseLost(EngineError):
    reason = "LEASE_LOST"
    template = "job {job_id} no longer holds its lease: {detail}"


# ---- the virtual server and its hypervisor ------------------------------------------------------------------------------


class HypervisorError(EngineError):
    """libvirt or QEMU refused or failed; `operation` is the call, `code` libvirt's error code where there is one."""

    reason = "HYPERVISOR_FAILED"
    template = "{operation} failed: {detail}"


class LibvirtUnreachable(HypervisorError):
    reason = "LIBVIRT_UNREACHABLE"
    template = "cannot reach libvirt at {uri}: {detail}"
    remedy = "Check that libvirtd runs and that this user may use its socket"


class DomainNotFound(HypervisorError):
    reason = "DOMAIN_NOT_FOUND"
    template = "no domain {domain} on this hypervisor"


class DomainGone(HypervisorError):
    """The domain stopped or vanished while we were reading its disks."""

    reason = "DOMAIN_GONE"
    template = "domain {domain} went away while it was being backed up"


class DomainBusy(HypervisorError):
    reason = "VM_BUSY"
    template = "domain {domain} is busy: {holder}"
    remedy = "Wait for that work to end, or cancel it"


class ImageBusy(DomainBusy):
    """An image is open elsewhere: its write lock is taken, most often because its domain runs (or has just been started)."""

    template = "image {path} is in use by another process"
    remedy = "Wait for that process to end; a running domain is backed up through libvirt"


class DomainStarted(DomainBusy):
    """A stopped domain was started while its images were read: what was read is torn, and nothing of it is kept."""

    template = "domain {domain} was started while its images were read"
    remedy = "Run the backup again; a running domain is backed up through libvirt"


class ImageChanged(DomainBusy):
    """An image was written by somebody while it was read without a lock: what was read is torn, and nothing of it is kept."""

    template = "image {path} of domain {domain} was changed while it was read"
    remedy = "Run the backup again when nobody else writes to the image"


class DomainState(HypervisorError):
    reason = "VM_STATE"
    template = "domain {domain} is {state}, {needed} is needed"


class DiskUnsupported(HypervisorError):
    """One disk cannot be backed up; the server's other disks are."""

    reason = "DISK_UNSUPPORTED"
    template = "disk {disk} cannot be backed up: {detail}"


class DiskNotFound(HypervisorError):
    reason = "DISK_NOT_FOUND"
    template = "{domain} has no disk {disk}"


class DiskMismatch(HypervisorError):
    reason = "DISK_MISMATCH"
    template = "disk {disk} does not fit: {detail}"


class QuiesceFailed(HypervisorError):
    """The asked consistency could not be reached. The guest has been thawed again."""

    reason = "QUIESCE_FAILED"
    template = "could not freeze the file systems of {domain}: {detail}"
    remedy = "Check the guest agent, or choose a consistency mode that can do without it"


class AgentUnavailable(HypervisorError):
    """The guest agent is not there, hangs, or did not answer in time."""

    reason = "GUEST_AGENT_UNAVAILABLE"
    template = "the guest agent of {domain} does not serve {operation}: {detail}"


class QmpFailed(HypervisorError):
    """QEMU refused a monitor command; `kind` is QEMU's error class."""

    reason = "QMP_FAILED"
    template = "QEMU of {domain} refused {operation}: {detail}"


class CheckpointUnusable(HypervisorError):
    """A checkpoint or its bitmap is lost or broken: the next backup of that disk has to be a full."""

    reason = "CHECKPOINT_UNUSABLE"
    template = "{operation}: the checkpoint of {domain} cannot be used: {detail}"


class ScratchShort(HypervisorError):
    """There is too little room to begin: a scratch file that finds none stops the guest."""

    reason = "SCRATCH_SHORT"
    template = "scratch space in {path}: {free} bytes are free, a backup of these disks needs {needed}"
    remedy = "Give the scratch folder more room, or another file system"


class ScratchRanShort(ScratchShort):
    """The guest overwrote more than there was room for, at last `rate` bytes a second: given up before it had to stop."""

    template = (
        "scratch space in {path} runs short: {free} bytes are free, {needed} are needed to go on, and {used} hold what the "
        "guest has overwritten; the backup was given up so that the guest goes on"
    )
    remedy = "Give the scratch folder more room, or back up while the guest writes less"


# ---- NBD ---------------------------------------------------------------------------------------------------------------


class NbdError(EngineError):
    reason = "NBD_FAILED"
    template = "NBD {operation} failed: {detail}"


class NbdProtocolError(NbdError):
    """The peer broke the protocol: wrong magic, an impossible length, an unknown chunk."""

    reason = "NBD_PROTOCOL"


class NbdRefused(NbdError):
    """The server refused an option or an export during the handshake."""

    reason = "NBD_REFUSED"


class NbdReadFailed(NbdError):
    """The server answered a request with an error; `errno` is the protocol's error value."""

    reason = "NBD_REQUEST_FAILED"
    template = "NBD {operation} at {start}+{length} failed: {detail} (error {errno})"


class NbdDisconnected(NbdError):
    reason = "NBD_DISCONNECTED"
    template = "the NBD server went away during {operation}: {detail}"


# ---- storage -----------------------------------------------------------------------------------------------------------


class StorageError(EngineError):
    """A storage failed in a way that has no better name; `step` is what was being done, `storage` a name without secrets.

    The remedies of all storages stand in remedies.py. A fact `cause`, where it is given, chooses among those of one reason.
    """

    reason = "STORAGE_FAILED"
    template = "storage {storage}: {step} failed: {detail}"

    def __init__(self, *, cause: str = "", **facts: object) -> None:
        super().__init__(**facts, **({"cause": cause} if cause else {}))

    @property
    def advice(self) -> str:
        return remedy(self.reason, self.facts.get("cause", "")) or self.remedy


class StorageUnreachable(StorageError):
    reason = "STORAGE_UNREACHABLE"
    template = "storage {storage} cannot be reached: {step}: {detail}"


class StorageLoginFailed(StorageError):
    reason = "STORAGE_LOGIN_FAILED"
    template = "storage {storage} refused the login: {detail}"


class StorageHostKeyChanged(StorageError):
    reason = "STORAGE_HOST_KEY_CHANGED"
    template = "storage {storage} shows host key {seen}, pinned is {pinned}"


class StoragePathInvalid(StorageError):
    """The storage's own folder or bucket is neither there nor can be made."""

    reason = "STORAGE_PATH_INVALID"
    template = "storage {storage}: {step}: {detail}"


class StorageDenied(StorageError):
    reason = "STORAGE_PERMISSION_DENIED"
    template = "storage {storage}: {step} of {name} is not permitted"


class StorageFull(StorageError):
    reason = "STORAGE_FULL"
    template = "storage {storage} is full: {step} of {name}"


class BucketNotFound(StorageError):
    reason = "STORAGE_BUCKET_NOT_FOUND"
    template = "storage {storage}: there is no such bucket"


class StorageClockSkewed(StorageError):
    """`seconds` is how far this host's clock is ahead of the storage's, as a signed number, `?` if it did not say."""

    reason = "STORAGE_CLOCK_SKEWED"
    template = "storage {storage} refuses what this host signs: the clocks are {seconds} seconds apart"


class StorageThrottled(StorageError):
    reason = "STORAGE_THROTTLED"
    template = "storage {storage} had too much to do, again and again: {step}: {detail}"


class StorageUntrusted(StorageError):
    """TLS cannot be spoken with the server, or who it is cannot be proven."""

    reason = "STORAGE_UNTRUSTED"
    template = "storage {storage} cannot be trusted: {detail}"


class ObjectNotFound(StorageError):
    reason = "OBJECT_NOT_FOUND"
    template = "storage {storage} has no {name}"


class ObjectExists(StorageError):
    """Nothing is ever rewritten: an exclusive create found the name taken."""

    reason = "OBJECT_EXISTS"
    template = "storage {storage} already has {name}"


class ObjectTruncated(StorageError):
    """A read ended before the length that was asked for."""

    reason = "OBJECT_TRUNCATED"
    template = "storage {storage}: {name} ended at byte {end}, {wanted} were expected"


class InvalidName(StorageError):
    """A name on the storage (or asked of it) is not one of ours: `..`, NUL, absolute, empty parts."""

    reason = "INVALID_NAME"
    template = "{name!r} is not a name of this product"


class RcloneMissing(StorageError):
    """rclone is not on this host, too old, or does not start."""

    reason = "RCLONE_MISSING"
    template = "storage {storage} needs the program rclone on this host: {detail}"


class RcloneConfigInvalid(StorageError):
    """The configuration of rclone on this host is missing, open to others, cannot be read, or lacks the remote."""

    reason = "RCLONE_CONFIG_INVALID"
    template = "storage {storage}: rclone's configuration {path} on this host: {problem}"


class RcloneRemoteRefused(StorageError):
    """A remote that rclone can use, but that is no good place for backups; most can be forced."""

    reason = "RCLONE_REMOTE_REFUSED"
    template = "storage {storage}: a remote of the type {kind} is refused: {why}"


class RepositoryForeign(StorageError):
    reason = "REPOSITORY_FOREIGN"
    template = "storage {storage} holds repository {found} of another installation, expected {expected}"
    remedy = "Use another path; two installations never share one"


class RepositoryMissing(StorageError):
    reason = "REPOSITORY_MISSING"
    template = "storage {storage} holds no repository"
    remedy = "Check that its disk is mounted there; if it was emptied on purpose, test the storage to begin anew"


class RepositoryUnsupported(StorageError):
    reason = "REPOSITORY_UNSUPPORTED"
    template = "storage {storage} has repository format {found}, this version knows {known}"


# ---- keys and format ---------------------------------------------------------------------------------------------------


class FormatError(EngineError):
    """Bytes on the storage are not what was written. `name` is the object, `detail` what is wrong with it."""

    reason = "FORMAT_INVALID"
    template = "{name}: {detail}"
    remedy = "Restore from another point, and verify the chain"


class WrongKey(EngineError):
    reason = "WRONG_KEY"
    template = "the passphrase or key does not open key {key_id}"


class KeyMissing(EngineError):
    reason = "KEY_MISSING"
    template = "the backup is encrypted with key {key_id}, and no key or passphrase was given"


class FrameCorrupt(FormatError):
    reason = "FRAME_CORRUPT"
    template = "{name}: frame {frame}: {detail}"


class SegmentCorrupt(FormatError):
    """Header, index or footer of a data file is damaged, or the file is cut short."""

    reason = "SEGMENT_CORRUPT"


class ManifestCorrupt(FormatError):
    reason = "MANIFEST_CORRUPT"


class ManifestUnsupported(FormatError):
    reason = "MANIFEST_UNSUPPORTED"
    template = "{name}: manifest version {found}, this version knows {known}"
    remedy = "Use a newer version of this program"


class ChainBroken(EngineError):
    reason = "CHAIN_BROKEN"
    template = "backup {backup_id} of disk {disk} needs {missing}, which is not there"
    remedy = "Restore from another point"


class StillNeeded(EngineError):
    """A deletion was refused because a manifest still needs the data (or could not be read, which counts the same)."""

    reason = "STILL_NEEDED"
    template = "backup {backup_id} of disk {disk} cannot be deleted: {detail}"


class BackupNotFound(EngineError):
    reason = "BACKUP_NOT_FOUND"
    template = "no backup {backup_id} of server {server_id}"


class TargetError(EngineError):
    """The place to restore to cannot be written, or already exists."""

    reason = "TARGET_FAILED"
    template = "cannot restore to {target}: {detail}"


class TicketExpired(EngineError):
    """A restore ticket is over, or is from a time that this host's clock has not reached."""

    reason = "TICKET_EXPIRED"
    template = "the restore ticket {path} is over; it was good until {expire_time} by this host's clock"
    remedy = "Ask for another one: bmctl backup ticket BACKUP --wait"


class TicketRevoked(EngineError):
    """A restore ticket was taken back before its time."""

    reason = "TICKET_REVOKED"
    template = "the restore ticket {path} was revoked at {revoke_time}"
    remedy = "Ask for another one: bmctl backup ticket BACKUP --wait"


class TicketExposed(EngineError):
    """A restore ticket holds credentials; one that others can read or write is not used."""

    reason = "TICKET_EXPOSED"
    template = "the restore ticket {path} is refused: {problem}"
    remedy = "Run this as the ticket's owner; if others could read the ticket, change the storage's credentials and ask for another one"


class VerifyFailed(EngineError):
    """Damage was found. `result` names it, as results.VerifyResult in JSON types."""

    reason = "VERIFY_FAILED"
    template = "{damaged} damaged frames in backup {backup_id}"
    remedy = "Restore from another point; the next backup of this server should be a full"

    def __init__(self, result: dict[str, object], **facts: object) -> None:
        self.result = result
        super().__init__(**facts)


class WindowClosed(EngineError):
    """A job of a batch whose turn did not come before the schedule's window ended (D14). Nothing was done."""

    reason = "WINDOW_CLOSED"
    template = "the schedule's window ended before this server's turn came"
    remedy = "Widen the window, raise the backup concurrency, or run the schedule by hand"
