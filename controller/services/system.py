"""The controller itself: versions, identity, and what it can do."""

from datetime import datetime

from clients.gen.backupmanager.v1 import access_token_pb2, system_service_pb2_grpc
from clients.gen.backupmanager.v1 import system_service_pb2 as messages
from controller import bundles, installation, reconciliation, storages
from controller.agents.hello import PROTOCOL_VERSION
from controller.db import models
from controller.security.caller import current_caller
from controller.services import convert, convert_storages
from controller.services.parts import Context, Parts


class SystemServicer(system_service_pb2_grpc.SystemServiceServicer):
    def __init__(self, parts: Parts) -> None:
        self._parts = parts

    async def GetVersion(self, request: messages.GetVersionRequest, context: Context) -> messages.GetVersionResponse:
        caller = current_caller()
        return messages.GetVersionResponse(
            version=self._parts.version,
            installation_id=self._parts.installation.installation_id,
            protocol_version=PROTOCOL_VERSION,
            token_name=caller.name,
            token_scope=convert.enum_number(access_token_pb2.AccessScope.DESCRIPTOR, caller.scope or ""),
        )

    async def GetCapabilities(
        self, request: messages.GetCapabilitiesRequest, context: Context
    ) -> messages.GetCapabilitiesResponse:
        types = [
            messages.StorageTypeCapabilities(type=name, capabilities=capabilities)
            for name, capabilities in sorted(convert_storages.STORAGE_CAPABILITIES.items())
        ]
        return messages.GetCapabilitiesResponse(storage_types=types)

    async def GetRecovery(self, request: messages.GetRecoveryRequest, context: Context) -> messages.GetRecoveryResponse:
        return await self._parts.database.run(_recovery, self._parts.now())


def _recovery(now: datetime) -> messages.GetRecoveryResponse:
    found = bundles.standing()
    chosen = storages.find(found.storage_id) if found.storage_id else None
    return messages.GetRecoveryResponse(
        storage_id=found.storage_id,
        storage_name=chosen.name if chosen else "",
        newest=_bundle(found.newest),
        writing=found.writing,
        failure=convert.failure(found.failure) if found.failure else None,
        epoch=installation.get().epoch,
        retention_resume_time=convert.time(reconciliation.retention_resume_time(now)),
        blocked_storages=[
            messages.BlockedStorage(storage_id=storage.storage_id, name=storage.name, hypervisor_ids=places)
            for storage, places in bundles.blocked()
        ],
    )


def _bundle(row: models.Bundle | None) -> messages.RecoveryBundle | None:
    if row is None:
        return None
    return messages.RecoveryBundle(
        bundle_id=row.bundle_id,
        create_time=convert.time(row.create_time),
        hypervisor_id=row.hypervisor_id,
        stored_bytes=row.stored_bytes,
    )
