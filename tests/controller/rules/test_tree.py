"""A server's backups as a tree: chains by disk and storage, copies apart, the current one marked, removed disks too."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from controller.rules.tree import RECORDS_MAX, Record, build

BEGIN = datetime(2026, 11, 1, tzinfo=UTC)


def record(
    number: int, chain: str = "c1", disk: str = "vda", kind: str = "incremental", storage: str = "nas"
) -> Record:
    return Record(
        backup_id=f"b{number:05}", disk=disk, storage_id=storage, chain_id=chain,
        create_time=BEGIN + timedelta(days=number), type=kind, state="available", parent_backup_id="",
        size_bytes=100, data_bytes=10, stored_bytes=5, fallback_reason="",
    )  # fmt: skip


@pytest.mark.feature("M10")
def test_chains_copies_and_the_current_one() -> None:
    made = [
        record(1, kind="full"), record(2), record(3, "", kind="copy"), record(4, "c2", kind="full"), record(5, "c2"),
        record(6, "c9", kind="copy"),
    ]  # fmt: skip
    chains = build(made, {"vda"})
    assert [(one.chain_id, one.copies, one.current, one.backup_count) for one in chains] == [
        ("c2", False, True, 2),
        ("c1", False, False, 2),
        ("", True, False, 2),
    ]
    assert chains[0].start_time == BEGIN + timedelta(days=4)
    assert chains[0].last_time == BEGIN + timedelta(days=5)
    assert chains[0].stored_bytes == 10
    assert [one.backup_id for one in chains[2].records] == ["b00003", "b00006"]


@pytest.mark.feature("M10")
def test_each_disk_and_storage_has_a_current_chain_of_its_own() -> None:
    made = [record(1), record(2, "c2", storage="s3"), record(3, "c3", disk="vdb")]
    assert [(one.disk, one.storage_id, one.current) for one in build(made, ())] == [
        ("vda", "nas", True),
        ("vda", "s3", True),
        ("vdb", "nas", True),
    ]


@pytest.mark.feature("M17")
def test_a_removed_disk_is_marked_and_nobody_guesses_without_a_report() -> None:
    made = [record(1), record(2, disk="vdb")]
    assert [(one.disk, one.disk_removed) for one in build(made, {"vda"})] == [("vda", False), ("vdb", True)]
    assert not any(one.disk_removed for one in build(made, ()))


def test_a_very_long_chain_shows_its_newest_records() -> None:
    (chain,) = build([record(number) for number in range(RECORDS_MAX + 5)], ())
    assert (chain.backup_count, len(chain.records)) == (RECORDS_MAX + 5, RECORDS_MAX)
    assert chain.records[-1].backup_id == f"b{RECORDS_MAX + 4:05}"
    assert chain.start_time == BEGIN


@pytest.mark.feature("M10")
@given(
    st.lists(
        st.builds(
            record,
            st.integers(0, 50),
            st.sampled_from(["", "c1", "c2"]),
            st.sampled_from(["vda", "vdb"]),
            st.sampled_from(["full", "incremental", "copy"]),
            st.sampled_from(["nas", "s3"]),
        ),
        unique_by=lambda one: (one.backup_id, one.disk, one.storage_id),
    )
)
def test_every_record_is_in_one_chain_and_one_chain_of_each_disk_is_current(records: list[Record]) -> None:
    chains = build(records, ())
    assert sorted(str(one) for chain in chains for one in chain.records) == sorted(map(str, records))
    assert [one.key for one in chains] == sorted({one.key for one in chains})
    chained = {(one.disk, one.storage_id) for one in chains if not one.copies}
    assert sorted((one.disk, one.storage_id) for one in chains if one.current) == sorted(chained)
