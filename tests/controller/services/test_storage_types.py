"""S3, FTP and rclone storages over the wire: saved with their defaults, refused where they cannot be, their secrets kept."""

import datetime as dt
import uuid
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from google.protobuf.field_mask_pb2 import FieldMask

from clients.gen.backupmanager.v1 import (
    audit_service_pb2,
    schedule_pb2,
    schedule_service_pb2,
    storage_pb2,
    storage_service_pb2,
    system_service_pb2,
)
from engine.format import keys
from tests.controller.services.api import Api, field_refused, fresh, refusal
from tests.servers.controller import Controller
from tests.servers.station import Station

CREATE, SECRETS = storage_service_pb2.CreateStorageRequest, storage_service_pb2.StorageSecrets
CONFIGS: dict[str, Any] = {
    "s3": storage_pb2.S3Config(bucket="backups", access_key="AKIDEXAMPLE", endpoint="https://s3.example:9000/"),
    "ftp": storage_pb2.FtpConfig(host="ftp.example", username="backup", path="/srv/"),
    "rclone": storage_pb2.RcloneConfig(remote="b2", path="bucket/backups/"),
}
SECRET_OF = {"s3": "s3_secret_key", "ftp": "ftp_password"}
MIB = 1 << 20


def certificate() -> str:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "an authority")])
    now = dt.datetime.now(dt.UTC)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now + dt.timedelta(days=1))
    return made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()


AUTHORITY = certificate()


async def make(api: Api, kind: str, secret: str = "", **fields: Any) -> storage_pb2.Storage:
    config = type(CONFIGS[kind])()
    config.CopyFrom(CONFIGS[kind])
    for name, value in fields.items():
        setattr(config, name, value)
    given = {SECRET_OF[kind]: secret or f"a secret {uuid.uuid4()}"} if kind in SECRET_OF else {}
    named: dict[str, Any] = {kind: config}
    return (await api.storages.CreateStorage(CREATE(name=fresh(kind), secrets=SECRETS(**given), **named))).storage


async def update(api: Api, storage: storage_pb2.Storage, *paths: str, **secrets: str) -> storage_pb2.Storage:
    request = storage_service_pb2.UpdateStorageRequest(
        storage=storage, update_mask=FieldMask(paths=paths), secrets=SECRETS(**secrets)
    )
    return (await api.storages.UpdateStorage(request)).storage


@pytest.mark.feature("S5", "S13", "S14")
async def test_each_type_is_saved_with_its_defaults(api: Api) -> None:
    made = {kind: await make(api, kind) for kind in CONFIGS}
    for kind, one in made.items():
        assert one.WhichOneof("config") == kind
        get = storage_service_pb2.GetStorageRequest(storage_id=one.name)
        assert getattr((await api.storages.GetStorage(get)).storage, kind) == getattr(one, kind)
    s3, ftp, rclone = made["s3"].s3, made["ftp"].ftp, made["rclone"].rclone
    assert (s3.endpoint, s3.region, s3.concurrency, s3.part_size_bytes) == (
        "https://s3.example:9000",
        "us-east-1",
        8,
        0,
    )
    assert (ftp.port, ftp.path, ftp.tls_disabled, ftp.skip_tls_verify) == (21, "/srv", False, False)
    assert (rclone.path, rclone.s3_concurrency, rclone.force) == ("bucket/backups", 4, False)


@pytest.mark.feature("S5")
async def test_what_people_write_for_a_bucket_is_understood(api: Api) -> None:
    cases = {
        "HTTPS://S3.Example": "https://s3.example",
        "http://[::1]:9000/": "http://[::1]:9000",
        "https://gateway.example/storage/v1/s3": "https://gateway.example/storage/v1/s3",
        "": "",
    }
    for given, kept in cases.items():
        assert (await make(api, "s3", endpoint=given)).s3.endpoint == kept
    assert (await make(api, "s3", prefix="/backups//east/")).s3.prefix == "backups/east"
    assert (await make(api, "s3", bucket="Old_Bucket.1")).s3.bucket == "Old_Bucket.1"
    assert (await make(api, "s3", ca_certificate=f"\n{AUTHORITY}")).s3.ca_certificate == AUTHORITY
    for size in (5 * MIB, 512 * MIB):
        assert (await make(api, "s3", part_size_bytes=size)).s3.part_size_bytes == size


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("s3", {"bucket": ""}, "s3.bucket"),
    ("s3", {"bucket": "ab"}, "s3.bucket"),
    ("s3", {"bucket": "a/b"}, "s3.bucket"),
    ("s3", {"bucket": "a..b"}, "s3.bucket"),
    ("s3", {"bucket": "192.0.2.7"}, "s3.bucket"),
    ("s3", {"bucket": "Upper", "endpoint": ""}, "s3.bucket"),
    ("s3", {"bucket": "Upper", "addressing": storage_pb2.S3_ADDRESSING_VIRTUAL}, "s3.bucket"),
    ("s3", {"region": "eu central"}, "s3.region"),
    ("s3", {"endpoint": "s3.example"}, "s3.endpoint"),
    ("s3", {"endpoint": "ftp://s3.example"}, "s3.endpoint"),
    ("s3", {"endpoint": "https://"}, "s3.endpoint"),
    ("s3", {"endpoint": "https://user:password@s3.example"}, "s3.endpoint"),
    ("s3", {"endpoint": "https://s3.example?x=1"}, "s3.endpoint"),
    ("s3", {"endpoint": "https://s3.example:99999"}, "s3.endpoint"),
    ("s3", {"endpoint": "https://s3.example/../x"}, "s3.endpoint"),
    ("s3", {"endpoint": "https://[::1"}, "s3.endpoint"),
    ("s3", {"access_key": ""}, "s3.access_key"),
    ("s3", {"access_key": "a b"}, "s3.access_key"),
    ("s3", {"prefix": "a/../b"}, "s3.prefix"),
    ("s3", {"prefix": "a\nb"}, "s3.prefix"),
    ("s3", {"prefix": "x" * 500}, "s3.prefix"),
    ("s3", {"concurrency": 65}, "s3.concurrency"),
    ("s3", {"concurrency": -1}, "s3.concurrency"),
    ("s3", {"part_size_bytes": 5 * MIB - 1}, "s3.part_size_bytes"),
    ("s3", {"part_size_bytes": 512 * MIB + 1}, "s3.part_size_bytes"),
    ("s3", {"part_size_bytes": -1}, "s3.part_size_bytes"),
    ("s3", {"addressing": 99}, "s3.addressing"),
    ("s3", {"ca_certificate": "garbage"}, "s3.ca_certificate"),
    ("s3", {"ca_certificate": AUTHORITY + "-----BEGIN PRIVATE KEY-----\n"}, "s3.ca_certificate"),
    ("s3", {"ca_certificate": AUTHORITY, "endpoint": "http://s3.example"}, "s3.ca_certificate"),
    ("s3", {"bind_address": "eth0"}, "s3.bind_address"),
    ("ftp", {"host": "-oProxyCommand=x"}, "ftp.host"),
    ("ftp", {"port": 65536}, "ftp.port"),
    ("ftp", {"username": ""}, "ftp.username"),
    ("ftp", {"username": "a\r\nDELE b"}, "ftp.username"),
    ("ftp", {"path": "srv"}, "ftp.path"),
    ("ftp", {"path": "/srv/../etc"}, "ftp.path"),
    ("ftp", {"path": "/srv\r\nDELE b"}, "ftp.path"),
    ("ftp", {"tls_version_max": 99}, "ftp.tls_version_max"),
    ("ftp", {"ca_certificate": "garbage"}, "ftp.ca_certificate"),
    ("ftp", {"ca_certificate": AUTHORITY, "skip_tls_verify": True}, "ftp.ca_certificate"),
    ("ftp", {"ca_certificate": AUTHORITY, "tls_disabled": True}, "ftp.ca_certificate"),
    ("ftp", {"skip_tls_verify": True, "tls_disabled": True}, "ftp.skip_tls_verify"),
    ("ftp", {"bind_address": "eth0"}, "ftp.bind_address"),
    ("rclone", {"remote": ""}, "rclone.remote"),
    ("rclone", {"remote": "b2:"}, "rclone.remote"),
    ("rclone", {"remote": "-v"}, "rclone.remote"),
    ("rclone", {"remote": ":local"}, "rclone.remote"),
    ("rclone", {"remote": "b2,account=x"}, "rclone.remote"),
    ("rclone", {"path": "a/../b"}, "rclone.path"),
    ("rclone", {"path": "a\\b"}, "rclone.path"),
    ("rclone", {"s3_concurrency": 65}, "rclone.s3_concurrency"),
    ("rclone", {"bind_address": "eth0"}, "rclone.bind_address"),
]


@pytest.mark.feature("S5", "S6", "S13", "S14")
async def test_a_place_that_cannot_be_is_refused_when_it_is_saved(api: Api) -> None:
    for kind, fields, field in REFUSED:
        assert await field_refused(make(api, kind, **fields)) == field, fields


@pytest.mark.feature("S5", "S13", "S28")
async def test_a_storage_needs_its_own_secrets_and_no_others(api: Api) -> None:
    cases: list[tuple[dict[str, Any], dict[str, str], str]] = [
        ({"s3": CONFIGS["s3"]}, {}, "secrets.s3_secret_key"),
        ({"s3": CONFIGS["s3"]}, {"s3_secret_key": "a\nb"}, "secrets.s3_secret_key"),
        ({"ftp": CONFIGS["ftp"]}, {}, "secrets.ftp_password"),
        ({"ftp": CONFIGS["ftp"]}, {"ftp_password": "a\r\nDELE b"}, "secrets.ftp_password"),
        ({"ftp": CONFIGS["ftp"]}, {"ftp_password": "x", "s3_secret_key": "y"}, "secrets.s3_secret_key"),
        ({"rclone": CONFIGS["rclone"]}, {"ftp_password": "x"}, "secrets.ftp_password"),
    ]
    for config, secrets, field in cases:
        request = CREATE(name=fresh("s"), secrets=SECRETS(**secrets), **config)
        assert await field_refused(api.storages.CreateStorage(request)) == field


@pytest.mark.feature("S28", "N5")
@pytest.mark.parametrize("kind", sorted(SECRET_OF))
async def test_a_secret_goes_in_is_kept_and_comes_out_nowhere(api: Api, controller: Controller, kind: str) -> None:
    secret = f"never to be seen {uuid.uuid4()}"
    made = await make(api, kind, secret)
    (kept,) = made.secrets
    assert kept.name == SECRET_OF[kind]

    getattr(made, kind).bind_address = "192.0.2.7"
    changed = await update(api, made, kind)
    assert list(changed.secrets) == [kept], "a secret that is not given is kept"
    other = await update(api, changed, **{kept.name: f"another {uuid.uuid4()}"})
    assert other.secrets[0].fingerprint != kept.fingerprint

    everything = b"".join(path.read_bytes() for path in controller.folder.rglob("*") if path.is_file())
    assert secret.encode() not in everything
    rows = await api.audit.ListAuditEntries(audit_service_pb2.ListAuditEntriesRequest())
    assert any(one.resource == made.name for one in rows.entries)
    assert secret not in str(rows)


@pytest.mark.feature("S0")
async def test_a_type_never_changes_into_another(api: Api) -> None:
    for kind in CONFIGS:
        made = await make(api, kind)
        other = "ftp" if kind != "ftp" else "s3"
        getattr(made, other).CopyFrom(CONFIGS[other])
        found = await refusal(update(api, made, other))
        assert (found.reason, found.status) == ("STORAGE_IMMUTABLE", "FAILED_PRECONDITION")


@pytest.mark.feature("S2")
async def test_the_matrix_of_capabilities_is_told_by_type_and_by_storage(api: Api) -> None:
    told = await api.system.GetCapabilities(system_service_pb2.GetCapabilitiesRequest())
    matrix = {one.type: one.capabilities for one in told.storage_types}
    assert sorted(matrix) == ["ftp", "local", "rclone", "s3", "sftp"]
    assert all(one.incremental and one.encryption and one.range_read for one in matrix.values())
    assert not any(one.server_side_deduplication or one.object_lock for one in matrix.values())
    assert "exclusive_create" in matrix["s3"].depends_on_server
    for kind in CONFIGS:
        assert (await make(api, kind)).capabilities == matrix[kind]
    for one in matrix.values():
        fields = set(one.DESCRIPTOR.fields_by_name)
        assert set(one.depends_on_server) <= fields
        assert not any(getattr(one, name) for name in one.depends_on_server), "what depends is not promised"


@pytest.mark.feature("D18", "D19")
async def test_a_schedules_source_address_is_taken_where_there_are_connections(
    api: Api, controller: Controller
) -> None:
    for kind in CONFIGS:
        storage = await make(api, kind)
        host = await Station.enroll(controller, fresh("host"))
        request = schedule_service_pb2.CreateScheduleRequest(
            hypervisor_id=host.hypervisor_id,
            storage_id=storage.storage_id,
            overrides=schedule_pb2.ScheduleOverrides(bind_address="192.0.2.7"),
        )
        made = (await api.schedules.CreateSchedule(request)).schedule
        assert made.resolved.values.bind_address == "192.0.2.7"


@pytest.mark.feature("S25", "S26", "S28")
async def test_a_passphrase_is_added_to_the_key_that_there_is(api: Api, controller: Controller) -> None:
    first, second = f"first long {uuid.uuid4()}", f"second long {uuid.uuid4()}"
    plain = await make(api, "rclone")
    assert await field_refused(update(api, plain, added_passphrase=second)) == "secrets.added_passphrase"
    config = CONFIGS["rclone"]
    request = CREATE(
        name=fresh("safe"), rclone=config, encryption_enabled=True, secrets=SECRETS(encryption_passphrase=first)
    )
    made = (await api.storages.CreateStorage(request)).storage
    assert await field_refused(update(api, made, added_passphrase="short")) == "secrets.added_passphrase"

    changed = await update(api, made, added_passphrase=second)

    assert changed.encryption == made.encryption, "the key is the same"
    (key,) = (
        await api.storages.ExportStorageKey(storage_service_pb2.ExportStorageKeyRequest(storage_id=made.name))
    ).keys
    closed = keys.KeyObject.load(key.text.encode(), f"keys/{key.key_id}.json")
    assert keys.unwrap_key(closed, first) == keys.unwrap_key(closed, second)
    everything = b"".join(path.read_bytes() for path in controller.folder.rglob("*") if path.is_file())
    assert second.encode() not in everything


@pytest.mark.feature("S0", "S28")
async def test_a_probes_place_is_checked_and_its_secret_told_to_the_agent_alone(
    api: Api, controller: Controller
) -> None:
    station = await Station.enroll(controller, fresh("host"))
    made = await make(api, "s3", "the storage's own key")
    secret = f"another key {uuid.uuid4()}"
    probe = storage_service_pb2.ProbeStorageRequest(
        storage_id=made.name, hypervisor_id=station.hypervisor_id, request_id=str(uuid.uuid4())
    )
    assert await field_refused(api.storages.ProbeStorage(probe)) == "config"
    probe.s3.CopyFrom(CONFIGS["s3"])
    probe.s3.bucket = "a/b"
    assert await field_refused(api.storages.ProbeStorage(probe)) == "s3.bucket"
    probe.s3.bucket = "elsewhere"
    probe.secrets.encryption_passphrase = "long enough"
    assert await field_refused(api.storages.ProbeStorage(probe)) == "secrets.encryption_passphrase"
    probe.secrets.Clear()
    probe.secrets.s3_secret_key = secret
    async with station.session() as session:
        job_id = (await api.storages.ProbeStorage(probe)).job_id
        assert (await api.storages.ProbeStorage(probe)).job_id == job_id, "the same id twice is one job"
        access = (await session.command()).run.storage
    assert (access.s3.bucket, access.s3_secret_key, access.repository_expected) == ("elsewhere", secret, True)
    everything = b"".join(path.read_bytes() for path in controller.folder.rglob("*") if path.is_file())
    assert secret.encode() not in everything


@pytest.mark.feature("S6")
async def test_the_memory_that_a_setting_of_parts_costs_is_told(api: Api) -> None:
    cases = {
        (0, 0): (3, 17_182_720),  # a 2,000th of 32 GiB, in whole pages
        (5 * MIB, 0): (8, 5 * MIB),
        (5 * MIB, 64): (12, 5 * MIB),
        (16 * MIB, 8): (4, 16 * MIB),
        (512 * MIB, 64): (2, 512 * MIB),
    }
    for (size, concurrency), (parts, each) in cases.items():
        told = (await make(api, "s3", part_size_bytes=size, concurrency=concurrency)).upload_memory
        assert (told.parts_in_flight, told.part_size_bytes, told.memory_bytes) == (parts, each, parts * each)
    assert not (await make(api, "ftp")).HasField("upload_memory")
