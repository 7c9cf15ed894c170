"""Names made and parsed; nothing from outside becomes a path."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.errors import InvalidSpec
from engine.format import names
from engine.format.names import ObjectName
from engine.storage.base import check_name
from tests.engine.format.samples import RELAXED

ids = st.uuids().map(str)
disks = st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_-]{0,31}", fullmatch=True)


@pytest.mark.feature("S29")
@RELAXED
@given(server_id=ids, backup_id=ids, disk=disks, number=st.integers(0, names.SEGMENTS_MAX - 1))
def test_parse_is_the_inverse_of_every_name(server_id, backup_id, disk, number):
    of_disk = {"server_id": server_id, "backup_id": backup_id, "disk": disk}
    made = {
        names.REPOSITORY: ObjectName("repository"),
        names.key_name(server_id): ObjectName("key", key_id=server_id),
        names.key_name(server_id, number + 1): ObjectName("key", key_id=server_id, number=number + 1),
        names.intent_name(server_id, backup_id): ObjectName("intent", server_id, backup_id),
        names.backup_name(server_id, backup_id): ObjectName("backup", server_id, backup_id),
        names.manifest_name(server_id, backup_id, disk): ObjectName("manifest", **of_disk),
        names.deleted_name(server_id, backup_id, disk): ObjectName("deleted", **of_disk),
        names.segment_name(server_id, backup_id, disk, number): ObjectName("segment", **of_disk, number=number),
    }

    for name, meaning in made.items():
        assert names.parse(check_name(name)) == meaning


@RELAXED
@given(st.text(alphabet="servkyintbackupdola0123456789-./_\0\n", max_size=120))
def test_other_names_are_foreign(name):
    assert names.parse(name) is None


@pytest.mark.parametrize(
    "name",
    [
        "",
        "/",
        "repository.json/",
        "x/repository.json",
        "keys/../repository.json",
        f"keys/{'0' * 36}.json",
        "keys/00000000-0000-7000-8000-00000000000f.0.json",
        "keys/00000000-0000-7000-8000-00000000000f.01.json",
        "keys/00000000-0000-7000-8000-00000000000F.json",
        "servers/00000000-0000-7000-8000-000000000001/00000000-0000-7000-8000-00000000000a/vda/000.data",
        "servers/00000000-0000-7000-8000-000000000001/00000000-0000-7000-8000-00000000000a/vda/00000.data",
        "servers/00000000-0000-7000-8000-000000000001/00000000-0000-7000-8000-00000000000a/vda/\u0660\u0660\u0660\u0660.data",
        "servers/00000000-0000-7000-8000-000000000001/00000000-0000-7000-8000-00000000000a/../0000.data",
        "servers/00000000-0000-7000-8000-000000000001/00000000-0000-7000-8000-00000000000a/-vda/0000.data",
        "servers/00000000-0000-7000-8000-000000000001/00000000-0000-7000-8000-00000000000a/vda/0000.data.part",
        "servers/00000000-0000-7000-8000-000000000001/00000000-0000-7000-8000-00000000000a/vda/backup.json",
        "servers/00000000-0000-7000-8000-000000000001/00000000-0000-7000-8000-00000000000a/manifest.json",
    ],
)
def test_names_that_look_like_ours_are_foreign(name):
    assert names.parse(name) is None


@pytest.mark.parametrize("bad", ["", "..", "a/b", "vda\n", "-x", "x" * 33, "vd a", "é", "a.b", "\0"])
def test_a_disk_that_cannot_be_a_name_is_refused(bad):
    with pytest.raises(InvalidSpec):
        names.manifest_name("00000000-0000-7000-8000-000000000001", "00000000-0000-7000-8000-00000000000a", bad)


@pytest.mark.parametrize("bad", ["", "..", "0" * 36, "00000000-0000-7000-8000-00000000000A", "{x}", "web-1"])
def test_an_id_that_is_none_is_refused(bad):
    with pytest.raises(InvalidSpec):
        names.server_folder(bad)
    with pytest.raises(InvalidSpec):
        names.backup_folder("00000000-0000-7000-8000-000000000001", bad)
    with pytest.raises(InvalidSpec):
        names.key_name(bad)


@pytest.mark.parametrize("number", [-1, names.SEGMENTS_MAX])
def test_a_segment_beyond_the_last_is_refused(number):
    with pytest.raises(InvalidSpec):
        names.segment_name("00000000-0000-7000-8000-000000000001", "00000000-0000-7000-8000-00000000000a", "a", number)
