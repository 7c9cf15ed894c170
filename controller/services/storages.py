"""Storages: where backups go. Settings are checked when they are saved; trying them out and reading them again are jobs."""

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from clients.gen.backupmanager.v1 import storage_pb2, storage_service_pb2_grpc
from clients.gen.backupmanager.v1 import storage_service_pb2 as messages
from controller import health, orders, schedules, storages, totals
from controller.context import Context as OrderContext
from controller.db import secrets
from controller.db.secrets import Vault
from controller.errors import InvalidField, StorageImmutable
from controller.orders import HealthOrder, ReindexOrder, TestOrder
from controller.rules import retention
from controller.security.caller import current_caller
from controller.services import check, convert, paging, settings_check, standing, storage_check
from controller.services.parts import Context, Parts
from controller.storages import NewKey, NewStorage, Storage, StorageChange

_CHANGEABLE = (
    "name",
    "local",
    "sftp",
    "compression",
    "limits",
    "enabled",
    "read_only",
    "encryption.enabled",
    "retention",
    "keep_last",
    "delete_hypervisor_id",
    "defaults",
)


@dataclass(frozen=True, slots=True)
class _Update:
    """A request to change a storage, checked as far as it can be without knowing the storage."""

    reference: str
    etag: str
    kind: str  # of the config that is given, "" for none
    change: StorageChange


class StorageServicer(storage_service_pb2_grpc.StorageServiceServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def CreateStorage(
        self, request: messages.CreateStorageRequest, context: Context
    ) -> messages.CreateStorageResponse:
        new = _new(request)
        if new.type == "sftp":
            await _check_key(new.secrets)
        key = await self._make_key(new.secrets) if new.encryption_enabled else None
        record = await self._parts.database.run(storages.create, new, key, self._parts.vault, self._parts.now())
        return messages.CreateStorageResponse(storage=await self._shown(record))

    async def ListStorages(
        self, request: messages.ListStoragesRequest, context: Context
    ) -> messages.ListStoragesResponse:
        page = paging.page("storages", (), request.page_size, request.page_token, (str,))
        rows = await self._parts.database.run(_list, page.after, page.size + 1)
        filled = paging.fill(page, rows, lambda row: convert.storage(*row), lambda row: (row[0].name,))
        return messages.ListStoragesResponse(storages=filled.messages, next_page_token=filled.next_page_token)

    async def GetStorage(self, request: messages.GetStorageRequest, context: Context) -> messages.GetStorageResponse:
        record = await self._parts.database.run(storages.find, check.reference("storage_id", request.storage_id))
        return messages.GetStorageResponse(storage=await self._shown(record))

    async def UpdateStorage(
        self, request: messages.UpdateStorageRequest, context: Context
    ) -> messages.UpdateStorageResponse:
        update = _update(request)
        present, kept = await self._parts.database.run(_present, update, self._parts.vault)
        change = _completed(update, present, request.secrets, self._parts.vault)
        if any(name.startswith("sftp_") for name in change.secrets):
            await _check_key({**kept, **change.secrets})
        _check_encryption(change, present)
        key = await self._make_key(change.secrets) if "encryption_passphrase" in change.secrets else None
        # What was checked must be what is changed: the etag of the storage as it was read stands in for one not given.
        record = await self._parts.database.run(
            _change,
            present.storage_id,
            change,
            key,
            update.etag or present.etag,
            self._parts.vault,
            self._parts.now(),
        )
        return messages.UpdateStorageResponse(storage=await self._shown(record))

    async def DeleteStorage(
        self, request: messages.DeleteStorageRequest, context: Context
    ) -> messages.DeleteStorageResponse:
        reference = check.reference("storage_id", request.storage_id)
        await self._parts.database.run(_delete, reference, self._parts.now())
        return messages.DeleteStorageResponse()

    async def TestStorage(self, request: messages.TestStorageRequest, context: Context) -> messages.TestStorageResponse:
        order = TestOrder(
            storage_id=check.reference("storage_id", request.storage_id),
            hypervisor_id=check.reference("hypervisor_id", request.hypervisor_id),
            request_id=check.request_id(request.request_id),
        )
        return messages.TestStorageResponse(job_id=await self._start(order))

    async def ReindexStorage(
        self, request: messages.ReindexStorageRequest, context: Context
    ) -> messages.ReindexStorageResponse:
        order = ReindexOrder(
            storage_id=check.reference("storage_id", request.storage_id),
            hypervisor_id=check.reference("hypervisor_id", request.hypervisor_id),
            server_id=check.identifier("server_id", request.server_id) if request.server_id else "",
            request_id=check.request_id(request.request_id),
        )
        return messages.ReindexStorageResponse(job_id=await self._start(order))

    async def ReconcileStorage(
        self, request: messages.ReconcileStorageRequest, context: Context
    ) -> messages.ReconcileStorageResponse:
        order = ReindexOrder(
            storage_id=check.reference("storage_id", request.storage_id),
            hypervisor_id=check.reference("hypervisor_id", request.hypervisor_id, optional=True),
            request_id=check.request_id(request.request_id),
        )
        return messages.ReconcileStorageResponse(job_id=await self._start(order))

    async def ExportStorageKey(
        self, request: messages.ExportStorageKeyRequest, context: Context
    ) -> messages.ExportStorageKeyResponse:
        reference = check.reference("storage_id", request.storage_id)
        record, keys = await self._parts.database.run(_with_keys, reference)
        return messages.ExportStorageKeyResponse(
            storage=await self._shown(record),
            keys=[_wrapped_key(one) for one in keys],
            installation_id=self._parts.installation.installation_id,
            export_time=convert.time(self._parts.now()),
        )

    async def CheckStorage(
        self, request: messages.CheckStorageRequest, context: Context
    ) -> messages.CheckStorageResponse:
        order = HealthOrder(
            storage_id=check.reference("storage_id", request.storage_id),
            hypervisor_id=check.reference("hypervisor_id", request.hypervisor_id, optional=True),
            request_id=check.request_id(request.request_id),
        )
        return messages.CheckStorageResponse(job_id=await self._start(order))

    async def ListStorageChecks(
        self, request: messages.ListStorageChecksRequest, context: Context
    ) -> messages.ListStorageChecksResponse:
        reference = check.reference("storage_id", request.storage_id)
        page = paging.page("storage checks", (reference,), request.page_size, request.page_token, (int, str))
        rows = await self._parts.database.run(_checks, reference, page.after, page.size + 1)
        filled = paging.fill(page, rows, convert.storage_check, lambda row: (health.rank_of(row), row.hypervisor_id))
        return messages.ListStorageChecksResponse(checks=filled.messages, next_page_token=filled.next_page_token)

    async def ListServerUsages(
        self, request: messages.ListServerUsagesRequest, context: Context
    ) -> messages.ListServerUsagesResponse:
        reference = check.reference("storage_id", request.storage_id)
        page = paging.page("server usages", (reference,), request.page_size, request.page_token, (int, str))
        rows = await self._parts.database.run(_usages, reference, page.after, page.size + 1)
        filled = paging.fill(page, rows, convert.server_usage, lambda row: (row.stored_bytes, row.server_id))
        return messages.ListServerUsagesResponse(usages=filled.messages, next_page_token=filled.next_page_token)

    async def _shown(self, record: Storage) -> storage_pb2.Storage:
        return convert.storage(*(await self._parts.database.run(standing.of_storages, [record]))[0])

    async def _start(self, order: TestOrder | ReindexOrder | HealthOrder) -> str:
        context = OrderContext(self._parts.limits, self._parts.vault, current_caller().name, self._parts.now())
        return await self._parts.database.run(orders.start, order, context)

    async def _make_key(self, given: Mapping[str, str]) -> NewKey:
        if "encryption_passphrase" not in given:
            raise InvalidField(field="secrets.encryption_passphrase", problem="is needed for encryption")
        return await asyncio.to_thread(storages.make_key, given["encryption_passphrase"], self._parts.now())


def _with_keys(reference: str) -> tuple[Storage, list[storages.WrappedKey]]:
    record = storages.find(reference)
    return record, storages.closed_keys(record.storage_id)


def _wrapped_key(key: storages.WrappedKey) -> messages.WrappedKey:
    digest = hashlib.sha256(key.text.encode()).hexdigest()
    return messages.WrappedKey(
        key_id=key.key_id, text=key.text, sha256=digest, create_time=convert.time(key.create_time)
    )


def _list(after: tuple[str] | None, limit: int) -> list[standing.Standing]:
    return standing.of_storages(storages.list_storages(after=after, limit=limit))


def _checks(reference: str, after: tuple[int, str] | None, limit: int) -> list[health.Found]:
    return health.list_checks(storages.find(reference).storage_id, after=after, limit=limit)


def _usages(reference: str, after: tuple[int, str] | None, limit: int) -> list[totals.ServerUsage]:
    return totals.list_server_usages(storages.find(reference).storage_id, after=after, limit=limit)


# ---- making one --------------------------------------------------------------------------------------------------------


def _new(request: messages.CreateStorageRequest) -> NewStorage:
    """Return what is to be made, every field checked but the private key."""
    name = check.name("name", request.name)
    kind = request.WhichOneof("config")
    if kind is None:
        raise InvalidField(field="config", problem="is missing")
    if kind == "local" and not request.allow_local:
        raise InvalidField(
            field="allow_local", problem="is needed: a local folder does not survive the loss of its hypervisor"
        )
    given = storage_check.secrets(kind, request.secrets)
    if "encryption_passphrase" in given and not request.encryption_enabled:
        raise InvalidField(field="secrets.encryption_passphrase", problem="is given, but encryption is not enabled")
    compression = request.compression if request.HasField("compression") else None
    return NewStorage(
        name=name,
        type=kind,
        config=convert.to_json(_config(kind, request)),
        compression=convert.to_json(storage_check.compression(compression)),
        limits=convert.to_json(storage_check.limits(request.limits)),
        encryption_enabled=request.encryption_enabled,
        retention=convert.policy_json(request.retention),
        keep_last=retention.checked_keep_last(
            request.keep_last if request.HasField("keep_last") else retention.KEEP_LAST_DEFAULT
        ),
        delete_hypervisor_id=_deleter(request.delete_hypervisor_id),
        defaults=settings_check.settings(request.defaults, "defaults"),
        secrets=given,
    )


def _deleter(reference: str) -> str:
    return check.reference("delete_hypervisor_id", reference, optional=True)


def _config(kind: str, message: Any) -> storage_check.Config:
    """Return the checked config of a request or a storage; both have the same fields."""
    return storage_check.local(message.local) if kind == "local" else storage_check.sftp(message.sftp)


async def _check_key(given: Mapping[str, str]) -> None:
    """Look at an SSH key on a thread of its own: opening one with a passphrase is made to be slow."""
    pem, passphrase = given.get("sftp_private_key", ""), given.get("sftp_key_passphrase", "")
    await asyncio.to_thread(storage_check.private_key, pem, passphrase)


# ---- changing one ------------------------------------------------------------------------------------------------------


def _update(request: messages.UpdateStorageRequest) -> _Update:
    """Return what the update mask asks for. New secrets alone need no mask."""
    new = request.storage
    reference = check.reference("storage.storage_id", new.storage_id)
    only_secrets = not request.update_mask.paths and bool(request.secrets.ListFields())
    paths = frozenset[str]() if only_secrets else check.mask(request.update_mask, _CHANGEABLE)
    kinds = sorted(paths & {"local", "sftp"})
    if len(kinds) > 1:
        raise InvalidField(field="update_mask", problem="names two types of storage")
    kind = kinds[0] if kinds else ""
    change = StorageChange(
        name=check.name("storage.name", new.name) if "name" in paths else None,
        config=convert.to_json(_config(kind, new)) if kind else None,
        compression=convert.to_json(storage_check.compression(new.compression)) if "compression" in paths else None,
        limits=convert.to_json(storage_check.limits(new.limits)) if "limits" in paths else None,
        enabled=new.enabled if "enabled" in paths else None,
        read_only=new.read_only if "read_only" in paths else None,
        encryption_enabled=new.encryption.enabled if "encryption.enabled" in paths else None,
        retention=convert.policy_json(new.retention) if "retention" in paths else None,
        keep_last=retention.checked_keep_last(new.keep_last) if "keep_last" in paths else None,
        delete_hypervisor_id=_deleter(new.delete_hypervisor_id) if "delete_hypervisor_id" in paths else None,
        defaults=settings_check.settings(new.defaults, "defaults") if "defaults" in paths else None,
        secrets={},
    )
    return _Update(reference, check.title("storage.etag", new.etag), kind, change)


def _change(
    storage_id: str, change: StorageChange, key: NewKey | None, etag: str, vault: Vault, now: datetime
) -> Storage:
    """Change a storage, and let its schedules follow."""
    changed = storages.update(storage_id, change, key, etag, vault, now)
    schedules.storage_changed(storage_id, now)
    return changed


def _present(update: _Update, vault: Vault) -> tuple[Storage, dict[str, str]]:
    """Return the storage as it is, with the secrets of its connection, which a new half of a pair is checked against."""
    present = storages.find(update.reference)
    kept = secrets.open_all(vault, "storage", present.storage_id)
    return present, {name: value for name, value in kept.items() if name.startswith("sftp_")}


def _completed(update: _Update, present: Storage, given: messages.StorageSecrets, vault: Vault) -> StorageChange:
    """Return the change as it applies to this storage: its type kept, its pinned host key, and only secrets that are new."""
    if update.kind not in {"", present.type}:
        raise StorageImmutable(field="config")
    new = storage_check.secrets(present.type, given)
    known = {one.name: one.fingerprint for one in present.secrets}
    new = {name: value for name, value in new.items() if vault.fingerprint(value) != known.get(name)}
    return replace(update.change, secrets=new, config=_pinned(update.change.config, present.config))


def _pinned(new: dict[str, Any] | None, old: dict[str, Any]) -> dict[str, Any] | None:
    """Keep the pinned host key of an address that stays: leaving it out of an update must not unpin it (S4)."""
    if new is None or new.get("host_key") or (new.get("host"), new.get("port")) != (old.get("host"), old.get("port")):
        return new
    return {**new, "host_key": old["host_key"]} if old.get("host_key") else new


def _check_encryption(change: StorageChange, present: Storage) -> None:
    enabled = present.encryption_enabled if change.encryption_enabled is None else change.encryption_enabled
    given = "encryption_passphrase" in change.secrets
    if enabled and not given and not present.key_id:
        raise InvalidField(field="secrets.encryption_passphrase", problem="is needed for encryption")
    if given and not enabled:
        raise InvalidField(field="secrets.encryption_passphrase", problem="is given, but encryption is not enabled")


def _delete(reference: str, now: datetime) -> None:
    storages.delete(storages.find(reference).storage_id, now)
