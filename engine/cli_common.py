"""What bm-engine's verbs share: the storage file, the key, who a server is, running a job here, and how it ends for a script."""

import argparse
import getpass
import logging
import os
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import Any

from engine.cli import VERBS, print_json
from engine.cli_storage import load_storage_file
from engine.console import ConsoleReport
from engine.errors import (
    BackupManagerError,
    BackupNotFound,
    InvalidSpec,
    KeyMissing,
    ObjectNotFound,
    RepositoryMissing,
)
from engine.format import names
from engine.format.crypto import StorageKey
from engine.format.keys import unwrap_key
from engine.format.markers import Repository
from engine.ids import is_id, new_id
from engine.jobs import Outcome, run_job
from engine.memory import keep_one_pool
from engine.reindex import reindex
from engine.repository import read_keys
from engine.spec import Job, Operation, Settings, StorageSpec
from engine.storage.base import Storage
from engine.storage.open import open_storage
from engine.work import Stop, Work, in_background

CANCELLED = 8
_EXIT_BY_REASON = {
    2: {"INVALID_FIELD"},
    3: {
        "DOMAIN_NOT_FOUND",
        "DISK_NOT_FOUND",
        "BACKUP_NOT_FOUND",
        "OBJECT_NOT_FOUND",
        "REPOSITORY_MISSING",
        "STORAGE_BUCKET_NOT_FOUND",
        "STORAGE_PATH_INVALID",
    },
    4: {
        "HOST_ENROLLED",
        "VM_BUSY",
        "VM_STATE",
        "STILL_NEEDED",
        "TARGET_FAILED",
        "DISK_MISMATCH",
        "REPOSITORY_FOREIGN",
        "OBJECT_EXISTS",
        "TICKET_EXPIRED",
        "TICKET_REVOKED",
    },
    5: {
        "WRONG_KEY",
        "KEY_MISSING",
        "STORAGE_PERMISSION_DENIED",
        "STORAGE_LOGIN_FAILED",
        "STORAGE_HOST_KEY_CHANGED",
        "STORAGE_UNTRUSTED",
        "TICKET_EXPOSED",
    },
    6: {"STORAGE_UNREACHABLE", "STORAGE_THROTTLED", "LIBVIRT_UNREACHABLE"},
    7: {"FORMAT_INVALID", "FRAME_CORRUPT", "SEGMENT_CORRUPT", "MANIFEST_CORRUPT", "CHAIN_BROKEN", "VERIFY_FAILED"},
}


def run(options: argparse.Namespace) -> int:
    """Do what was asked and return the exit status; the verb's own module is loaded now, and no other."""
    keep_one_pool()
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr, format="%(levelname)s %(message)s")
    module, _, function = VERBS[options.verb].partition(":")
    verb: Callable[[argparse.Namespace], int] = getattr(import_module(module), function)
    try:
        return verb(options)
    except BackupManagerError as error:
        return refuse(options, error.reason, error.message, error.facts)
    except KeyboardInterrupt:
        return CANCELLED


def refuse(options: argparse.Namespace, reason: str, message: str, facts: dict[str, str]) -> int:
    if options.output == "json":
        print_json({"error": {"reason": reason, "message": message, "facts": facts}})
    print(f"bm-engine: {message} [{reason}]", file=sys.stderr)
    return exit_status(reason)


def exit_status(reason: str) -> int:
    """Return the exit status that a reason stands for; 1 for those without one of their own."""
    return next((status for status, reasons in _EXIT_BY_REASON.items() if reason in reasons), 1)


# ---- storage and keys --------------------------------------------------------------------------------------------------


def known(storage: Storage, target: StorageSpec) -> StorageSpec:
    """Return `target` with the ids and keys of the repository that lies there. Raises RepositoryMissing."""
    try:
        found = Repository.load(storage.get(names.REPOSITORY), storage.label)
    except ObjectNotFound as error:
        raise RepositoryMissing(storage=storage.label) from error
    keys = read_keys(storage)
    wrapped = {key_id: key.dump().decode() for key_id, key in keys.items()}
    key_id = max(keys, default="")
    return replace(
        target, repository_id=found.repository_id, installation_id=found.installation_id, wrapped_keys=wrapped, key_id=key_id,
        initialized=True,
    )  # fmt: skip


def passphrase(options: argparse.Namespace, key_id: str) -> str:
    if options.passphrase_file:
        try:
            return Path(options.passphrase_file).read_text().rstrip("\n")
        except OSError as error:
            raise InvalidSpec(field="passphrase_file", problem=str(error)) from error
    if "BM_PASSPHRASE" in os.environ:
        return os.environ["BM_PASSPHRASE"]
    if not sys.stdin.isatty():
        raise KeyMissing(key_id=key_id)
    return getpass.getpass("Passphrase: ")


def server_keys(key: StorageKey | None, server_id: str) -> dict[str, str]:
    return {key.key_id: key.server_key(server_id).secret.hex()} if key is not None else {}


def find_server(storage: Storage, name: str) -> str:
    """Return the server that `name` means: its id, or the domain UUID or name in any of its backups.

    Raises BackupNotFound, and InvalidSpec when several servers have or had that name: the wrong one must not be written over.
    """
    report = ConsoleReport(quiet=True)
    reindex(storage, name if is_id(name) else "", {}, Work(report, Settings()))
    if is_id(name) and report.records:
        return name
    if is_id(name):
        reindex(storage, "", {}, Work(report, Settings()))
    found = {
        str(record["server_id"])
        for record in report.records
        if name in {record["backup"]["domain_uuid"], record["backup"]["domain_name"]}
    }
    if len(found) > 1:
        raise InvalidSpec(field=name, problem=f"means several servers, use the id of one: {', '.join(sorted(found))}")
    if not found:
        raise BackupNotFound(backup_id="any", server_id=name)
    return found.pop()


# ---- running -----------------------------------------------------------------------------------------------------------


def open_target(options: argparse.Namespace, *, want_key: bool = True) -> tuple[StorageSpec, StorageKey | None]:
    """Return the storage's spec with its repository's ids, and its key, which is opened before anything else is done."""
    target, opened = open_target_meanwhile(options, want_key=want_key)
    return target, opened()


def open_target_meanwhile(
    options: argparse.Namespace, *, want_key: bool = True
) -> tuple[StorageSpec, Callable[[], StorageKey | None]]:
    """As `open_target`, but the key is opened by a thread of its own, which takes 0.1 s; what is returned waits for it.

    The passphrase has been asked for then. The call raises WrongKey.
    """
    target = load_storage_file(options.storage)
    with open_storage(target) as storage:
        target = known(storage, target)
        if not target.key_id or not want_key:
            return target, lambda: None
        wrapped = read_keys(storage)[target.key_id]
    words = passphrase(options, target.key_id)
    return target, in_background(lambda: unwrap_key(wrapped, words), "open-key").result


def make_job(**verb: Any) -> Job:
    return Job(new_id(datetime.now(UTC)), **verb)


def run_verb(
    options: argparse.Namespace,
    job: Job,
    target: StorageSpec,
    settings: Settings,
    show: Callable[[dict[str, Any]], None],
    extra: dict[str, Any] | None = None,
) -> int:
    """Run a job here and now, and print how it ended; `extra` goes into the JSON document too."""
    operation = Operation(
        operation_id=job.job_id, storage=target, jobs=(job,), settings=settings, host=os.uname().nodename,
        libvirt_uri=getattr(options, "libvirt", ""), scratch_folder=getattr(options, "scratch", ""),
        lock_folder=getattr(options, "locks", ""), catalog_folder=getattr(options, "catalog", ""), stop_grace_seconds=getattr(options, "stop_grace", 60),
    )  # fmt: skip
    report, stop = ConsoleReport(quiet=options.quiet), stopped_by_signals()
    outcome = run_job(job, operation, Work(report, settings, stop))
    report.close()
    return conclude(options, outcome, show, extra)


def stopped_by_signals() -> Stop:
    """Return what Ctrl-C and SIGTERM set from now on."""
    stop = Stop()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    return stop


def conclude(
    options: argparse.Namespace,
    outcome: Outcome,
    show: Callable[[dict[str, Any]], None],
    extra: dict[str, Any] | None = None,
) -> int:
    """Print how a job ended and return the exit status."""
    if options.output == "json":
        ended = {"state": outcome.state, "failure": outcome.failure, "warnings": outcome.warnings}
        print_json({**ended, "result": outcome.result, **(extra or {})})
    elif outcome.result is not None:
        show(outcome.result)
    if outcome.state == "cancelled":
        print("bm-engine: cancelled; nothing of it remains", file=sys.stderr)
        return CANCELLED
    if outcome.failure is not None:
        failure = outcome.failure
        print(f"bm-engine: {failure['message']} [{failure['reason']}] during {failure['step']}", file=sys.stderr)
        return exit_status(failure["reason"])
    return 0
