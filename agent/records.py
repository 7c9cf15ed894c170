"""What the journal remembers of commands and operations. No secret is ever among it.

command: run ──► waiting ──► running ──► finished ──(acknowledged)──► gone
                    └──► rejected: gone at once, the event tells
"""

from dataclasses import dataclass
from typing import Literal, TypeAlias

State: TypeAlias = Literal["waiting", "running", "finished"]
Verb: TypeAlias = Literal["backup", "restore", "verify", "delete", "reindex", "test", "health", "ticket", "bundle"]


@dataclass(frozen=True, slots=True)
class Operation:
    """One attempt of one job on this hypervisor, and the folder of the same name.

    waiting   the spec lies in the folder, no process was started
    running   accepted; a process was started, or is about to be
    finished  its end is among the events, and the process is reaped

    `receive_uptime` (seconds since boot `boot_id`) is what the deadline counts from. `workers`, `read_limit`, `upload_limit`
    are the budget of the storage on this hypervisor (P1), not this process's share. `offset` bytes of the engine's events
    are dealt with, `log_count` log lines among them. `unhealed` marks an engine that died before it could tidy up.

    One of a batch waits until its turn in the batch's process has come. `process` names the folder of the process that it was
    given to, "" before; `concurrency` of the batch's jobs run side by side, smaller `position`s first, and `job_count` of them
    came together. `during_batch` marks a restore that a batch at work has to make room for.
    """

    job_id: str
    attempt: int
    generation: int
    epoch: int
    command_id: str
    verb: Verb
    storage_id: str
    server_id: str
    domain_uuid: str
    backup_id: str
    workers: int
    read_limit: int
    upload_limit: int
    receive_uptime: float
    boot_id: str
    deadline_seconds: float
    state: State = "waiting"
    cancelled: bool = False
    grace_seconds: float = 60.0
    unhealed: bool = False
    offset: int = 0
    log_count: int = 0
    batch_id: str = ""
    position: int = 0
    concurrency: int = 1
    job_count: int = 1
    process: str = ""
    during_batch: bool = False

    @property
    def key(self) -> tuple[str, int]:
        return self.job_id, self.attempt

    @property
    def folder_name(self) -> str:
        return f"{self.job_id}.{self.attempt}"

    @property
    def subjects(self) -> frozenset[str]:
        """What it must have for itself on this hypervisor: its server, under either of its names (N15)."""
        if self.verb not in {"backup", "restore", "delete"}:
            return frozenset()
        names = {f"server {self.server_id}": self.server_id, f"domain {self.domain_uuid}": self.domain_uuid}
        return frozenset(name for name, value in names.items() if value)
