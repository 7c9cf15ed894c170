"""Storages over the wire: what is saved, what is refused before it is saved, what never changes, what never comes out."""

import uuid
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from google.protobuf.field_mask_pb2 import FieldMask

from clients.gen.backupmanager.v1 import (
    access_token_service_pb2,
    audit_service_pb2,
    storage_pb2,
    storage_service_pb2,
)
from engine.format import keys
from tests.controller.services.api import Api, all_pages, field_refused, fresh, refusal, refused, ssh_key
from tests.servers.controller import Controller

CREATE, SECRETS = storage_service_pb2.CreateStorageRequest, storage_service_pb2.StorageSecrets
HOST_KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIGfSpxs0KkQkPpUFBxN9QGPW1gAeRwIkyu5ZEqoLcSkE"
KEY = ssh_key()


def sftp(**fields: Any) -> storage_pb2.SftpConfig:
    return storage_pb2.SftpConfig(**{"host": "backup.example", "username": "backup", "path": "/srv", **fields})


async def make_sftp(api: Api, **fields: Any) -> storage_pb2.Storage:
    request = CREATE(name=fresh("sftp"), sftp=sftp(**fields), secrets=SECRETS(sftp_private_key=KEY))
    return (await api.storages.CreateStorage(request)).storage


async def update(api: Api, storage: storage_pb2.Storage, *paths: str, **secrets: str) -> storage_pb2.Storage:
    request = storage_service_pb2.UpdateStorageRequest(
        storage=storage, update_mask=FieldMask(paths=paths), secrets=SECRETS(**secrets)
    )
    return (await api.storages.UpdateStorage(request)).storage


async def get(api: Api, reference: str) -> storage_pb2.Storage:
    return (await api.storages.GetStorage(storage_service_pb2.GetStorageRequest(storage_id=reference))).storage


@pytest.mark.feature("S0", "S4")
async def test_a_storage_is_saved_with_its_defaults_and_found_by_id_and_name(api: Api) -> None:
    made = await make_sftp(api)
    read = [await get(api, made.storage_id), await get(api, made.name)]
    for one in (made, *read):
        one.ClearField("health")  # a round of the clock may lie between them
    assert [made, made] == read
    assert made.sftp == sftp(port=22)
    assert (made.compression.enabled, made.compression.level, made.compression.threads) == (True, 3, 1)
    assert made.limits == storage_pb2.StorageLimits(), (
        "what nobody chose is not made up: a schedule has to see the difference"
    )
    assert (made.enabled, made.read_only, made.encryption.enabled) == (True, False, False)
    assert made.repository_id
    assert made.etag
    assert made.capabilities.bind_address


@pytest.mark.feature("S3")
async def test_a_local_folder_needs_an_explicit_word(api: Api) -> None:
    local = storage_pb2.LocalConfig(path="/backups/")
    assert await field_refused(api.storages.CreateStorage(CREATE(name=fresh("s"), local=local))) == "allow_local"
    made = (await api.storages.CreateStorage(CREATE(name=fresh("s"), local=local, allow_local=True))).storage
    assert made.local.path == "/backups"


@pytest.mark.feature("S0")
async def test_a_name_is_unique(api: Api) -> None:
    made = await api.make_storage()
    other = await api.make_storage()
    found = await refusal(api.make_storage(made.name))
    assert (found.reason, found.status, found.facts) == ("STORAGE_EXISTS", "ALREADY_EXISTS", {"name": made.name})
    other.name = made.name
    assert await refused(update(api, other, "name")) == "STORAGE_EXISTS"


@pytest.mark.feature("S4")
@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"host": ""}, "sftp.host"),
        ({"host": "a b"}, "sftp.host"),
        ({"host": "-oProxyCommand=x"}, "sftp.host"),
        ({"port": 65536}, "sftp.port"),
        ({"port": -1}, "sftp.port"),
        ({"username": ""}, "sftp.username"),
        ({"username": "a b"}, "sftp.username"),
        ({"path": "srv"}, "sftp.path"),
        ({"path": ""}, "sftp.path"),
        ({"path": "/srv/../etc"}, "sftp.path"),
        ({"path": "/srv\0"}, "sftp.path"),
        ({"host_key": "garbage"}, "sftp.host_key"),
        ({"host_key": "ssh-rsa " + HOST_KEY.split()[1]}, "sftp.host_key"),
        ({"bind_address": "not-an-address"}, "sftp.bind_address"),
    ],
)
async def test_a_place_that_cannot_be_is_refused_when_it_is_saved(api: Api, fields: dict[str, Any], field: str) -> None:
    assert await field_refused(make_sftp(api, **fields)) == field


@pytest.mark.feature("S4")
@pytest.mark.parametrize(
    ("secrets", "field"),
    [
        ({}, "secrets.sftp_private_key"),
        ({"sftp_private_key": "garbage"}, "secrets.sftp_private_key"),
        ({"sftp_private_key": KEY[:200]}, "secrets.sftp_private_key"),
        ({"sftp_private_key": "x" * 40_000}, "secrets.sftp_private_key"),
        ({"sftp_private_key": ssh_key("right")}, "secrets.sftp_key_passphrase"),
        ({"sftp_private_key": ssh_key("right"), "sftp_key_passphrase": "wrong"}, "secrets.sftp_private_key"),
        ({"sftp_private_key": KEY, "encryption_passphrase": "long enough"}, "secrets.encryption_passphrase"),
    ],
)
async def test_a_key_that_cannot_be_used_is_refused_when_it_is_saved(
    api: Api, secrets: dict[str, str], field: str
) -> None:
    request = CREATE(name=fresh("s"), sftp=sftp(), secrets=SECRETS(**secrets))
    assert await field_refused(api.storages.CreateStorage(request)) == field


@pytest.mark.feature("S4")
@pytest.mark.parametrize("kind", ["rsa", "ecdsa", "pem", "passphrase"])
async def test_every_kind_of_key_is_accepted(api: Api, kind: str) -> None:
    elliptic = ec.generate_private_key(ec.SECP256R1())
    pem = elliptic.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()
    ).decode()
    secrets = {
        "rsa": SECRETS(sftp_private_key=ssh_key(key=rsa.generate_private_key(65537, 2048))),
        "ecdsa": SECRETS(sftp_private_key=ssh_key(key=elliptic)),
        "pem": SECRETS(sftp_private_key=pem, sftp_key_passphrase="not needed"),
        "passphrase": SECRETS(sftp_private_key=ssh_key("right"), sftp_key_passphrase="right"),
    }
    await api.storages.CreateStorage(CREATE(name=fresh("s"), sftp=sftp(), secrets=secrets[kind]))


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (CREATE(name="a b"), "name"),
        (CREATE(), "name"),
        (CREATE(name="x"), "config"),
        (CREATE(name="x", local=storage_pb2.LocalConfig(path="/"), allow_local=True), "local.path"),
    ],
)
async def test_what_is_missing_is_named(api: Api, request_: Any, field: str) -> None:
    assert await field_refused(api.storages.CreateStorage(request_)) == field


@pytest.mark.feature("S27", "T13")
@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"compression": storage_pb2.Compression(enabled=True, level=20)}, "compression.level"),
        ({"compression": storage_pb2.Compression(enabled=True, level=-1)}, "compression.level"),
        ({"compression": storage_pb2.Compression(threads=65)}, "compression.threads"),
        ({"limits": storage_pb2.StorageLimits(worker_threads=65)}, "limits.worker_threads"),
        ({"limits": storage_pb2.StorageLimits(worker_threads=-1)}, "limits.worker_threads"),
        ({"limits": storage_pb2.StorageLimits(bandwidth_bytes_per_second=-1)}, "limits.bandwidth_bytes_per_second"),
        ({"limits": storage_pb2.StorageLimits(read_bytes_per_second=1)}, "limits.read_bytes_per_second"),
        ({"secrets": SECRETS(sftp_private_key=KEY)}, "secrets.sftp_private_key"),
        ({"encryption_enabled": True}, "secrets.encryption_passphrase"),
        (
            {"encryption_enabled": True, "secrets": SECRETS(encryption_passphrase="short")},
            "secrets.encryption_passphrase",
        ),
    ],
)
async def test_settings_out_of_range_are_refused(api: Api, fields: dict[str, Any], field: str) -> None:
    assert await field_refused(api.make_storage(**fields)) == field


@pytest.mark.feature("S28")
async def test_secrets_go_in_and_only_fingerprints_come_out(api: Api, controller: Controller) -> None:
    passphrase = f"correct horse {uuid.uuid4()}"
    secrets = SECRETS(encryption_passphrase=passphrase)
    made = await api.make_storage(encryption_enabled=True, secrets=secrets)
    again = await api.make_storage(encryption_enabled=True, secrets=secrets)
    assert [one.name for one in made.secrets] == ["encryption_passphrase"]
    assert len(made.secrets[0].fingerprint) == 16
    assert made.secrets[0].fingerprint == again.secrets[0].fingerprint, "equal values are told to be equal"
    assert made.encryption.key_id != again.encryption.key_id, "and yet each storage has its own key"
    everything = b"".join(path.read_bytes() for path in controller.folder.rglob("*") if path.is_file())
    assert passphrase.encode() not in everything


@pytest.mark.feature("S26")
async def test_encryption_can_be_switched_on_while_nothing_lies_there(api: Api) -> None:
    made = await api.make_storage()
    made.encryption.enabled = True
    assert await field_refused(update(api, made, "encryption.enabled")) == "secrets.encryption_passphrase"
    changed = await update(api, made, "encryption.enabled", encryption_passphrase="long enough")
    assert changed.encryption.enabled
    assert changed.encryption.key_id
    again = await update(api, changed, encryption_passphrase="long enough")
    assert again.encryption.key_id == changed.encryption.key_id, "the same passphrase changes nothing"
    other = await update(api, again, encryption_passphrase="another long one")
    assert other.encryption.key_id != changed.encryption.key_id


@pytest.mark.feature("S20")
async def test_an_update_changes_what_its_mask_names_and_nothing_else(api: Api) -> None:
    made = await api.make_storage()
    wanted = storage_pb2.Storage()
    wanted.CopyFrom(made)
    wanted.name, wanted.read_only, wanted.enabled = fresh("renamed"), True, False
    changed = await update(api, wanted, "name", "read_only")
    assert (changed.name, changed.read_only, changed.enabled) == (wanted.name, True, True)
    assert changed.etag != made.etag
    assert changed.update_time.ToDatetime() >= made.update_time.ToDatetime()


async def test_an_update_of_an_older_version_is_refused(api: Api) -> None:
    made = await api.make_storage()
    made.read_only = True
    await update(api, made, "read_only")
    found = await refusal(update(api, made, "read_only"))
    assert (found.reason, found.status) == ("ETAG_MISMATCH", "ABORTED")
    made.etag = ""
    assert (await update(api, made, "read_only")).read_only


@pytest.mark.feature("S0")
async def test_a_type_never_changes(api: Api) -> None:
    made = await api.make_storage()
    made.sftp.CopyFrom(sftp())
    found = await refusal(update(api, made, "sftp"))
    assert (found.reason, found.status) == ("STORAGE_IMMUTABLE", "FAILED_PRECONDITION")


@pytest.mark.parametrize("paths", [(), ("storage_id",), ("local", "sftp"), ("name.x",)])
async def test_a_mask_that_makes_no_sense_is_refused(api: Api, paths: tuple[str, ...]) -> None:
    assert await field_refused(update(api, await api.make_storage(), *paths)) == "update_mask"


@pytest.mark.feature("S4")
async def test_leaving_the_host_key_out_of_an_update_does_not_unpin_it(api: Api) -> None:
    made = await make_sftp(api, host_key=f"{HOST_KEY} somebody@somewhere")
    assert made.sftp.host_key == HOST_KEY
    made.sftp.host_key, made.sftp.username = "", "other"
    changed = await update(api, made, "sftp")
    assert (changed.sftp.username, changed.sftp.host_key) == ("other", HOST_KEY)
    changed.sftp.host_key, changed.sftp.host = "", "elsewhere.example"
    assert not (await update(api, changed, "sftp")).sftp.host_key, "another host has another key"


@pytest.mark.feature("S28")
async def test_a_new_half_of_a_key_is_checked_with_the_half_that_stays(api: Api) -> None:
    made = await make_sftp(api)
    locked = ssh_key("right")
    assert await field_refused(update(api, made, sftp_private_key=locked)) == "secrets.sftp_key_passphrase"
    changed = await update(api, made, sftp_private_key=locked, sftp_key_passphrase="right")
    assert {one.name for one in changed.secrets} == {"sftp_private_key", "sftp_key_passphrase"}
    assert await field_refused(update(api, changed, sftp_key_passphrase="wrong")) == "secrets.sftp_private_key"
    assert (await update(api, changed, sftp_private_key=ssh_key())).etag != changed.etag


async def test_a_storage_that_is_not_there_is_named(api: Api) -> None:
    found = await refusal(get(api, "nowhere"))
    assert (found.reason, found.status, found.facts) == ("STORAGE_NOT_FOUND", "NOT_FOUND", {"storage_id": "nowhere"})
    delete = storage_service_pb2.DeleteStorageRequest(storage_id="nowhere")
    assert await refused(api.storages.DeleteStorage(delete)) == "STORAGE_NOT_FOUND"
    missing = storage_pb2.Storage(storage_id="nowhere", read_only=True)
    assert await refused(update(api, missing, "read_only")) == "STORAGE_NOT_FOUND"


async def test_a_storage_without_backups_can_be_forgotten(api: Api) -> None:
    made = await api.make_storage()
    await api.storages.DeleteStorage(storage_service_pb2.DeleteStorageRequest(storage_id=made.name))
    assert await refused(get(api, made.storage_id)) == "STORAGE_NOT_FOUND"
    assert (await api.make_storage(made.name)).storage_id != made.storage_id


@pytest.mark.feature("N9")
async def test_a_list_is_read_page_by_page_in_the_order_of_names(api: Api) -> None:
    names = {(await api.make_storage(f"page-{number:02}")).name for number in range(25)}
    request = storage_service_pb2.ListStoragesRequest
    rows = await all_pages(lambda token: api.storages.ListStorages(request(page_size=7, page_token=token)), "storages")
    found = [row.name for row in rows]
    assert found == sorted(found)
    assert names <= set(found)
    assert len(found) == len(set(found))


@pytest.mark.feature("N9")
async def test_a_page_token_belongs_to_its_list(api: Api) -> None:
    for _ in range(2):
        await api.make_storage()
    token = (await api.storages.ListStorages(storage_service_pb2.ListStoragesRequest(page_size=1))).next_page_token
    assert token
    strange = access_token_service_pb2.ListAccessTokensRequest(page_token=token)
    assert await refused(api.tokens.ListAccessTokens(strange)) == "INVALID_PAGE_TOKEN"
    damaged = storage_service_pb2.ListStoragesRequest(page_token=token[:-2])
    assert await refused(api.storages.ListStorages(damaged)) == "INVALID_PAGE_TOKEN"
    for size in (-1, 1001):
        request = storage_service_pb2.ListStoragesRequest(page_size=size)
        assert await field_refused(api.storages.ListStorages(request)) == "page_size"


@pytest.mark.feature("N12")
async def test_the_exported_key_opens_with_the_passphrase_and_holds_nothing_open(
    api: Api, controller: Controller
) -> None:
    passphrase = f"correct horse {uuid.uuid4()}"
    secrets = SECRETS(sftp_private_key=KEY, encryption_passphrase=passphrase)
    new = CREATE(name=fresh("safe"), sftp=sftp(), secrets=secrets, encryption_enabled=True)
    made = (await api.storages.CreateStorage(new)).storage

    sheet = await api.storages.ExportStorageKey(storage_service_pb2.ExportStorageKeyRequest(storage_id=made.name))

    (key,) = sheet.keys
    assert sheet.storage.repository_id == made.repository_id
    opened = keys.unwrap_key(keys.KeyObject.load(key.text.encode(), f"keys/{key.key_id}.json"), passphrase)
    assert opened.key_id == key.key_id == made.encryption.key_id
    whole = sheet.SerializeToString()
    for secret in (passphrase.encode(), opened.secret, opened.secret.hex().encode(), KEY.encode()):
        assert secret not in whole
    rows = await api.audit.ListAuditEntries(audit_service_pb2.ListAuditEntriesRequest())
    assert any(one.method.endswith("ExportStorageKey") and one.resource == made.name for one in rows.entries)
