"""What only the agent can say goes wrong. Everything else is in `engine/errors.py` and `clients/errors.py`."""

from engine.errors import BackupManagerError


class AgentError(BackupManagerError):
    """Root of what the agent raises by itself."""


class ConfigInvalid(AgentError):
    """The settings cannot be used; `place` is the file or the variable, never a value."""

    reason = "INVALID_FIELD"
    template = "{field} in {place}: {problem}"


class AlreadyRunning(AgentError):
    reason = "AGENT_RUNNING"
    template = "another agent runs with the state folder {folder}"
    remedy = "One hypervisor has one agent; stop the other one first"


class NotEnrolled(AgentError):
    reason = "NOT_ENROLLED"
    template = "this hypervisor is not enrolled: {path}: {problem}"
    remedy = "Make a token with `bmctl hypervisor enroll` and run `bm-agent enroll`"


class AlreadyEnrolled(AgentError):
    reason = "ALREADY_ENROLLED"
    template = "this hypervisor is enrolled as {hypervisor_id}"
    remedy = "To enroll it anew, add --renew"


class CertificateExpired(AgentError):
    reason = "CERTIFICATE_EXPIRED"
    template = "the agent's certificate expired on {expire_time}"
    remedy = "Check this host's clock; if it is right, enroll again with `bm-agent enroll --renew`"


class CertificateUnusable(AgentError):
    """What the controller answered to a certificate request does not fit what we asked for."""

    reason = "CERTIFICATE_UNUSABLE"
    template = "the controller's answer holds no usable certificate: {problem}"


class CommandUnsupported(AgentError):
    """The command, or something in it, is not known to this version."""

    reason = "UNSUPPORTED"
    template = "this agent does not know {what}"
    remedy = "Update the agent on this hypervisor"


class CommandLate(AgentError):
    """The command's deadline passed before its work could begin."""

    reason = "COMMAND_NOT_ACCEPTED"
    template = "the work could not begin within {seconds} s: {detail}"


class StaleGeneration(AgentError):
    reason = "STALE_GENERATION"
    template = "job {job_id} is known with generation {generation} already"


class SessionEnded(AgentError):
    """The stream to the controller ended; `again` tells what to make of it."""

    reason = "SESSION_ENDED"
    template = "the session ended: {detail}"
