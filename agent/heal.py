"""Tidying up after an engine that died: thaw the guest, end its block job, remove what it had half written.

The engine itself knows how; it runs once more, in a process of its own, with `--heal`:

    {"libvirt_uri", "domain_uuid", "scratch_folder", "lock_folder", "server_id", "backup_id", "storage"} ── stdin ──► engine
    ◄── stdout: {"done": [sentences], "failed": [sentences], "record": {…} | null}; everything is tidy when nothing failed and
        the exit status is 0. The record is there when the backup was committed before its engine died.
"""

import asyncio
import contextlib
import json
import logging
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from agent.config import Config
from agent.records import Operation
from agent.scrub import Scrubber
from engine.errors import EngineError
from engine.spec import StorageSpec
from engine.units import MIB

log = logging.getLogger(__name__)

HEAL_SECONDS = 180.0  # a guest agent that hangs is asked several times
OUTPUT_BYTES_MAX = 8 * MIB  # a record of a server with very many disks stays far below
SENTENCES_MAX = 20
MARK_SECONDS = 60.0
HEALERS = 4  # guests that do not answer take a minute each, and must not keep the others waiting


class HealFailed(EngineError):
    """Something could not be tidied up yet; it is tried again."""

    reason = "HYPERVISOR_FAILED"
    template = "tidying up after job {job_id} failed: {detail}"


@dataclass(frozen=True, slots=True)
class Healed:
    """`done` are sentences. `record` is what the storage says of the backup, in JSON types, if it is whole.

    `resumable`: all was left as it is, for another engine that goes on with the job.
    """

    done: list[str]
    record: dict[str, Any] | None = None
    resumable: bool = False


def needs_heal(operation: Operation) -> bool:
    """Tell whether a dead engine of this operation can have left anything: in a guest, or half a backup on the storage."""
    return bool(operation.domain_uuid) or operation.verb == "backup"


async def heal(
    config: Config,
    operation: Operation,
    storage: StorageSpec | None,
    scrubber: Scrubber | None = None,
    *,
    resume: bool = False,
) -> Healed:
    """Tidy up; return what was done and found. Raises HealFailed. May be repeated.

    With `resume` nothing but the guest's freeze is undone if another engine can go on with the operation's job.
    `storage` may be None when its credentials are no longer known: what lies there is then left to the orphan rule.
    """
    request = _request(config, operation, storage)
    if resume:
        request["resume_job_id"] = operation.job_id
    text = json.dumps(request).encode()
    try:
        status, output, errors = await _run((*config.engine_command, "--heal"), text)
    except OSError as error:
        raise HealFailed(job_id=operation.job_id, detail=f"the engine does not start: {error.strerror}") from error
    if status != 0:
        last = errors.decode("utf-8", "replace").strip().splitlines()[-1:]
        words = scrubber.text(last[0][:500]) if last and scrubber else ""
        raise HealFailed(job_id=operation.job_id, detail=words or f"exit status {status}")
    answer = _answer(output)
    done, failed = _sentences(answer, "done"), _sentences(answer, "failed")
    for sentence in done:
        log.info("tidied up job_id=%s done=%s", operation.job_id, sentence)
    if failed:
        detail = "; ".join(failed)
        raise HealFailed(job_id=operation.job_id, detail=scrubber.text(detail) if scrubber else detail)
    record = answer.get("record")
    return Healed(done, record if isinstance(record, dict) else None, answer.get("resumable") is True)


def _request(config: Config, operation: Operation, storage: StorageSpec | None) -> dict[str, object]:
    """Only a backup's own data may be removed: the backup that a restore or a check was reading is a good one."""
    request: dict[str, object] = {
        "libvirt_uri": config.libvirt_uri,
        "domain_uuid": operation.domain_uuid,
        "scratch_folder": str(config.scratch_folder),
        "lock_folder": str(config.lock_folder),
        "server_id": operation.server_id,
        "backup_id": operation.backup_id if operation.verb == "backup" else "",
    }
    if storage is not None and operation.verb == "backup":
        request["storage"] = asdict(storage)
    return request


async def heal_marked(config: Config) -> None:
    """Bring back guests that an engine left frozen or paused: at once, and then once a minute. Never returns.

    A mark whose guard lives and that is younger than a minute is left to the guard, or to the engine that is at work.
    """
    turn = asyncio.Semaphore(HEALERS)
    while True:
        marked = await asyncio.to_thread(_left_marks, config.lock_folder)
        await asyncio.gather(*(_heal_mark(config, domain_uuid, turn) for domain_uuid in marked))
        await asyncio.sleep(MARK_SECONDS)


async def _heal_mark(config: Config, domain_uuid: str, turn: asyncio.Semaphore) -> None:
    request = {
        "libvirt_uri": config.libvirt_uri,
        "domain_uuid": domain_uuid,
        "scratch_folder": str(config.scratch_folder),
        "lock_folder": str(config.lock_folder),
    }
    try:
        async with turn:
            status, output, _ = await _run((*config.engine_command, "--heal"), json.dumps(request).encode())
    except OSError as error:
        status, output = -1, str(error).encode()
    answer = _answer(output)
    if status != 0 or answer.get("failed"):
        log.warning("a guest may be frozen still domain=%s detail=%s", domain_uuid, _sentences(answer, "failed"))
    else:
        log.info("a guest was brought back domain=%s", domain_uuid)


def _left_marks(folder: Path) -> list[str]:
    """Return the domains with a mark that nobody guards, or of some age; a time in the future, after a change of the clock, is old."""
    from engine.hypervisor import thaw_guard

    found = []
    for mark in thaw_guard.marks(folder):
        with contextlib.suppress(FileNotFoundError):
            age = time.time() - thaw_guard.mark_path(folder, mark.uuid).stat().st_mtime
            if not mark.guarded() or not 0 <= age < MARK_SECONDS:
                found.append(mark.uuid)
    return found


async def _run(command: tuple[str, ...], text: bytes) -> tuple[int, bytes, bytes]:
    """Return exit status, stdout and stderr; a process that takes too long, or outlives our interest, is killed."""
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        *command, stdin=pipe, stdout=pipe, stderr=pipe, cwd="/", start_new_session=True
    )
    try:
        output, errors = await asyncio.wait_for(process.communicate(text), HEAL_SECONDS)
        return process.returncode or 0, output[:OUTPUT_BYTES_MAX], errors[-OUTPUT_BYTES_MAX:]
    except TimeoutError:
        return -1, b"", b"it took too long"
    finally:
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


def _answer(output: bytes) -> dict[str, Any]:
    try:
        answer = json.loads(output)
    except ValueError:
        answer = None
    return answer if isinstance(answer, dict) else {"failed": ["the engine's answer cannot be read"]}


def _sentences(answer: dict[str, Any], name: str) -> list[str]:
    found = answer.get(name)
    return [str(one) for one in found][:SENTENCES_MAX] if isinstance(found, list) else []
