"""Retention and purges over a real connection: presets, simulations, what goes soon, and what a purge is bound to."""

import pytest
from google.protobuf import duration_pb2, field_mask_pb2

from clients.gen.backupmanager.v1 import (
    backup_service_pb2,
    purge_service_pb2,
    retention_pb2,
    retention_service_pb2,
    storage_pb2,
    storage_service_pb2,
)
from tests.controller.services.api import Api, all_pages, field_refused, refused


@pytest.mark.feature("R2")
@pytest.mark.feature("R3")
@pytest.mark.feature("R4")
async def test_the_presets_come_with_their_numbers_and_words(api: Api) -> None:
    reply = await api.retention.GetRetentionPresets(retention_service_pb2.GetRetentionPresetsRequest())
    by_name = {one.name: one for one in reply.presets}
    assert len(by_name) == 35
    assert by_name["gfs-3m"].policy == retention_pb2.RetentionPolicy(preset="gfs-3m", daily=7, weekly=4, monthly=3)
    assert "3 months" in by_name["gfs-3m"].words


@pytest.mark.feature("R12")
async def test_a_storage_keeps_its_policy_and_refuses_what_is_none(api: Api) -> None:
    policy = retention_pb2.RetentionPolicy(daily=7, trim_tails=True)
    made = await api.make_storage(retention=policy, keep_last=0)
    assert (made.retention, made.keep_last) == (policy, 0)
    assert (await api.make_storage()).keep_last == 2

    async def update(path: str, **values: object) -> storage_pb2.Storage:
        changed = storage_pb2.Storage(storage_id=made.storage_id, **values)  # type: ignore[arg-type]  # fields by name
        mask = field_mask_pb2.FieldMask(paths=[path])
        request = storage_service_pb2.UpdateStorageRequest(storage=changed, update_mask=mask)
        return (await api.storages.UpdateStorage(request)).storage

    assert not (await update("retention")).HasField("retention")
    assert await field_refused(update("keep_last", keep_last=-1)) == "keep_last"
    strange = retention_pb2.RetentionPolicy(preset="gfs-99y")
    assert await field_refused(update("retention", retention=strange)) == "retention.preset"
    assert await refused(update("delete_hypervisor_id", delete_hypervisor_id="nowhere")) == "HYPERVISOR_NOT_FOUND"


@pytest.mark.feature("R18")
async def test_a_policy_is_tried_over_imagined_backups_page_by_page(api: Api) -> None:
    imagined = retention_pb2.ImaginedHistory(
        interval=duration_pb2.Duration(seconds=86400), full_interval_days=1, days=130
    )

    def request(token: str = "", size: int = 50) -> retention_service_pb2.PreviewRetentionRequest:
        policy = retention_pb2.RetentionPolicy(preset="gfs-3m")
        return retention_service_pb2.PreviewRetentionRequest(
            imagined=imagined, policy=policy, page_size=size, page_token=token
        )

    reply = await api.retention.PreviewRetention(request())
    assert 10 <= reply.kept_chain_count <= 12
    assert reply.kept_count + reply.going_count == 131
    verdicts = await all_pages(lambda token: api.retention.PreviewRetention(request(token)), "verdicts")
    assert len(verdicts) == 131
    assert sum(one.kept for one in verdicts) == reply.kept_count
    imagined.days = 0
    assert await field_refused(api.retention.PreviewRetention(request())) == "imagined.days"


async def test_what_is_not_there_has_no_verdict_and_nothing_goes_soon(api: Api) -> None:
    nobody = "01938a00-0000-7000-8000-000000000001"
    request = retention_service_pb2.GetRetentionVerdictRequest(backup_id=nobody)
    assert await refused(api.retention.GetRetentionVerdict(request)) == "BACKUP_NOT_FOUND"
    await api.make_storage(retention=retention_pb2.RetentionPolicy(preset="age-1w"))
    soon = retention_service_pb2.ListExpirationsRequest()
    assert not await all_pages(lambda _: api.retention.ListExpirations(soon), "expirations")
    chain = backup_service_pb2.ChainReference(server_id=nobody, storage_id="none", chain_id="c")
    preview = backup_service_pb2.PreviewDeleteRequest(chain=chain)
    assert await refused(api.backups.PreviewDelete(preview)) == "STORAGE_NOT_FOUND"


@pytest.mark.feature("K1")
async def test_a_purge_needs_a_target_and_its_own_confirmation(api: Api) -> None:
    both = purge_service_pb2.PurgeTarget(server_id="a", schedule_id="b")
    for target in (both, purge_service_pb2.PurgeTarget()):
        preview = purge_service_pb2.PreviewPurgeRequest(target=target)
        assert await field_refused(api.purges.PreviewPurge(preview)) == "target"
    nobody = purge_service_pb2.PurgeTarget(server_id="nobody")
    start = purge_service_pb2.StartPurgeRequest(target=nobody, confirmation="x")
    assert await refused(api.purges.StartPurge(start)) == "SERVER_NOT_FOUND"
    cancel = purge_service_pb2.CancelPurgeRequest(purge_id="01938a00-0000-7000-8000-000000000001")
    assert await refused(api.purges.CancelPurge(cancel)) == "PURGE_NOT_FOUND"
    assert not (await api.purges.ListPurges(purge_service_pb2.ListPurgesRequest())).purges
