"""A storage that lies to the engine: what it says is found out and named, and nothing is touched that is not the product's.

the lie ──► restore to files   the image that was backed up, or an error and no file
        ──► verify, reindex    name the object
        ──► delete             every backup that is left has its data
"""

import dataclasses
import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from engine import listing, plan
from engine.catalog import read_history
from engine.errors import BackupManagerError
from engine.format import documents, manifest, names
from engine.jobs import Outcome
from engine.prune import plan_prune
from engine.repository import open_repository, read_keys
from engine.retention import Rhythm, Rules
from engine.spec import ReindexJob
from engine.storage.base import Entry
from tests.engine.format import samples
from tests.engine.format.samples import FULL, INCREMENTAL, KEY, OTHER_SERVER, SERVER
from tests.engine.hostile import CANARY, World, make_world
from tests.engine.rig import reason, result

SEGMENT = names.segment_name(SERVER, FULL, "vda", 0)
MANIFEST = names.manifest_name(SERVER, INCREMENTAL, "vda")
BACKUP = names.backup_name(SERVER, INCREMENTAL)
REPOSITORY = names.REPOSITORY
NOT_NAMES = (
    "", ".", "..", "../x", "/etc/passwd", "/x", "x\0", "x\0/../../x", "x" * 10_000, "a/" * 5_000, "é", "\x1b[31m", "x y",
    "servers/../../x", f"servers/{SERVER}/..", f"servers/{SERVER}/../x", f"servers/{SERVER}/{FULL}/../vda/0000.data",
    f"servers/{SERVER}/{FULL}/../../../storage.txt", f"servers//{SERVER}/{FULL}/backup.json", f"servers/{SERVER}/{FULL}/vda/0000.data\0",
    f"servers/{SERVER}/{FULL}/vda/9999.data/x", f"servers/{SERVER.upper()}/{FULL}/backup.json\n", f"/servers/{SERVER}/{FULL}/backup.json",
)  # fmt: skip


@pytest.fixture(params=[True, False], ids=["encrypted", "plain"])
def world(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    return make_world(tmp_path, monkeypatch, encrypted=request.param)


# ---- lies about one object ----------------------------------------------------------------------------------------------


def cut(world: World, name: str) -> None:
    data = world.path(name).read_bytes()
    world.path(name).write_bytes(data[: len(data) * 2 // 3])


def empty(world: World, name: str) -> None:
    world.path(name).write_bytes(b"")


def other_bytes(world: World, name: str) -> None:
    data = world.path(name).read_bytes()
    world.path(name).write_bytes(bytes(byte ^ 0x55 for byte in data))


def gone(world: World, name: str) -> None:
    world.path(name).unlink()


def of_the_other_server(world: World, name: str) -> None:
    exchange(world, name, name.replace(SERVER, OTHER_SERVER))


def of_another_backup(world: World, name: str) -> None:
    exchange(world, name, name.replace(FULL, "?").replace(INCREMENTAL, FULL).replace("?", INCREMENTAL))


def of_another_kind(world: World, name: str) -> None:
    other = {SEGMENT: MANIFEST, MANIFEST: BACKUP, BACKUP: SEGMENT}[name]
    exchange(world, name, other.replace(SERVER, OTHER_SERVER))


def exchange(world: World, one: str, other: str) -> None:
    here, there = world.path(one).read_bytes(), world.path(other).read_bytes()
    assert here != there
    world.path(one).write_bytes(there)
    world.path(other).write_bytes(here)


def reads_more(world: World, name: str) -> None:
    world.lie = lambda storage: storage.stretch(name, by=3)


def reads_less(world: World, name: str) -> None:
    world.lie = lambda storage: storage.stretch(name, by=-3)


def of_size(size_bytes: int) -> Callable[[World, str], None]:
    def lie(world: World, name: str) -> None:
        world.lie = lambda storage: storage.claim(name, size_bytes=size_bytes)

    lie.__name__ = f"of_size_{size_bytes}"
    return lie


LIES = [
    cut, empty, other_bytes, gone, of_the_other_server, of_another_backup, of_another_kind, reads_more, reads_less,
    of_size(-1), of_size(0), of_size(7), of_size(10**9), of_size(1 << 62),
]  # fmt: skip
DAMAGE = {
    "SEGMENT_CORRUPT", "MANIFEST_CORRUPT", "CHAIN_BROKEN", "OBJECT_TRUNCATED", "STORAGE_FAILED", "FRAME_CORRUPT",
}  # fmt: skip


@pytest.mark.feature("C2")
@pytest.mark.feature("C3")
@pytest.mark.feature("R19")
@pytest.mark.share(4)
@pytest.mark.parametrize("name", [SEGMENT, MANIFEST, BACKUP], ids=["segment", "manifest", "backup"])
@pytest.mark.parametrize("lie", LIES, ids=[lie.__name__ for lie in LIES])
def test_a_lie_about_an_object_is_found_by_every_verb_and_named(
    world: World, lie: Callable[[World, str], None], name: str
) -> None:
    lie(world, name)

    restored = world.restore()
    missing = (lie, name) == (gone, BACKUP)  # is no backup any more
    assert reason(restored) in ({"BACKUP_NOT_FOUND"} if missing else DAMAGE)
    assert (INCREMENTAL if missing else name) in world.words(restored)
    if not missing:
        for with_key in (True, False):
            verified = world.verify(with_key=with_key)
            assert reason(verified) == "VERIFY_FAILED"
            assert name in world.words(verified)
    indexed = world.rig.run(reindex=ReindexJob(SERVER))
    assert missing or name == SEGMENT or name in result(indexed)["unreadable"]
    assert_deletions_are_safe(world)


@pytest.mark.feature("S29")
@pytest.mark.parametrize("lie", [cut, empty, other_bytes, gone, reads_more, reads_less, of_size(-1), of_size(1 << 62)])
def test_a_lie_about_whose_repository_it_is_stops_every_verb(world: World, lie: Callable[[World, str], None]) -> None:
    lie(world, REPOSITORY)
    before = world.everything()

    for verb in verbs(world):
        outcome = verb()
        assert reason(outcome) in {"MANIFEST_CORRUPT", "REPOSITORY_MISSING", "STORAGE_FAILED"}
        assert lie is gone or REPOSITORY in world.words(outcome)
    assert {name: data for name, data in world.everything().items() if not name.startswith("out-")} == before


@pytest.mark.feature("S29")
def test_a_repository_in_the_place_of_another_is_refused(world: World) -> None:
    theirs = world.path(REPOSITORY).read_bytes().replace(samples.INSTALLATION.encode(), KEY.encode())
    world.path(REPOSITORY).write_bytes(documents.wrap(theirs.splitlines()[0]))
    assert {reason(verb()) for verb in verbs(world)} == {"REPOSITORY_FOREIGN"}


def verbs(world: World) -> Iterator[Callable[[], Outcome]]:
    yield world.restore
    yield world.verify
    yield lambda: world.rig.run(reindex=ReindexJob())
    yield lambda: world.rig.delete(SERVER, INCREMENTAL)
    yield lambda: world.rig.delete(SERVER, FULL, INCREMENTAL)


# ---- lies about what there is -------------------------------------------------------------------------------------------


@pytest.mark.feature("R19")
@pytest.mark.feature("C3")
@pytest.mark.parametrize("size_bytes", [-5, 1, 1 << 70])
def test_names_that_are_not_ours_reach_nothing(world: World, size_bytes: int) -> None:
    elsewhere = [SEGMENT.replace(SERVER, OTHER_SERVER), BACKUP.replace(SERVER, OTHER_SERVER).replace(INCREMENTAL, KEY)]
    twice = [SEGMENT, MANIFEST, BACKUP]
    world.lie = lambda storage: storage.also(*NOT_NAMES, *elsewhere, *twice, size_bytes=size_bytes).also_folders(
        *NOT_NAMES, "vda", SERVER, SERVER
    )

    assert reason(world.restore()) == ""
    assert reason(world.verify()) == ""
    indexed = world.rig.run(reindex=ReindexJob())
    assert result(indexed) == {"backup_count": 4, "unreadable": []}
    world.words(indexed)
    for going, left in (((INCREMENTAL,), {FULL}), ((FULL,), set())):
        assert reason(world.rig.delete(SERVER, *going)) == ""
        assert backups_there(world) == left
    assert_others_untouched(world)


@pytest.mark.feature("C3")
def test_a_listing_without_end_ends(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    class Endless:
        def __iter__(self) -> Iterator[Entry]:
            while True:
                yield Entry("servers/x", 1, 0.0)

    monkeypatch.setattr(listing, "SERVER_ENTRIES_MAX", 500)
    monkeypatch.setattr(listing, "ENTRIES_MAX", 500)
    world.lie = lambda storage: storage.also_listed(Endless())
    for verb in (world.verify, *list(verbs(world))[2:]):
        outcome = verb()
        assert reason(outcome) == "STORAGE_FAILED"
        assert "names" in world.words(outcome)
    assert backups_there(world) == {FULL, INCREMENTAL}


@pytest.mark.feature("R19")
@pytest.mark.parametrize("name", [SEGMENT, MANIFEST, BACKUP, names.manifest_name(SERVER, FULL, "vda")])
def test_a_listing_that_leaves_out_what_is_there_lets_no_deletion_through_and_is_not_built_upon(
    world: World, name: str
) -> None:
    """A storage whose listings lag behind does this too."""
    world.lie = lambda storage: storage.hide(name)

    assert reason(world.restore()) == ""
    assert reason(world.rig.delete(SERVER, FULL)) == "STILL_NEEDED"
    assert backups_there(world) == {FULL, INCREMENTAL}
    with world.open(world.rig.target) as storage:
        history = read_history(storage, SERVER, {})
    assert not any(history.extendable(one) for one in history.of_disk("vda") if one.backup_id == INCREMENTAL)


@pytest.mark.feature("R19")
def test_a_mark_of_a_deletion_that_is_only_listed_deletes_nothing(world: World) -> None:
    world.lie = lambda storage: storage.also(names.deleted_name(SERVER, INCREMENTAL, "vda"))
    with world.open(world.rig.target) as storage:
        history = read_history(storage, SERVER, {})
    planned = plan_prune(history, Rules(), datetime.now(UTC), Rhythm(timedelta(0)))

    assert not any(point.marked for point in history.points)
    assert planned.delete == []
    assert reason(world.restore()) == ""


# ---- older objects, and forged ones -------------------------------------------------------------------------------------


def older(world: World, name: str, **changes: Any) -> bytes:
    """Return a manifest of that name as one who has the key, or an earlier attempt, would have written it."""
    key = samples.SERVER_KEY if world.encrypted else None
    data = world.path(name).read_bytes()
    value: Any = (manifest.load_server if name == BACKUP else manifest.load_disk)(data, name, key)
    return manifest.dump(dataclasses.replace(value, **changes), key)


@pytest.mark.feature("M15")
def test_an_older_manifest_of_a_disk_under_its_name_is_not_the_one_of_the_backup(world: World) -> None:
    world.path(MANIFEST).write_bytes(older(world, MANIFEST, reason="interval_due"))

    outcome = world.restore()
    assert reason(outcome) == "CHAIN_BROKEN"
    assert "is not the manifest that backup.json names" in world.words(outcome)
    assert reason(world.verify()) == "VERIFY_FAILED"


@pytest.mark.feature("M15")
def test_an_older_state_of_a_whole_backup_is_known_by_the_catalogs_digest_alone(world: World) -> None:
    """The engine by itself cannot tell: both are authentic (docs/bm-engine.md, FORMAT.md section 7)."""
    known = catalogs_digest(world)
    assert reason(world.restore(manifest_digest=known)) == ""
    world.path(BACKUP).write_bytes(older(world, BACKUP, host="hypervisor-2"))

    outcome = world.restore(manifest_digest=known)
    assert reason(outcome) == "MANIFEST_CORRUPT"
    assert "the catalog knows" in world.words(outcome)
    assert reason(world.restore()) == ""


@pytest.mark.feature("T14")
def test_a_plain_backup_in_the_place_of_an_encrypted_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a hash protects in a plain repository, anybody can forge; in an encrypted one that takes the key."""
    world = make_world(tmp_path, monkeypatch, encrypted=True)
    for name, data in samples.small_chain(samples.Writing()).items():
        world.path(name).write_bytes(data)

    assert reason(world.restore()) == "MANIFEST_CORRUPT"
    verified = world.verify()
    assert reason(verified) == "VERIFY_FAILED"
    assert verified.result is not None
    assert {(one["backup_id"], one["object_name"]) for one in verified.result["damaged"]} == {
        (one, names.backup_name(SERVER, one)) for one in (FULL, INCREMENTAL)
    }
    with world.honest() as storage:
        points = read_history(storage, SERVER, {}).of_disk("vda")
    assert plan.base(plan.Wish("incremental", 0, KEY, datetime.now(UTC)), points) is None


@pytest.mark.feature("T14")
@pytest.mark.parametrize("field", ["domain_name", "sealed"])
def test_what_is_changed_in_a_manifest_with_its_hash_made_to_fit_needs_the_key(world: World, field: str) -> None:
    """Told honestly: without encryption a hash is against accidents, and only the catalog's digest is against malice."""
    body, trailer = world.path(BACKUP).read_bytes().splitlines()
    values = json.loads(body)
    values[field] = "web-2" if field == "domain_name" else {"clear": {"domain_xml": "", "nvram": "", "disk_map": {}}}
    hmac = json.loads(trailer)["hmac"]
    known = catalogs_digest(world)
    world.path(BACKUP).write_bytes(documents.wrap(documents.to_json(values), bytes.fromhex(hmac) if hmac else None))

    assert reason(world.restore()) == ("MANIFEST_CORRUPT" if world.encrypted else "")
    assert reason(world.restore(manifest_digest=known)) == "MANIFEST_CORRUPT"


# ---- keys ---------------------------------------------------------------------------------------------------------------


@pytest.mark.feature("T14")
@pytest.mark.parametrize("lie", [cut, empty, other_bytes, reads_more, reads_less, of_size(-1), of_size(1 << 62)])
def test_a_lie_about_a_key_is_named_and_costs_no_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lie: Callable[[World, str], None]
) -> None:
    world, name = make_world(tmp_path, monkeypatch, encrypted=True), names.key_name(KEY)
    lie(world, name)
    before = world.everything()

    with world.open(world.rig.target) as storage:
        for read in (lambda: read_keys(storage), lambda: open_repository(storage, world.rig.target, datetime.now(UTC))):
            with pytest.raises(BackupManagerError) as caught:
                read()
            assert caught.value.reason in {"MANIFEST_CORRUPT", "STORAGE_FAILED"}
            assert name in str(caught.value)
    assert world.everything() == before
    assert reason(world.restore()) == ""  # with the key itself, which needs no passphrase


# ---- helpers ------------------------------------------------------------------------------------------------------------


def backups_there(world: World) -> set[str]:
    """Return the backups of the server that are there in truth, each with all its data."""
    with world.honest() as storage:
        history = read_history(storage, SERVER, {})
    assert not history.unreadable
    for point in history.points:
        assert not point.marked
        assert all(history.whole(one) for one in point.disks.values())
    return {point.server.backup_id for point in history.points}


def catalogs_digest(world: World) -> str:
    """Return what the catalog keeps of the incremental, from a time when the storage was honest."""
    result(world.rig.run(reindex=ReindexJob(SERVER)))
    backups = [one["backup"] for one in world.rig.report.records]
    return str(next(one["manifest_digest"] for one in backups if one["backup_id"] == INCREMENTAL))


def whole_points(world: World) -> set[str]:
    with world.honest() as storage:
        history = read_history(storage, SERVER, {})
    return {
        point.server.backup_id for point in history.points
        if point.disks and not point.marked and all(history.whole(one) for one in point.disks.values())
    }  # fmt: skip


def listed_points(world: World) -> set[str]:
    return {path.parent.name for path in (world.root / "servers" / SERVER).glob("*/backup.json")}


def assert_deletions_are_safe(world: World) -> None:
    """Delete what may not go alone, then the rest: what was whole and is still listed is whole all the time."""
    whole = whole_points(world)
    for going in ((FULL,), (INCREMENTAL,), (FULL, INCREMENTAL)):
        outcome = world.rig.delete(SERVER, *going)
        world.words(outcome)
        assert reason(outcome) in {"", "STILL_NEEDED", "BACKUP_NOT_FOUND"}
        assert whole & listed_points(world) <= whole_points(world)
    assert listed_points(world) == set()
    assert_others_untouched(world)


def assert_others_untouched(world: World) -> None:
    for path in (world.rig.folder / "x", world.rig.folder / "storage.txt", world.root / "foreign.txt"):
        assert path.read_bytes() == CANARY
    theirs = [path for path in (world.root / "servers" / OTHER_SERVER).rglob("*") if path.is_file()]
    assert len(theirs) == 6
