"""The engine process and its settings, seen from outside: jobs side by side, priorities, limits, and grants while it runs."""

import functools
import os
import random
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from engine import worker as worker_module
from engine.ids import new_id
from engine.jobs import Outcome, run_job
from engine.spec import Job, Operation, Settings
from engine.units import MB, MIB
from engine.work import Pool, Work
from engine.worker import Events, Worker
from tests.engine.engine_process import EngineProcess, Meter, bytes_below, bytes_read, io_priority, priorities
from tests.engine.rig import Rig, digest
from tests.servers.guest import BlankDomain, DiskFile
from tests.waiting import wait_until

NOBODY = "01a20693-bb1d-7000-8000-00000000dead"


def stopped(blank_domain: Any, path: Path, size_bytes: int = 8 * MIB) -> BlankDomain:
    """Return a stopped domain with a raw disk of random bytes."""
    path.write_bytes(random.Random(str(path)).randbytes(size_bytes))
    made: BlankDomain = blank_domain([DiskFile("vda", path, "raw")], running=False)
    return made


def backup_of(rig: Rig, uuid: str) -> Job:
    return Job(new_id(datetime.now(UTC)), backup=rig.backup_job(uuid))


def operation(rig: Rig, settings: Settings, concurrency: int = 1) -> Operation:
    return replace(rig.operation(Job("-")), settings=settings, concurrency=concurrency)


# ---- side by side ----------------------------------------------------------------------------------------------------------


@pytest.mark.feature("P1", "P2", "X13")
def test_jobs_run_side_by_side_and_one_failure_leaves_the_others_alone(
    tmp_path: Path, libvirtd: Any, blank_domain: Any
) -> None:
    domains = [stopped(blank_domain, tmp_path / f"{name}.raw") for name in "abc"]
    rig = Rig.make(tmp_path, libvirtd.uri)
    jobs = [backup_of(rig, uuid) for uuid in (domains[0].uuid, NOBODY, domains[1].uuid, domains[2].uuid)]
    with EngineProcess(tmp_path / "process", operation(rig, Settings(read_limit=8 * MB), 2), jobs) as engine:
        finished = {one["job_id"]: one for one in engine.wait()}
    states = [finished[job.job_id]["state"] for job in jobs]
    assert states == ["completed", "failed", "completed", "completed"]
    assert finished[jobs[1].job_id]["failure"]["reason"] == "DOMAIN_NOT_FOUND"
    running, most = 0, 0
    for event in engine.events():
        running += {"started": 1, "finished": -1}.get(event["type"], 0)
        most = max(most, running)
    assert most == 2
    for domain, job in zip(domains, (jobs[0], jobs[2], jobs[3]), strict=True):
        assert job.backup is not None
        restored = rig.restore_to(tmp_path / domain.name, domain.uuid, job.backup.backup_id)
        assert digest(restored["vda"]) == digest(domain.disks[0].path)


@pytest.mark.feature("P1", "P7")
def test_the_jobs_of_a_process_share_workers_and_limits_and_compress_for_themselves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    works: list[Work] = []

    def run_job(job: Job, operation: Operation, work: Work) -> Outcome:
        works.append(work)
        return Outcome("completed", None, [], None)

    monkeypatch.setattr(worker_module, "run_job", run_job)
    with (tmp_path / "events").open("wb") as events:
        jobs = tuple(Job(f"job-{number}") for number in range(5))
        one = Worker(operation_of(Rig.make(tmp_path), jobs), Events(events.fileno()))
        one.control({"type": "grant", "workers": 3, "read_limit": 5, "upload_limit": 7})
        one.control({"type": "grant", "workers": 3, "read_limit": -5, "upload_limit": 7})  # not obeyed
        for thread in one.start():
            thread.join(10)
    assert len(works) == 5
    assert len({id(work.workers) for work in works}) == len({id(work.read) for work in works}) == 1
    assert len({id(work.upload) for work in works}) == 1
    assert len({id(work.compressing) for work in works}) == 5
    assert (works[0].workers.count, works[0].read.rate, works[0].upload.rate) == (3, 5, 7)


def operation_of(rig: Rig, jobs: tuple[Job, ...]) -> Operation:
    return replace(rig.operation(jobs[0]), jobs=jobs, concurrency=2)


# ---- priorities ------------------------------------------------------------------------------------------------------------


@pytest.mark.feature("P3", "P4")
@pytest.mark.parametrize(
    ("priority", "nice", "io"), [("low", 10, 2 << 13 | 7), ("idle", 19, 3 << 13), ("normal", None, None)]
)
def test_priorities_hold_for_every_thread_and_child_of_every_job(
    tmp_path: Path, libvirtd: Any, blank_domain: Any, priority: Any, nice: int | None, io: int | None
) -> None:
    """Two jobs one after the other: what the second one starts has the priorities too."""
    domains = [stopped(blank_domain, tmp_path / f"{name}.raw", 4 * MIB) for name in "ab"]
    rig = Rig.make(tmp_path, libvirtd.uri)
    settings = Settings(read_limit=4 * MB, io_priority=priority, cpu_priority=priority)
    ours = next(iter(priorities_of_this_thread()))
    expected = (ours[0] if nice is None else nice, ours[1] if io is None else io)
    with EngineProcess(
        tmp_path / "process", operation(rig, settings), [backup_of(rig, domain.uuid) for domain in domains]
    ) as engine:
        servers: set[int] = set()
        for job in (1, 2):
            engine.wait_event("started", job)
            seen = wait_until(functools.partial(_new_servers, engine, servers), 30, "the job's qemu-nbd")
            servers |= seen
            wait_until(lambda: len(list(Path(f"/proc/{engine.pid}/task").iterdir())) >= 5, 10, "its worker threads")
            for pid in (engine.pid, *seen):
                found = priorities(pid)
                assert found == {expected}, f"{pid} of {engine.pid}: {found}"
        assert [one["state"] for one in engine.wait()] == ["completed", "completed"]


def _new_servers(engine: EngineProcess, known: set[int]) -> set[int]:
    return set(engine.children("qemu-nbd")) - known


def priorities_of_this_thread() -> set[tuple[int, int]]:
    return {(os.getpriority(os.PRIO_PROCESS, 0), io_priority(threading.get_native_id()))}


# ---- limits ----------------------------------------------------------------------------------------------------------------


@pytest.mark.feature("P8", "P9")
def test_both_limits_hold_at_the_disk_and_at_the_storage_for_two_servers_together(
    tmp_path: Path, libvirtd: Any, blank_domain: Any
) -> None:
    """In real time: what qemu-nbd reads and what lies on the storage, every 20 ms, over any 10 s of about 12."""
    rate, size = 4 * MB, 22 * MIB
    domains = [stopped(blank_domain, tmp_path / f"{name}.raw", size) for name in "ab"]
    rig = Rig.make(tmp_path, libvirtd.uri)
    jobs = [backup_of(rig, domain.uuid) for domain in domains]
    settings = Settings(read_limit=rate, upload_limit=rate)
    with EngineProcess(tmp_path / "process", operation(rig, settings, 2), jobs) as engine:
        servers = wait_until(
            lambda: engine.children("qemu-nbd") if len(engine.children("qemu-nbd")) == 2 else [], 30, "both"
        )
        opened = bytes_read(servers)
        begun = time.monotonic()
        with (
            Meter(lambda: bytes_below(tmp_path / "storage")) as stored,
            Meter(lambda: max(opened, bytes_read(servers))) as read,
        ):
            states = [one["state"] for one in engine.wait()]
        took = time.monotonic() - begun
    assert states == ["completed", "completed"]
    assert stored.samples[-1][1] >= 2 * size
    assert took >= 2 * size / rate * 0.95
    assert stored.most(10) <= rate * 10 * 1.05
    assert rate * 10 * 0.5 <= read.most(10) <= rate * 10 * 1.05
    assert stored.most(10) >= rate * 10 * 0.9  # it is used, too


# ---- grants ----------------------------------------------------------------------------------------------------------------


@pytest.mark.feature("P1", "P8", "P9")
def test_new_rates_are_obeyed_within_a_second_also_by_who_sleeps(
    tmp_path: Path, libvirtd: Any, blank_domain: Any
) -> None:
    domain = stopped(blank_domain, tmp_path / "a.raw", 48 * MIB)
    rig = Rig.make(tmp_path, libvirtd.uri)
    storage = tmp_path / "storage"
    settings = Settings(upload_limit=1000)  # a portion of 4 KiB is four seconds of sleep
    with EngineProcess(tmp_path / "process", operation(rig, settings), [backup_of(rig, domain.uuid)]) as engine:
        wait_until(lambda: list(storage.rglob("*.data*")), 30, "the upload's begin")
        with Meter(lambda: bytes_below(storage)) as stored:
            asleep = bytes_below(storage)
            assert asleep < 100_000

            engine.grant(upload=4 * MB)
            wait_until(lambda: bytes_below(storage) > asleep + MB, 1.0 + 0.5, "what a second of the new rate brings")

            engine.grant(upload=100_000)
            changed = time.monotonic()
            wait_until(lambda: time.monotonic() >= changed + 2.5, 5, "two seconds of the lower rate")
            slow = [one for one in stored.samples if changed + 1 <= one[0] <= changed + 2.5]
            assert slow[-1][1] - slow[0][1] <= 100_000 * 1.5 * 1.05 + 10_000  # a burst

            engine.grant(read=2 * MB)
            changed = time.monotonic()
            wait_until(lambda: time.monotonic() >= changed + 2.5, 5, "two seconds under the read limit")
            fast = [one for one in stored.samples if changed + 1 <= one[0] <= changed + 2.5]
            assert fast[-1][1] - fast[0][1] <= 1.5 * 2 * MB + 3 * 4 * MIB  # what was read before

            engine.grant()
            assert [one["state"] for one in engine.wait()] == ["completed"]


@pytest.mark.feature("P1", "P8")
def test_the_share_granted_before_the_start_holds_from_the_first_byte(
    tmp_path: Path, libvirtd: Any, blank_domain: Any
) -> None:
    domain = stopped(blank_domain, tmp_path / "a.raw")
    rig = Rig.make(tmp_path, libvirtd.uri)
    engine = EngineProcess(tmp_path / "process", operation(rig, Settings()), [backup_of(rig, domain.uuid)])
    engine.grant(upload=1000)
    with engine:
        wait_until(lambda: list((tmp_path / "storage").rglob("*.data*")), 30, "the upload's begin")
        begun = time.monotonic()
        wait_until(lambda: time.monotonic() > begun + 0.5, 5, "half a second")
        assert bytes_below(tmp_path / "storage") < 100_000
        engine.grant()
        assert [one["state"] for one in engine.wait()] == ["completed"]


@pytest.mark.feature("P1")
def test_a_new_number_of_workers_is_obeyed_within_a_second(tmp_path: Path, libvirtd: Any, blank_domain: Any) -> None:
    """How many work on frames while a real disk is read, slowly enough that each is in the middle of one."""
    rig = Rig.make(tmp_path, libvirtd.uri)
    settings = Settings(workers=4, compression_threads=2, read_limit=6 * MB)  # so that four frames are in memory
    pool, job = Pool(settings), backup_of(rig, stopped(blank_domain, tmp_path / "a.raw", 48 * MIB).uuid)
    ended: list[Outcome] = []

    def run() -> None:
        ended.append(run_job(job, rig.operation(job), Work(rig.report, settings, None, pool)))

    thread = threading.Thread(target=run)
    thread.start()
    try:
        with Meter(lambda: len(pool.workers._inside)) as working:
            wait_until(lambda: len(pool.workers._inside) == 4, 30, "four workers")
            for count in (1, 3):
                pool.grant(count, settings.read_limit, 0)
                changed = time.monotonic()
                wait_until(lambda: time.monotonic() >= changed + 1.5, 5, "half a second beyond the first")  # noqa: B023  # it ends here
                seen = [value for at, value in working.samples if at >= changed + 1]
                assert max(seen) == count
    finally:
        pool.grant(4, 0, 0)
        thread.join(60)
    assert [one.state for one in ended] == ["completed"]
