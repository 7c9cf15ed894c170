"""Whose storage it is, and the keys in it: nothing foreign is taken over, nothing that is there is overwritten."""

import json
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from functools import partial
from threading import Barrier

import pytest

from engine.errors import (
    InvalidSpec,
    ManifestCorrupt,
    RepositoryForeign,
    RepositoryMissing,
    RepositoryUnsupported,
    StorageDenied,
)
from engine.format import documents, keys, names
from engine.format.crypto import StorageKey
from engine.format.keys import ScryptCost
from engine.format.markers import Repository
from engine.ids import new_id
from engine.repository import (
    BackupFolder,
    check_repository,
    list_backup_folders,
    list_backups,
    list_servers,
    open_repository,
    read_keys,
)
from engine.spec import LocalConfig, StorageSpec
from engine.storage.local import LocalStorage
from tests.faults import FaultyStorage

NOW = datetime(2026, 11, 23, 3, 0, tzinfo=UTC)
REPOSITORY, INSTALLATION, KEY = new_id(NOW), new_id(NOW), new_id(NOW)
CHEAP = ScryptCost(n=16, r=1, p=1)
STORAGE_KEY = StorageKey(KEY, bytes(range(32)))

pytestmark = pytest.mark.feature("S29")


@pytest.fixture
def spec(tmp_path):
    return StorageSpec(REPOSITORY, INSTALLATION, local=LocalConfig(str(tmp_path)))


@pytest.fixture
def storage(tmp_path):
    with FaultyStorage(LocalStorage(str(tmp_path))) as storage:
        yield storage


def wrapped(*passphrases: str) -> keys.KeyObject:
    made = keys.wrap_key(STORAGE_KEY, passphrases[0], "2026-11-23T03:00:00Z", CHEAP)
    for added in passphrases[1:]:
        made = keys.add_passphrase(made, passphrases[0], added, "2026-11-24T03:00:00Z", CHEAP)
    return made


def with_key(spec: StorageSpec, key: keys.KeyObject) -> StorageSpec:
    return StorageSpec(spec.repository_id, spec.installation_id, spec.local, wrapped_keys={KEY: key.dump().decode()})


def writes(storage: FaultyStorage) -> list[str]:
    return [name for operation, name in storage.calls if operation == "create"]


# ---- whose it is --------------------------------------------------------------------------------------------------------


class TestOwner:
    def test_an_empty_place_becomes_the_repository(self, storage, spec):
        made = open_repository(storage, spec, NOW.astimezone(timezone(timedelta(hours=5))))
        assert (made.repository_id, made.installation_id, made.format) == (REPOSITORY, INSTALLATION, 1)
        assert made.create_time == "2026-11-23T03:00:00Z"
        data = storage.get("repository.json")
        assert json.loads(data.splitlines()[0])["kind"] == "repository"
        assert Repository.load(data, "here") == made

    def test_the_next_one_finds_it_and_writes_nothing(self, storage, spec):
        made = open_repository(storage, spec, NOW)
        storage.calls.clear()
        assert open_repository(storage, spec, NOW + timedelta(days=1)) == made
        assert check_repository(storage, spec) == made
        assert writes(storage) == []

    @pytest.mark.parametrize("other", [(new_id(NOW), INSTALLATION), (REPOSITORY, new_id(NOW))])
    def test_anothers_is_refused_and_stays_as_it_is(self, storage, spec, other):
        open_repository(storage, StorageSpec(*other), NOW)
        before = storage.get("repository.json")
        for work in (partial(open_repository, storage, spec, NOW), partial(check_repository, storage, spec)):
            with pytest.raises(RepositoryForeign) as caught:
                work()
            assert other[0] in caught.value.facts["found"]
            assert REPOSITORY in caught.value.facts["expected"]
        assert storage.get("repository.json") == before

    def test_a_foreign_place_gets_no_key(self, storage, spec):
        open_repository(storage, StorageSpec(new_id(NOW), INSTALLATION), NOW)
        with pytest.raises(RepositoryForeign):
            open_repository(storage, with_key(spec, wrapped("one")), NOW)
        assert list(storage.list("keys")) == []

    def test_a_race_of_two_installations_has_one_owner(self, tmp_path):
        specs = [StorageSpec(new_id(NOW), new_id(NOW)) for _ in range(8)]
        start = Barrier(len(specs))

        def claim(spec: StorageSpec) -> bool:
            with LocalStorage(str(tmp_path)) as storage:
                start.wait(30)
                try:
                    return open_repository(storage, spec, NOW).repository_id == spec.repository_id
                except RepositoryForeign:
                    return False

        with ThreadPoolExecutor(len(specs)) as pool:
            assert list(pool.map(claim, specs)).count(True) == 1

    def test_a_race_within_one_installation_lets_all_in(self, tmp_path, spec):
        start = Barrier(8)
        spec = with_key(spec, wrapped("one"))

        def claim(_: int) -> str:
            with LocalStorage(str(tmp_path)) as storage:
                start.wait(30)
                return open_repository(storage, spec, NOW).repository_id

        with ThreadPoolExecutor(8) as pool:
            assert set(pool.map(claim, range(8))) == {REPOSITORY}
        with LocalStorage(str(tmp_path)) as storage:
            assert {entry.name for entry in storage.list()} == {"repository.json", f"keys/{KEY}.json"}

    def test_a_place_without_one_is_not_initialized_by_looking(self, storage, spec):
        with pytest.raises(RepositoryMissing):
            check_repository(storage, spec)
        assert list(storage.list()) == []

    def test_every_cut_and_every_flipped_byte_is_refused_and_not_overwritten(self, tmp_path, storage, spec):
        open_repository(storage, spec, NOW)
        path = tmp_path / "repository.json"
        whole = path.read_bytes()
        damaged = [whole[:end] for end in range(len(whole))] + [whole + b"\n", b"", b"\0" * 100_000]
        damaged += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
        for data in damaged:
            path.write_bytes(data)
            with pytest.raises(ManifestCorrupt):
                open_repository(storage, spec, NOW)
            assert path.read_bytes() == data

    def test_a_later_format_is_refused(self, storage, spec):
        body = {"kind": "repository", "version": 1, "repository_id": REPOSITORY, "installation_id": INSTALLATION}
        body |= {"format": 2, "create_time": "2030-01-01T00:00:00Z"}
        storage.put("repository.json", documents.wrap(documents.to_json(body)))
        with pytest.raises(RepositoryUnsupported) as caught:
            open_repository(storage, spec, NOW)
        assert caught.value.facts["found"] == "2"

    def test_a_lost_repository_json_is_not_written_over_backups(self, storage, spec):
        open_repository(storage, spec, NOW)
        storage.put(names.backup_name(new_id(NOW), new_id(NOW)), b"somebody's")
        storage.delete("repository.json")
        with pytest.raises(ManifestCorrupt) as caught:
            open_repository(storage, spec, NOW)
        assert caught.value.facts["name"] == "repository.json"
        assert "repository.json" not in {entry.name for entry in storage.list()}

    def test_foreign_files_do_not_hinder(self, storage, spec):
        storage.put("lost_and_found/something", b"")
        storage.put("servers/readme.txt", b"")
        assert open_repository(storage, spec, NOW).repository_id == REPOSITORY

    @pytest.mark.parametrize("field", ["repository_id", "installation_id"])
    def test_an_id_that_is_none_is_refused(self, storage, spec, field):
        values = {"repository_id": REPOSITORY, "installation_id": INSTALLATION, field: "../etc"}
        with pytest.raises(InvalidSpec) as caught:
            open_repository(storage, StorageSpec(values["repository_id"], values["installation_id"]), NOW)
        assert caught.value.facts["field"] == field
        assert list(storage.list()) == []

    def test_what_the_storage_denies_is_said(self, storage, spec):
        storage.fail("create", error=lambda label, name: StorageDenied(storage=label, step="create", name=name))
        with pytest.raises(StorageDenied):
            open_repository(storage, spec, NOW)


# ---- keys ---------------------------------------------------------------------------------------------------------------


class TestKeys:
    def test_they_are_written_once(self, storage, spec):
        spec = with_key(spec, wrapped("one"))
        open_repository(storage, spec, NOW)
        storage.calls.clear()
        open_repository(storage, spec, NOW)
        assert writes(storage) == []
        assert storage.get(f"keys/{KEY}.json").decode() == spec.wrapped_keys[KEY]
        assert keys.unwrap_key(read_keys(storage)[KEY], "one") == STORAGE_KEY

    def test_an_added_passphrase_becomes_the_next_revision(self, storage, spec):
        made = wrapped("one")
        more = keys.add_passphrase(made, "one", "two", "2026-11-24T03:00:00Z", CHEAP)
        most = keys.add_passphrase(more, "two", "three", "2026-11-25T03:00:00Z", CHEAP)
        for key in (made, more, most):
            open_repository(storage, with_key(spec, key), NOW)
        assert {entry.name for entry in storage.list("keys")} == {
            f"keys/{KEY}.json",
            f"keys/{KEY}.1.json",
            f"keys/{KEY}.2.json",
        }
        assert storage.get(f"keys/{KEY}.json") == made.dump()
        assert keys.unwrap_key(read_keys(storage)[KEY], "three") == STORAGE_KEY

    def test_an_older_form_than_the_storages_changes_nothing(self, storage, spec):
        made = wrapped("one")
        more = keys.add_passphrase(made, "one", "two", "2026-11-24T03:00:00Z", CHEAP)
        for key in (made, more, made):
            open_repository(storage, with_key(spec, key), NOW)
        assert len(list(storage.list("keys"))) == 2
        assert keys.unwrap_key(read_keys(storage)[KEY], "two") == STORAGE_KEY

    def test_another_form_of_the_same_key_is_left_as_it_is(self, storage, spec):
        open_repository(storage, with_key(spec, wrapped("one")), NOW)
        before = storage.get(f"keys/{KEY}.json")
        open_repository(storage, with_key(spec, wrapped("other")), NOW)
        assert [entry.name for entry in storage.list("keys")] == [f"keys/{KEY}.json"]
        assert storage.get(f"keys/{KEY}.json") == before

    def test_another_key_under_that_name_is_refused(self, tmp_path, storage, spec):
        stranger = keys.wrap_key(StorageKey(new_id(NOW), bytes(32)), "x", "2026-11-23T03:00:00Z", CHEAP)
        storage.put(f"keys/{KEY}.json", stranger.dump())
        storage.put("repository.json", open_elsewhere(tmp_path / "elsewhere", spec))
        with pytest.raises(ManifestCorrupt):
            open_repository(storage, with_key(spec, wrapped("one")), NOW)
        assert storage.get(f"keys/{KEY}.json") == stranger.dump()

    def test_a_damaged_key_is_refused_and_not_overwritten(self, tmp_path, storage, spec):
        spec = with_key(spec, wrapped("one"))
        open_repository(storage, spec, NOW)
        path = tmp_path / f"keys/{KEY}.json"
        for data in (b"", path.read_bytes()[:-10], bytes(100_000)):
            path.write_bytes(data)
            with pytest.raises(ManifestCorrupt):
                open_repository(storage, spec, NOW)
            assert path.read_bytes() == data

    def test_a_key_of_the_spec_that_is_not_that_key_is_refused(self, storage, spec):
        spec = StorageSpec(REPOSITORY, INSTALLATION, wrapped_keys={new_id(NOW): wrapped("one").dump().decode()})
        with pytest.raises(ManifestCorrupt):
            open_repository(storage, spec, NOW)
        assert list(storage.list("keys")) == []


def open_elsewhere(folder, spec) -> bytes:
    """Return a repository.json of `spec`."""
    with LocalStorage(str(folder)) as storage:
        return open_repository(storage, spec, NOW).dump()


# ---- what it holds ------------------------------------------------------------------------------------------------------


def test_servers_and_backups_are_told_by_names_alone(storage):
    one, two, old, new, begun = (new_id(NOW + timedelta(seconds=number)) for number in range(5))
    for backup in (new, old):
        storage.put(names.intent_name(one, backup), b"i")
        storage.put(names.segment_name(one, backup, "vda", 0), b"segment")
        storage.put(names.manifest_name(one, backup, "vda"), b"m")
        storage.put(names.backup_name(one, backup), b"b")
    storage.put(names.deleted_name(one, old, "vda"), b"")
    storage.put(names.segment_name(one, begun, "vda", 0), b"half")
    storage.put(names.segment_name(one, begun, "vdb", 0), b"")
    storage.put(names.intent_name(two, begun), b"i")
    storage.put("servers/not-an-id/object", b"")
    storage.put(f"servers/{one}/notes.txt", b"")
    storage.put(f"servers/{one}/{old}/vda/notes.txt", b"")
    storage.calls.clear()

    assert list_servers(storage) == (one, two)
    assert list_backups(storage, one) == (old, new)
    assert list_backups(storage, two) == ()
    assert list_backups(storage, new_id(NOW)) == ()
    folders = {folder.backup_id: folder for folder in list_backup_folders(storage, one)}
    assert list(folders) == [old, new, begun]
    assert folders[old].deleted_disks == {"vda"}
    assert folders[new] == BackupFolder(
        new, committed=True, intent=True, disks=frozenset({"vda"}), deleted_disks=frozenset(), stored_bytes=10
    )
    assert folders[begun] == BackupFolder(
        begun, committed=False, intent=False, disks=frozenset({"vda", "vdb"}), deleted_disks=frozenset(), stored_bytes=4
    )
    assert {operation for operation, _ in storage.calls} == {"list"}
