"""A whole test of a storage: the way in, whose repository lies there, and the steps of storage/check.py. One result in any case."""

import dataclasses
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from engine.errors import BackupManagerError, ObjectNotFound
from engine.format import names
from engine.format.markers import Repository
from engine.repository import open_repository
from engine.results import TestResult, TestStep
from engine.spec import StorageSpec
from engine.storage.base import Storage
from engine.storage.check import Trial, storage_test
from engine.storage.open import open_storage
from engine.work import Stop


def try_storage(spec: StorageSpec, stop: Stop, begin: Callable[[str], None], now: datetime) -> TestResult:
    """Return the steps of a test that went well; an empty storage is initialized if the spec says as which repository.

    `begin` hears the name of each step before it is done. Raises the error of the step that failed, with what is known by
    then as its `result`.
    """
    trial, host_key = Trial(begin), ""
    try:
        with trial.step("connect"):
            opened = stop.obtain(lambda: open_storage(spec), Storage.close)
        with opened as storage, stop.waking(storage.interrupt):
            host_key = storage.host_key
            trial.adapt(storage)
            with trial.step("repository"):
                _see_repository(storage, spec, now)
            storage_test(storage, trial)
    except BackupManagerError as error:
        error.result = dataclasses.asdict(_result(trial, host_key))
        raise
    return _result(trial, host_key)


def _see_repository(storage: Storage, spec: StorageSpec, now: datetime) -> None:
    """Make sure of the repository, or make it; where the spec names none, one that is there has to be readable."""
    if spec.repository_id:
        open_repository(storage, spec, now)
        return
    with suppress(ObjectNotFound):
        Repository.load(storage.get(names.REPOSITORY), storage.label)


def _result(trial: Trial, host_key: str) -> TestResult:
    steps = [TestStep(one.name, one.seconds, one.bytes_per_second, one.failed) for one in trial.steps]
    return TestResult(steps, host_key, trial.pending, list(trial.hints))
