"""Storages: where backups go. Settings are checked when they are saved; trying them out and reading them again are jobs."""

import asyncio
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from clients.gen.backupmanager.v1 import storage_pb2, storage_service_pb2_grpc
from clients.gen.backupmanager.v1 import storage_service_pb2 as messages
from controller import health, orders, probes, schedules, storages, tickets, totals
from controller.context import Context as OrderContext
from controller.db import secrets
from controller.db.secrets import Vault
from controller.errors import InvalidField
from controller.order_types import HealthOrder, ReindexOrder, TestOrder
from controller.rules import storage_types
from controller.security.caller import current_caller
from controller.services import check, convert, convert_storages, paging, standing, storage_requests
from controller.services.parts import Context, Parts
from controller.services.storage_checks import types
from controller.storages import NewKey, Storage, StorageChange
from engine.format.crypto import StorageKey


@dataclass(frozen=True, slots=True)
class _Wrapped:
    """A closed key, as it is and as it will be."""

    key_id: str
    before: str
    after: str


class StorageServicer(storage_service_pb2_grpc.StorageServiceServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def CreateStorage(
        self, request: messages.CreateStorageRequest, context: Context
    ) -> messages.CreateStorageResponse:
        new = storage_requests.new(request)
        await asyncio.to_thread(types.check_secrets, new.type, new.secrets)
        key = await self._make_key(new.secrets) if new.encryption_enabled else None
        record = await self._parts.database.run(storages.create, new, key, self._parts.vault, self._parts.now())
        return messages.CreateStorageResponse(storage=await self._shown(record))

    async def ListStorages(
        self, request: messages.ListStoragesRequest, context: Context
    ) -> messages.ListStoragesResponse:
        page = paging.page("storages", (), request.page_size, request.page_token, (str,))
        rows = await self._parts.database.run(_list, page.after, page.size + 1)
        filled = paging.fill(page, rows, lambda row: convert_storages.storage(*row), lambda row: (row[0].name,))
        return messages.ListStoragesResponse(storages=filled.messages, next_page_token=filled.next_page_token)

    async def GetStorage(self, request: messages.GetStorageRequest, context: Context) -> messages.GetStorageResponse:
        record = await self._parts.database.run(storages.find, check.reference("storage_id", request.storage_id))
        return messages.GetStorageResponse(storage=await self._shown(record))

    async def UpdateStorage(
        self, request: messages.UpdateStorageRequest, context: Context
    ) -> messages.UpdateStorageResponse:
        update = storage_requests.update(request)
        present, kept = await self._parts.database.run(_present, update.reference, self._parts.vault)
        change = storage_requests.completed(update, present, request.secrets, self._parts.vault)
        if set(storage_types.BY_TYPE[present.type].secrets) & set(change.secrets):
            await asyncio.to_thread(types.check_secrets, present.type, {**kept, **change.secrets})
        storage_requests.check_encryption(change, present)
        key = await self._make_key(change.secrets) if "encryption_passphrase" in change.secrets else None
        wrapped = await self._wrapped(present, change.secrets.get("added_passphrase", ""))
        # What was checked must be what is changed: the etag of the storage as it was read stands in for one not given.
        record, revoked = await self._parts.database.run(
            _change,
            present.storage_id,
            change,
            key,
            wrapped,
            update.etag or present.etag,
            self._parts.vault,
            self._parts.now(),
        )
        return messages.UpdateStorageResponse(storage=await self._shown(record), revoked_ticket_count=revoked)

    async def DeleteStorage(
        self, request: messages.DeleteStorageRequest, context: Context
    ) -> messages.DeleteStorageResponse:
        reference = check.reference("storage_id", request.storage_id)
        revoked = await self._parts.database.run(_delete, reference, self._parts.now())
        return messages.DeleteStorageResponse(revoked_ticket_count=revoked)

    async def TestStorage(self, request: messages.TestStorageRequest, context: Context) -> messages.TestStorageResponse:
        order = TestOrder(
            storage_id=check.reference("storage_id", request.storage_id),
            hypervisor_id=check.reference("hypervisor_id", request.hypervisor_id),
            request_id=check.request_id(request.request_id),
        )
        return messages.TestStorageResponse(job_id=await self._start(order))

    async def ProbeStorage(
        self, request: messages.ProbeStorageRequest, context: Context
    ) -> messages.ProbeStorageResponse:
        order, given = storage_requests.probe(request)
        prints = {name: self._parts.vault.fingerprint(value) for name, value in given.items()}
        order = replace(order, secret_fingerprints=prints)
        job_id = await self._parts.database.run(probes.start, order, given, self._parts.vault, self._orders())
        return messages.ProbeStorageResponse(job_id=job_id)

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
        filled = paging.fill(
            page, rows, convert_storages.storage_check, lambda row: (health.rank_of(row), row.hypervisor_id)
        )
        return messages.ListStorageChecksResponse(checks=filled.messages, next_page_token=filled.next_page_token)

    async def ListServerUsages(
        self, request: messages.ListServerUsagesRequest, context: Context
    ) -> messages.ListServerUsagesResponse:
        reference = check.reference("storage_id", request.storage_id)
        page = paging.page("server usages", (reference,), request.page_size, request.page_token, (int, str))
        rows = await self._parts.database.run(_usages, reference, page.after, page.size + 1)
        filled = paging.fill(page, rows, convert_storages.server_usage, lambda row: (row.stored_bytes, row.server_id))
        return messages.ListServerUsagesResponse(usages=filled.messages, next_page_token=filled.next_page_token)

    async def _shown(self, record: Storage) -> storage_pb2.Storage:
        return convert_storages.storage(*(await self._parts.database.run(standing.of_storages, [record]))[0])

    async def _start(self, order: TestOrder | ReindexOrder | HealthOrder) -> str:
        return await self._parts.database.run(orders.start, order, self._orders())

    def _orders(self) -> OrderContext:
        return OrderContext(self._parts.limits, self._parts.vault, current_caller().name, self._parts.now())

    async def _wrapped(self, present: Storage, added: str) -> "_Wrapped | None":
        """Return what a further passphrase makes of the storage's key, None where none is added."""
        if not added:
            return None
        key, before = await self._parts.database.run(_key_of, present, self._parts.vault)
        after = await asyncio.to_thread(storages.with_passphrase, key, before, added, self._parts.now())
        return _Wrapped(key.key_id, before, after)

    async def _make_key(self, given: Mapping[str, str]) -> NewKey:
        if "encryption_passphrase" not in given:
            raise InvalidField(field="secrets.encryption_passphrase", problem="is needed for encryption")
        return await asyncio.to_thread(storages.make_key, given["encryption_passphrase"], self._parts.now())


def _key_of(present: Storage, vault: Vault) -> tuple[StorageKey, str]:
    """Return the key of a storage, opened, and its closed text."""
    key = next(one for one in storages.open_keys(present.storage_id, vault) if one.key_id == present.key_id)
    return key, storages.wrapped_keys(present.storage_id)[key.key_id]


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


def _change(
    storage_id: str,
    change: StorageChange,
    key: NewKey | None,
    wrapped: "_Wrapped | None",
    etag: str,
    vault: Vault,
    now: datetime,
) -> tuple[Storage, int]:
    """Change a storage, and let its schedules follow; how many restore tickets were revoked with the old way in is returned too."""
    if wrapped is not None:
        storages.set_wrapped(storage_id, wrapped.key_id, wrapped.before, wrapped.after)
    before = storages.find(storage_id)
    changed = storages.update(storage_id, change, key, etag, vault, now)
    schedules.storage_changed(storage_id, now)
    if not storage_types.is_another_way_in(before.type, before.config, change.config, change.secrets):
        return changed, 0
    return changed, tickets.revoke_all("storage_changed", now, storage_id=storage_id)


def _present(reference: str, vault: Vault) -> tuple[Storage, dict[str, str]]:
    """Return a storage as it is, with the secrets of its connection, which a new half of a pair is checked against."""
    present = storages.find(reference)
    kept = secrets.open_all(vault, storages.TABLE, present.storage_id)
    names = storage_types.BY_TYPE[present.type].secrets
    return present, {name: value for name, value in kept.items() if name in names}


def _delete(reference: str, now: datetime) -> int:
    """Forget a storage; return how many restore tickets were revoked with it."""
    storage_id = storages.find(reference).storage_id
    storages.delete(storage_id, now)
    return tickets.revoke_all("storage_deleted", now, storage_id=storage_id)
