"""A controller's memory with a hypervisor or two, on a real database on disk: what rules about jobs are tried on.

`World` is the database, the vault and a clock that stands; `Agent` says what an agent would, straight into `events`, as one
session after the other would bring it. The stream itself is tried in `agents/`.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from controller import claims, installation, jobs, orders, previews, servers, settings, storages
from controller.agents import enrollment, events, hello
from controller.agents.convert import Accepted, AgentEvent, Finished, Greeting, Records, Rejected, Said
from controller.agents.outbox import Stamp
from controller.backups import BackupRecord, DiskBackup
from controller.context import Context
from controller.cycle import batch_dispatch, batch_work, dispatch, stale, turn
from controller.db import models
from controller.db.database import Database
from controller.db.secrets import Vault
from controller.hypervisors import Domain, heard
from controller.jobs import Failure, Job
from controller.limits import Limits
from controller.order_types import BackupOrder, DeleteOrder, Order, ReindexOrder, VerifyOrder
from controller.servers import NewServer, Server
from controller.storages import NewStorage, Storage, StorageChange
from engine.ids import new_id
from tests.clock import FakeClock

P = ParamSpec("P")
T = TypeVar("T")
_CLOCK_STEP_SECONDS = 0.01  # between two of our acts, so that ids sort by them


@dataclass
class Certificate:
    serial: str
    expire_time: datetime


@cache
def _migrated() -> bytes:
    """Return a SQLite database that has its tables: made once, since making them takes longer than most tests."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "controller.db"
        Database.open(f"sqlite:///{file}").close()
        return file.read_bytes()


@dataclass
class World:
    """Open it with `World.open(folder)`, and close it."""

    folder: Path
    database: Database
    vault: Vault
    clock: FakeClock
    limits: Limits = field(default_factory=Limits)
    serials: int = 0
    url: str = ""

    @classmethod
    def open(cls, folder: Path, limits: Limits | None = None, url: str = "") -> "World":
        """Open a world on the database at `url`, a new SQLite if there is none."""
        folder.mkdir(parents=True, exist_ok=True)
        vault = Vault.create(folder / "master.key")
        if not url:
            (folder / "controller.db").write_bytes(_migrated())
            url = f"sqlite:///{folder}/controller.db"
        world = cls(folder, Database.open(url), vault, FakeClock(), limits or Limits(), url=url)
        world.run(installation.create, world.now())
        return world

    def close(self) -> None:
        self.database.close()

    def restart(self) -> None:
        """Stop the controller and start it again, as far as its memory goes."""
        self.database.close()
        self.database = Database.open(self.url)

    def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        return self.database.call(function, *args, **kwargs)

    def now(self) -> datetime:
        return self.clock.advance(_CLOCK_STEP_SECONDS)

    def context(self, requester: str = "tester") -> Context:
        return Context(self.limits, self.vault, requester, self.now())

    # ---- things ---------------------------------------------------------------------------------------------------------

    def enroll(self, name: str) -> "Agent":
        """Enroll a hypervisor and let it be heard."""
        token = self.run(enrollment.create_token, name, None, False, "ca", self.now())
        self.serials += 1
        certificate = Certificate(f"{self.serials:x}", self.now() + timedelta(days=90))
        secret = read_token(token.token)["secret"]
        hypervisor_id, _ = self.run(enrollment.redeem, secret, "0.1.0", lambda _: certificate, self.now())
        agent = Agent(self, hypervisor_id, certificate.serial)
        agent.heartbeat()
        return agent

    def server(self, agent: "Agent", name: str) -> Server:
        """Register a server for a domain that the agent reports from now on."""
        agent.domains[name] = Domain(
            new_id(self.now()), name, "running", "connected", ({"disk": "vda"}, {"disk": "vdb"})
        )
        agent.report()
        return self.run(servers.register, NewServer(f"panel-{name}", name, agent.hypervisor_id, "", name), self.now())

    def storage(self, name: str = "nas", **values: Any) -> Storage:
        sftp = {"host": "backup.example", "port": 22, "username": "bm", "path": "/srv"}
        new = NewStorage(name=name, type="sftp", config=sftp, secrets={"sftp_private_key": "PEM"})
        return self.run(storages.create, replace(new, **values), None, self.vault, self.now())

    def change_storage(self, storage: Storage, **values: Any) -> Storage:
        change = StorageChange(**values)
        return self.run(storages.update, storage.storage_id, change, None, "", self.vault, self.now())

    # ---- work -----------------------------------------------------------------------------------------------------------

    def start(self, order: Order) -> Job:
        return self.job(self.run(orders.start, order, self.context()))

    def backup(self, server: Server, storage: Storage, **values: Any) -> Job:
        return self.start(BackupOrder(server.server_id, storage.storage_id, **values))

    def verify(self, backup_id: str, **values: Any) -> Job:
        return self.start(VerifyOrder(backup_id, **values))

    def delete(self, backup_ids: Sequence[str], **values: Any) -> Job:
        preview = self.run(previews.preview_delete, backup_ids, self.context())
        return self.start(DeleteOrder(tuple(backup_ids), preview.confirmation, **values))

    def reindex(self, storage: Storage, agent: "Agent") -> Job:
        return self.start(ReindexOrder(storage.storage_id, agent.hypervisor_id))

    def cancel(self, job: Job) -> Job:
        return self.run(orders.cancel, job.job_id, self.limits, self.now())

    def job(self, job_id: str) -> Job:
        return self.run(jobs.get, job_id)

    def tick(self, listening_since: datetime | None = None) -> None:
        """One round of the cycle, by its parts."""
        now = self.now()
        since = listening_since or now - timedelta(days=365)
        for batch_id in self.run(stale.stale_batches, self.limits, now):
            self.run(batch_work.cancel, batch_id, "JOB_STALE", now)
        for job_id in self.run(stale.candidates, self.limits, since, now):
            self.run(stale.settle, job_id, self.limits, since, now)
        for batch_id in self.run(batch_work.at_work):
            self.run(batch_work.look_after, batch_id, now)
        if not self.run(settings.get).dispatch_paused:
            for batch_id in self.run(batch_dispatch.waiting):
                self.run(batch_dispatch.consider, batch_id, self.limits, now)
            for schedule_id in self.run(batch_dispatch.due, now):
                self.run(batch_dispatch.fire, schedule_id, self.limits, now)
        self.run(dispatch.run, self.limits, now)

    def events(self) -> list[str]:
        """Return the kinds of all that happened, in order."""

        def read() -> list[str]:
            row = models.Event
            return [one.kind for one in row.select(row.kind).order_by(row.sequence)]

        return self.run(read)

    def events_of(self, job: Job) -> list[tuple[str, str]]:
        """Return (kind, outcome) of what agents said of a job, in order."""

        def read() -> list[tuple[str, str]]:
            row = models.AgentEvent
            rows = row.select().where(row.job_id == job.job_id).order_by(row.store_time, row.sequence)
            return [(one.kind, one.outcome) for one in rows]

        return self.run(read)

    def commands_of(self, job: Job, *, pending: bool = True) -> list[str]:
        """Return the kinds of a job's commands, pending ones or all."""

        def read() -> list[str]:
            row = models.OutboxCommand
            query = row.select().where(row.job_id == job.job_id).order_by(row.sequence)
            return [one.kind for one in query if not pending or one.settle_time is None]

        return self.run(read)


@dataclass
class Agent:
    """One hypervisor's agent, as the events that it would send."""

    world: World
    hypervisor_id: str
    serial: str
    journal_id: str = "journal-1"
    sequence: int = 0
    domains: dict[str, Domain] = field(default_factory=dict)

    def heartbeat(self, offset_seconds: float = 0) -> None:
        offset = timedelta(seconds=offset_seconds)
        self.world.run(heard, self.hypervisor_id, self.world.now(), offset, 0.5, 1 << 30)

    def hello(self, *operations: Stamp, command_ids: tuple[str, ...] = (), **values: Any) -> hello.Welcome:
        now = self.world.now()
        greeting = Greeting("0.1.0", 1, "boot", self.journal_id, self.sequence, operations, command_ids, {}, now)
        greeting = replace(greeting, **values)
        self.world.run(turn.take, "sessions:nobody", "nobody", timedelta(hours=1))  # on the database's own clock
        return self.world.run(hello.greet, self.hypervisor_id, greeting, "nobody", self.world.limits, now)

    def report(self) -> None:
        session_id = self.hello().session_id
        domains = list(self.domains.values())
        assert self.world.run(claims.take_inventory, self.hypervisor_id, session_id, domains, self.world.now())

    def say(self, stamp: Stamp, said: Said) -> int | None:
        """Send one event and return what the controller stored up to."""
        self.sequence += 1
        return self.send(self.event(stamp, said, self.sequence))

    def event(self, stamp: Stamp, said: Said, sequence: int) -> AgentEvent:
        return AgentEvent(sequence, stamp, self.world.now(), type(said).__name__.lower(), said, {})

    def send(self, *batch: AgentEvent) -> int | None:
        epoch = self.world.run(installation.get).epoch
        world = self.world
        return world.run(
            events.store_batch, self.hypervisor_id, self.journal_id, batch, epoch, world.limits, world.now()
        )

    def accept(self, job: Job) -> Job:
        self.say(job.stamp, Accepted())
        return self.world.job(job.job_id)

    def reject(self, job: Job, reason: str = "UNSUPPORTED") -> Job:
        self.say(job.stamp, Rejected(Failure(reason, "no")))
        return self.world.job(job.job_id)

    def finish(self, job: Job, state: str = "completed", **values: Any) -> Job:
        self.say(job.stamp, Finished(state, **values))
        return self.world.job(job.job_id)

    def find(self, job: Job, *records: BackupRecord) -> None:
        self.say(job.stamp, Records(records))

    def back_up(self, server: Server, storage: Storage, chain: str, needs: Sequence[str] = ()) -> str:
        """Make a whole backup and return its id; `needs` are the older ones of its chain."""
        job = self.world.backup(server, storage)
        self.accept(job)
        done = self.finish(job, record=record_of(job, chain, needs))
        assert done.state == "completed", done
        return done.backup_id


def record_of(job: Job, chain: str, needs: Sequence[str] = ()) -> BackupRecord:
    """Return what the manifest of a job's backup would say."""
    disk = DiskBackup("vda", "incremental" if needs else "full", chain, needs[-1] if needs else "", 1000, 100, 50, "ab")
    return BackupRecord(
        backup_id=job.backup_id,
        server_id=job.server_id,
        job_id=job.job_id,
        create_time=job.create_time,
        disks=(disk,),
        consistency="frozen",
        domain_name="web",
        domain_uuid="uuid-web",
        manifest_digest="d" * 64,
        needed_backup_ids=(*needs, job.backup_id),
    )


def read_token(token: str) -> dict[str, str]:
    """Return what an enrollment token says, as an agent reads it."""
    import base64
    import json

    kind, _, body = token.partition(".")
    assert kind == "bm1"
    value: dict[str, str] = json.loads(base64.urlsafe_b64decode(body + "=" * (-len(body) % 4)))
    return value
