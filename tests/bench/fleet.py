"""A controller of a large installation: 1,000 agents with 50 servers each and 200,000 backups in SQLite, and one of 5,000 agents.

Controller and database are real, and so are the agents' certificates and sessions; engines only wait (see tests/fleet). All of it
shares the machine's cores with the simulator, so times are those of a busier machine than a controller would have alone.
"""

import asyncio
import sqlite3
import statistics
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from grpc import aio

from clients.gen.backupmanager.v1 import (
    backup_service_pb2,
    backup_service_pb2_grpc,
    hypervisor_service_pb2,
    hypervisor_service_pb2_grpc,
    job_service_pb2,
    job_service_pb2_grpc,
    overview_service_pb2,
    overview_service_pb2_grpc,
    server_service_pb2,
    server_service_pb2_grpc,
    storage_service_pb2,
    storage_service_pb2_grpc,
)
from controller import retention, storages
from controller.cycle import batch_dispatch
from controller.cycle.steps import STEPS
from controller.cycle.tick import Round, Tick
from controller.db import models
from controller.db.database import Database
from controller.db.secrets import Vault
from controller.limits import Limits
from tests.bench.bench import Bench
from tests.bench.figures import figure, note
from tests.bench.rounds import progress
from tests.clock import FakeClock
from tests.fleet.fleet import Fleet, raise_file_limit
from tests.fleet.seed import DUE, Host, Seeded, Size, seed
from tests.servers.controller import Controller
from tests.servers.sshd import free_port
from tests.waiting import wait_until_async

AGENTS, MANY_AGENTS, SERVERS_EACH, BACKUPS_EACH = 1000, 5000, 50, 4
ROUNDS_MAX = 3  # of what takes some ten seconds each, so that all of it is done in ten minutes
CALLS = 200  # of each kind; the figure is their 99th percentile
DOWN_SECONDS = 3.0  # of work that ends while nobody is connected
_LIVE = ("JOB_STATE_QUEUED", "JOB_STATE_DISPATCHED", "JOB_STATE_RUNNING")


def measure(bench: Bench) -> bool:
    raise_file_limit(2 * MANY_AGENTS + 1000)
    met = _large(bench, bench.scratch("fleet"))
    return asyncio.run(_memory(bench.scratch("many"), MANY_AGENTS // bench.part)) and met


# ---- without a process: what one call of the program takes --------------------------------------------------------------


def _large(bench: Bench, folder: Path) -> bool:
    controller = _controller(folder)
    with controller:
        controller.stop()
        progress("seeding")
        began = time.perf_counter()
        seeded = seed(controller.state, _url(controller), Size(AGENTS // bench.part, SERVERS_EACH, BACKUPS_EACH))
        note("fleet: seeding of the database", [time.perf_counter() - began], "s")
        met = _inside(bench, controller, seeded)
        controller.start()
        return asyncio.run(_living(bench, controller, seeded)) and met


def _inside(bench: Bench, controller: Controller, seeded: Seeded) -> bool:
    database = Database.open(_url(controller))
    try:
        clock = FakeClock(datetime.now(UTC))
        vault = Vault.load(controller.state / "master.key")
        tick = Tick(database, vault, clock, Limits, 60, STEPS)
        asyncio.run(tick.once())
        idle = [_seconds(lambda: asyncio.run(tick.once())) for _ in range(bench.rounds)]
        met = figure("fleet: a tick with nothing to do, ms", [one * 1000 for one in idle], "<= 200")
        rounds_max = min(ROUNDS_MAX, bench.rounds)
        fired = [_dispatch(database, clock, vault, len(seeded.hosts)) for _ in range(rounds_max)]
        name = f"fleet: {len(seeded.hosts)} batches of {SERVERS_EACH} servers dispatched after a common due time, s"
        met &= figure(name, fired, "<= 10")
        servers = sorted(server for host in seeded.hosts for server in host.server_ids)
        rounds: list[tuple[float, float]] = []
        for number in range(rounds_max):
            progress(f"retention: round {number + 1}")
            half, whole = _evaluate_both(database, seeded.storage_id, servers, half_first=number % 2 == 0)
            rounds.append((half, whole))
    finally:
        database.close()
    name = f"fleet: a full retention evaluation of {len(servers) * BACKUPS_EACH} backups"
    met &= figure(f"{name}, s", [whole for _, whole in rounds], "<= 10")
    return (
        figure(f"{name}: time against that of half of them", [whole / half for half, whole in rounds], "<= 2.2") and met
    )


def _dispatch(database: Database, clock: FakeClock, vault: Vault, batches: int) -> float:
    """Let all schedules be due at one instant; the database is put back afterwards, for whoever measures next."""
    progress("dispatching")
    clock.advance(DUE.total_seconds() + 1)
    database.call(_heard, clock.now())
    database.call(_set_due, clock.now())
    around = Round(database, Limits(), vault, clock.now(), clock.now())
    seconds = _seconds(lambda: asyncio.run(batch_dispatch.step(around)))
    states, jobs = database.call(_batches)
    if states != {"dispatched": batches}:
        raise RuntimeError(f"batches are {states}")
    database.call(_forget_batches, clock.now())
    if jobs != batches * SERVERS_EACH:
        raise RuntimeError(f"{batches} batches have {jobs} jobs")
    return seconds


def _set_due(now: datetime) -> None:
    models.Schedule.update(due_time=now).execute()


def _heard(now: datetime) -> None:
    models.Hypervisor.update(last_contact_time=now).execute()


def _batches() -> tuple[dict[str, int], int]:
    rows = models.Batch.select(models.Batch.state)
    return dict(Counter(row.state for row in rows)), models.Job.select().count()


def _forget_batches(now: datetime) -> None:
    for table in (
        models.Batch,
        models.Job,
        models.OutboxCommand,
        models.Lease,
        models.LeaseHold,
        models.Slot,
        models.Event,
    ):
        table.delete().execute()
    models.Schedule.update(due_time=now + timedelta(days=30)).execute()


def _evaluate_both(
    database: Database, storage_id: str, servers: Sequence[str], *, half_first: bool
) -> tuple[float, float]:
    """Return the seconds for half of the servers and for all of them; which comes first changes, so that neither is the warmer."""
    half = servers[: len(servers) // 2]
    if half_first:
        return _evaluate(database, storage_id, half), _evaluate(database, storage_id, servers)
    whole = _evaluate(database, storage_id, servers)
    return _evaluate(database, storage_id, half), whole


def _evaluate(database: Database, storage_id: str, servers: Sequence[str]) -> float:
    """Return the seconds that it takes to decide about every backup of these servers, as the prune step does: in slices."""
    began, now = time.perf_counter(), datetime.now(UTC)
    bases = database.call(lambda: retention.basis(storages.find(storage_id)))
    seen = 0
    for start in range(0, len(servers), retention.SERVERS_MAX):
        found = database.call(retention.histories, storage_id, servers[start : start + retention.SERVERS_MAX])
        for history in found:
            seen += len(history.backups)
            retention.going(history, bases.applied(history.hypervisor_id), now)
    if seen != len(servers) * BACKUPS_EACH:
        raise RuntimeError(f"only {seen} backups were looked at")
    return time.perf_counter() - began


# ---- with agents --------------------------------------------------------------------------------------------------------


async def _living(bench: Bench, controller: Controller, seeded: Seeded) -> bool:
    agents = len(seeded.hosts)
    async with Fleet(seeded.hosts, [controller.agents], controller.authority_pem) as fleet:
        await _connect(fleet)
        await asyncio.sleep(15)  # every agent has given a sign of life, and its commands were looked at
        met = figure(
            f"fleet: memory of a controller with {agents} connected agents, MiB", [_rss_mib(controller)], "<= 120"
        )
        async with controller.channel() as channel:
            met &= await _round_trips(controller, channel, fleet, seeded)
            met &= await _lists(channel, seeded)
            met &= await _restart(controller, channel, fleet, seeded)
    return met


async def _round_trips(controller: Controller, channel: aio.Channel, fleet: Fleet, seeded: Seeded) -> bool:
    """Order a test of the storage from each agent, one after another; read both ends off the controller's own clock.

    The next order waits until the controller has acknowledged the job's end: else it queues behind results, and the figure is the
    machine's throughput. That is noted as well.
    """
    progress("round trips")
    jobs = []
    for host in seeded.hosts:
        job_id = await _order_one(channel, seeded.storage_id, host)
        await wait_until_async(partial(_has_ended, fleet, job_id), 30, "the job's end")
        jobs.append(job_id)
    took = await asyncio.to_thread(_spans, controller, jobs)
    name = f"fleet: a command, from the order to the agent's receipt, among {len(seeded.hosts)} agents"
    met = figure(f"{name}, median, ms", [statistics.median(took)], "<= 2")
    met &= figure(f"{name}, 99th percentile, ms", [_p99(took)], "<= 20")
    at_once = await _order(channel, seeded)
    await _all_ended(channel)
    took = await asyncio.to_thread(_spans, controller, at_once)
    note(f"{name}, ordered without waiting for results, median", [statistics.median(took)], "ms")
    note(f"{name}, ordered without waiting for results, 99th percentile", [_p99(took)], "ms")
    return met


async def _has_ended(fleet: Fleet, job_id: str) -> bool:
    return (job_id, 1) in fleet.plan.ended


def _spans(controller: Controller, jobs: Sequence[str]) -> list[float]:
    """Return the milliseconds from each job's order to its command's receipt."""
    wanted = set(jobs)
    with closing(sqlite3.connect(f"file:{controller.state / 'controller.db'}?mode=ro", uri=True)) as database:
        rows = database.execute(
            "SELECT job_id, settle_time - create_time FROM outbox_command WHERE kind = 'run'"
        ).fetchall()
    took = [span / 1000 for job_id, span in rows if job_id in wanted and span is not None]
    if len(took) != len(jobs):
        raise RuntimeError(f"{len(jobs)} commands, {len(took)} receipts")
    return took


async def _lists(channel: aio.Channel, seeded: Seeded) -> bool:
    hypervisors = hypervisor_service_pb2_grpc.HypervisorServiceStub(channel)
    servers = server_service_pb2_grpc.ServerServiceStub(channel)
    backups = backup_service_pb2_grpc.BackupServiceStub(channel)
    overview = overview_service_pb2_grpc.OverviewServiceStub(channel)
    jobs, keeps = job_service_pb2_grpc.JobServiceStub(channel), storage_service_pb2_grpc.StorageServiceStub(channel)
    ids = [one for host in seeded.hosts for one in host.server_ids]

    def server(number: int) -> str:
        return ids[number * 7919 % len(ids)]

    calls: dict[str, Callable[[int], Awaitable[Any]]] = {
        "hypervisors": lambda _: hypervisors.ListHypervisors(hypervisor_service_pb2.ListHypervisorsRequest()),
        "servers": lambda _: servers.ListServers(server_service_pb2.ListServersRequest()),
        "backups": lambda _: backups.ListBackups(backup_service_pb2.ListBackupsRequest()),
        "a server's backups": lambda n: backups.ListBackups(backup_service_pb2.ListBackupsRequest(server_id=server(n))),
        "a server's tree": lambda n: backups.ListBackupChains(
            backup_service_pb2.ListBackupChainsRequest(server_id=server(n))
        ),
        "jobs": lambda _: jobs.ListJobs(job_service_pb2.ListJobsRequest()),
        "overview": lambda _: overview.GetOverview(overview_service_pb2.GetOverviewRequest()),
        "storages": lambda _: keeps.ListStorages(storage_service_pb2.ListStoragesRequest()),
    }
    met = True
    for name, call in calls.items():
        progress(f"call for {name}")
        took = []
        for number in range(CALLS):
            began = time.perf_counter()
            await call(number)
            took.append((time.perf_counter() - began) * 1000)
        met &= figure(f"fleet: call for {name}, 99th percentile of {CALLS} calls, ms", [_p99(took)], "<= 50")
    return met


async def _restart(controller: Controller, channel: aio.Channel, fleet: Fleet, seeded: Seeded) -> bool:
    """Kill the controller while every agent works, and start it again when the work has ended."""
    progress("killing the controller")
    fleet.plan.began.clear()
    fleet.plan.job_seconds = DOWN_SECONDS
    jobs = await _order(channel, seeded)
    controller.kill()
    await asyncio.sleep(DOWN_SECONDS)
    began = time.perf_counter()
    await asyncio.to_thread(controller.start)
    await fleet.connected(120)
    async with controller.channel() as again:
        await _all_ended(again)
    seconds = time.perf_counter() - began
    twice = sum(fleet.plan.began[job_id, 1] != 1 for job_id in jobs)
    name = f"fleet: {len(jobs)} agents come back at once after a kill, with the results of {len(jobs)} jobs"
    met = figure(f"{name}, s from the start to the last job's end", [seconds], "<= 15")
    return figure(f"{name}: jobs that did not run exactly once", [twice], "<= 0") and met


async def _memory(folder: Path, agents: int) -> bool:
    """Measure a controller that has nothing but connected agents."""
    with _controller(folder) as controller:
        controller.stop()
        seeded = seed(controller.state, _url(controller), Size(agents))
        controller.start()
        async with Fleet(seeded.hosts, [controller.agents], controller.authority_pem) as fleet:
            await _connect(fleet)
            await asyncio.sleep(15)
            return figure(
                f"fleet: memory of a controller with {agents} connected agents, MiB", [_rss_mib(controller)], "<= 300"
            )


async def _connect(fleet: Fleet) -> None:
    progress("agents connect")
    began = time.perf_counter()
    await fleet.connected(300)
    note("fleet: the last agents' sessions, after the last dial", [time.perf_counter() - began], "s")


async def _order(channel: aio.Channel, seeded: Seeded) -> list[str]:
    """Order one job from each agent, one after another; return the jobs."""
    return [await _order_one(channel, seeded.storage_id, host) for host in seeded.hosts]


async def _order_one(channel: aio.Channel, storage_id: str, host: Host) -> str:
    stub = storage_service_pb2_grpc.StorageServiceStub(channel)
    wanted = storage_service_pb2.TestStorageRequest(storage_id=storage_id, hypervisor_id=host.hypervisor_id)
    return (await stub.TestStorage(wanted)).job_id


async def _all_ended(channel: aio.Channel) -> None:
    stub = job_service_pb2_grpc.JobServiceStub(channel)
    request = job_service_pb2.ListJobsRequest(states=_LIVE, page_size=1)  # type: ignore[arg-type]  # names of an enum do

    async def none_lives() -> bool:
        return not (await stub.ListJobs(request)).jobs

    await wait_until_async(none_lives, 300, "all jobs to end")


def _controller(folder: Path) -> Controller:
    ports = {"listen": f"127.0.0.1:{free_port()}", "agent_listen": f"127.0.0.1:{free_port()}"}
    return Controller(folder / "controller", log_level="info", tick_seconds=60, **ports)


def _url(controller: Controller) -> str:
    return f"sqlite:///{controller.state}/controller.db"


def _rss_mib(controller: Controller) -> float:
    assert controller.process is not None
    status = Path(f"/proc/{controller.process.pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


def _seconds(run: Callable[[], Any]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _p99(values: Sequence[float]) -> float:
    return sorted(values)[max(0, len(values) * 99 // 100 - 1)]
