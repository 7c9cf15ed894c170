"""What requests to make and to change storages ask for, checked as far as it can be without a database."""

from dataclasses import dataclass, replace
from typing import Any

from clients.gen.backupmanager.v1 import storage_service_pb2 as messages
from controller.db.secrets import Vault
from controller.errors import InvalidField, StorageImmutable
from controller.order_types import ProbeOrder
from controller.rules import retention, storage_types
from controller.services import check, convert, settings_check
from controller.services.storage_checks import settings, types
from controller.storages import NewStorage, Storage, StorageChange

_CHANGEABLE = (
    "name",
    *types.BY_TYPE,
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
class Update:
    """A request to change a storage, checked as far as it can be without knowing the storage."""

    reference: str
    etag: str
    kind: str  # of the config that is given, "" for none
    change: StorageChange


# ---- making one --------------------------------------------------------------------------------------------------------


def new(request: messages.CreateStorageRequest) -> NewStorage:
    """Return what is to be made, every field checked but the secrets of its connection."""
    name = check.name("name", request.name)
    kind = request.WhichOneof("config")
    if kind is None:
        raise InvalidField(field="config", problem="is missing")
    if storage_types.BY_TYPE[kind].per_hypervisor and not request.allow_local:
        raise InvalidField(
            field="allow_local", problem="is needed: a local folder does not survive the loss of its hypervisor"
        )
    given = types.given_secrets(kind, request.secrets)
    if "added_passphrase" in given:
        raise InvalidField(field="secrets.added_passphrase", problem="is for a storage that has a key already")
    if "encryption_passphrase" in given and not request.encryption_enabled:
        raise InvalidField(field="secrets.encryption_passphrase", problem="is given, but encryption is not enabled")
    compression = request.compression if request.HasField("compression") else None
    return NewStorage(
        name=name,
        type=kind,
        config=convert.to_json(types.config(kind, request)),
        compression=convert.to_json(settings.compression(compression)),
        limits=convert.to_json(settings.limits(request.limits)),
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


# ---- probing a place ---------------------------------------------------------------------------------------------------


def probe(request: messages.ProbeStorageRequest) -> tuple[ProbeOrder, dict[str, str]]:
    """Return the look that is asked for, and the secrets that come with it; the place is checked like one to be saved."""
    kind = request.WhichOneof("config")
    if kind is None:
        raise InvalidField(field="config", problem="is missing")
    order = ProbeOrder(
        storage_id=check.reference("storage_id", request.storage_id),
        hypervisor_id=check.reference("hypervisor_id", request.hypervisor_id),
        kind=kind,
        config=convert.to_json(types.config(kind, request)),
        request_id=check.request_id(request.request_id),
    )
    given = types.given_secrets(kind, request.secrets)
    for name in types.PASSPHRASES:
        if name in given:
            raise InvalidField(field=f"secrets.{name}", problem="has nothing to do with a place")
    return order, given


# ---- changing one ------------------------------------------------------------------------------------------------------


def update(request: messages.UpdateStorageRequest) -> Update:
    """Return what the update mask asks for. New secrets alone need no mask."""
    wanted = request.storage
    reference = check.reference("storage.storage_id", wanted.storage_id)
    only_secrets = not request.update_mask.paths and bool(request.secrets.ListFields())
    paths = frozenset[str]() if only_secrets else check.mask(request.update_mask, _CHANGEABLE)
    kinds = sorted(paths & set(types.BY_TYPE))
    if len(kinds) > 1:
        raise InvalidField(field="update_mask", problem="names two types of storage")
    kind = kinds[0] if kinds else ""
    change = StorageChange(
        name=check.name("storage.name", wanted.name) if "name" in paths else None,
        config=convert.to_json(types.config(kind, wanted)) if kind else None,
        compression=convert.to_json(settings.compression(wanted.compression)) if "compression" in paths else None,
        limits=convert.to_json(settings.limits(wanted.limits)) if "limits" in paths else None,
        enabled=wanted.enabled if "enabled" in paths else None,
        read_only=wanted.read_only if "read_only" in paths else None,
        encryption_enabled=wanted.encryption.enabled if "encryption.enabled" in paths else None,
        retention=convert.policy_json(wanted.retention) if "retention" in paths else None,
        keep_last=retention.checked_keep_last(wanted.keep_last) if "keep_last" in paths else None,
        delete_hypervisor_id=_deleter(wanted.delete_hypervisor_id) if "delete_hypervisor_id" in paths else None,
        defaults=settings_check.settings(wanted.defaults, "defaults") if "defaults" in paths else None,
        secrets={},
    )
    return Update(reference, check.title("storage.etag", wanted.etag), kind, change)


def completed(asked: Update, present: Storage, given: messages.StorageSecrets, vault: Vault) -> StorageChange:
    """Return the change as it applies to this storage: its type kept, its pinned host key, and only secrets that are new."""
    if asked.kind not in {"", present.type}:
        raise StorageImmutable(field="config")
    secrets = types.given_secrets(present.type, given)
    known = {one.name: one.fingerprint for one in present.secrets}
    secrets = {name: value for name, value in secrets.items() if vault.fingerprint(value) != known.get(name)}
    return replace(asked.change, secrets=secrets, config=_pinned(asked.change.config, present.config))


def _pinned(config: dict[str, Any] | None, old: dict[str, Any]) -> dict[str, Any] | None:
    """Keep the pinned host key of an address that stays: leaving it out of an update must not unpin it (S4)."""
    address = ("host", "port")
    if config is None or config.get("host_key") or any(config.get(one) != old.get(one) for one in address):
        return config
    return {**config, "host_key": old["host_key"]} if old.get("host_key") else config


def check_encryption(change: StorageChange, present: Storage) -> None:
    """Raise InvalidField where a passphrase is missing, or is given for nothing."""
    enabled = present.encryption_enabled if change.encryption_enabled is None else change.encryption_enabled
    given = "encryption_passphrase" in change.secrets
    if enabled and not given and not present.key_id:
        raise InvalidField(field="secrets.encryption_passphrase", problem="is needed for encryption")
    if given and not enabled:
        raise InvalidField(field="secrets.encryption_passphrase", problem="is given, but encryption is not enabled")
    if "added_passphrase" in change.secrets and (given or not present.key_id):
        problem = "opens the key that there is: not with a new one, nor where there is none"
        raise InvalidField(field="secrets.added_passphrase", problem=problem)
