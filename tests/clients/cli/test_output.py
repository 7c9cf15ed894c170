"""JSON that scripts rely on, and tables that fit."""

import io
import json
from typing import Any

import pytest

from clients.cli.output import Column, card, console, heading, plain, state, table
from clients.gen.backupmanager.v1 import job_pb2, storage_pb2
from tests.clients import rows


def test_every_field_is_there_under_its_own_name() -> None:
    job = rows.jobs()[0]

    data = plain(job)

    assert set(data) == {field.name for field in job_pb2.Job.DESCRIPTOR.fields}
    assert (data["state"], data["job_id"]) == ("JOB_STATE_QUEUED", rows.JOB)
    assert data["end_time"] is None
    assert data["failure"] is None
    assert data["warnings"] == []
    assert data["create_time"].endswith("Z")
    json.dumps(data)


def test_sizes_are_numbers_and_of_a_oneof_only_what_is_set() -> None:
    storage = rows.storages()[1]

    data = plain(storage)

    assert data["stored_bytes"] == storage.stored_bytes
    assert isinstance(data["stored_bytes"], int)
    assert data["sftp"]["port"] == 2222
    assert "local" not in data
    assert data["secrets"] == [{"name": "sftp_private_key", "fingerprint": rows.KEY_FINGERPRINT}]


def test_facts_and_unknown_values_survive() -> None:
    failed = rows.jobs()[1]
    failed.failure.metadata["storage"] = "offsite"
    failed.state = 99  # type: ignore[assignment]  # of a newer controller

    data = plain(failed)

    assert data["failure"]["metadata"] == {"storage": "offsite"}
    assert data["state"] == 99


def drawn(renderable: Any, width: int) -> str:
    screen = io.StringIO()
    page = console(screen)
    page.width = width
    page.print(renderable)
    return screen.getvalue()


COLUMNS = (
    Column("Id", lambda one: one["id"], whole=True),
    Column("Name", lambda one: one["name"]),
    Column("Note", lambda one: one["note"], rank=1),
    Column("More", lambda one: one["more"], rank=2),
)
ROWS = [{"id": "i" * 36, "name": "a name", "note": "n" * 20, "more": "m" * 20}]


@pytest.mark.parametrize(
    ("width", "titles"), [(120, {"Id", "Name", "Note", "More"}), (75, {"Id", "Name", "Note"}), (60, {"Id", "Name"})]
)
def test_columns_give_way_by_rank(width: int, titles: set[str]) -> None:
    text = drawn(table(ROWS, COLUMNS, title="", width=width), width)

    assert set(text.splitlines()[0].split()) == titles
    assert all(len(line.rstrip()) <= width for line in text.splitlines())
    assert "…" not in text


def test_an_id_is_never_cut() -> None:
    assert "i" * 36 in drawn(table(ROWS, COLUMNS, title="", width=50), 50)


def test_cards_leave_out_what_says_nothing() -> None:
    text = drawn(card(heading("web1", state("running")), [("Here", "yes"), ("Empty", ""), ("Unknown", "-")]), 80)

    assert text.splitlines()[0] == "web1  ● running"
    assert "Here  yes" in text
    assert "Empty" not in text
    assert "Unknown" not in text


def test_a_name_cannot_drive_the_terminal() -> None:
    evil = "web\x1b[2J\x07\r1"
    columns = [Column("Name", lambda one: one), Column("State", state)]
    shown = drawn(card(heading(evil, evil), [("Name", evil)], table([evil], columns, title="", width=80)), 80)
    assert not any(one in shown for one in "\x1b\x07\r")
    assert shown.count("web\N{REPLACEMENT CHARACTER}[2J") == 5


def test_markup_in_a_name_is_text() -> None:
    storage = storage_pb2.Storage(name="[bold]x[/bold]")
    assert "[bold]x[/bold]" in drawn(table([storage], [Column("Name", lambda one: one.name)], title="", width=80), 80)
