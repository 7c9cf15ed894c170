"""Pages: every row once, tokens that fit their list alone, replies that stay below the limit of a message."""

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clients.gen.backupmanager.v1 import server_pb2
from controller.errors import InvalidField, InvalidPageToken
from controller.services import paging


def walk(names: list[str], size: int, row_bytes: int = 0) -> list[list[str]]:
    """Read a list of names to its end, as a client does; each row's message has `row_bytes` of other things."""
    pages, token = [], ""
    while True:
        page = paging.page("servers", ("x",), size, token, (str,))
        after = "" if page.after is None else str(page.after[0])
        rows = [name for name in sorted(names) if page.after is None or name > after][: page.size + 1]
        filled = paging.fill(
            page, rows, lambda row: server_pb2.Server(name=row, etag="x" * row_bytes), lambda row: (row,)
        )
        pages.append([one.name for one in filled.messages])
        token = filled.next_page_token
        if not token:
            return pages


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@given(st.sets(TEXT, max_size=30), st.integers(1, 7))
def test_every_row_comes_once_and_in_order(names: set[str], size: int) -> None:
    pages = walk(list(names), size)
    assert [name for page in pages for name in page] == sorted(names)
    assert all(len(page) == size for page in pages[:-1])


@pytest.mark.feature("N9")
def test_a_page_ends_early_where_its_rows_are_large() -> None:
    names = [f"{number:03}" for number in range(30)]
    pages = walk(names, 1000, row_bytes=100_000)
    assert [name for page in pages for name in page] == names
    assert max(len(page) for page in pages) == 9


def test_a_single_row_that_fills_a_page_is_still_given() -> None:
    assert walk(["x", "y"], 10, row_bytes=950 << 10) == [["x"], ["y"]]


@pytest.mark.parametrize("size", [-1, 1001, 2**31 - 1])
def test_an_absurd_page_size_is_refused(size: int) -> None:
    with pytest.raises(InvalidField) as refusal:
        paging.page("servers", (), size, "", (str,))
    assert refusal.value.facts["field"] == "page_size"


def test_no_page_size_means_a_hundred() -> None:
    assert paging.page("servers", (), 0, "", (str,)).size == 100


TOKEN = paging.page("servers", ("filter",), 1, "", (str, int)).token(("name", 7))


def test_a_token_brings_its_key_back() -> None:
    assert paging.page("servers", ("filter",), 1, TOKEN, (str, int)).after == ("name", 7)


@pytest.mark.parametrize(
    ("name", "filters", "token"),
    [
        ("storages", ("filter",), TOKEN),
        ("servers", ("other filter",), TOKEN),
        ("servers", (), TOKEN),
        ("servers", ("filter",), TOKEN[:-3]),
        ("servers", ("filter",), "garbage"),
        ("servers", ("filter",), "ü"),
        ("servers", ("filter",), "x" * 5000),
        ("servers", ("filter",), base64.urlsafe_b64encode(b"[" * 1500).decode()),
        ("servers", ("filter",), base64.urlsafe_b64encode(json.dumps([TOKEN, "name", 2**70]).encode()).decode()),
    ],
)
def test_a_token_of_another_list_or_of_nobody_is_refused(name: str, filters: tuple[str, ...], token: str) -> None:
    with pytest.raises(InvalidPageToken):
        paging.page(name, filters, 1, token, (str, int))


@pytest.mark.parametrize(
    "values",
    [["name"], ["name", 7, 7], [7, "name"], ["name", True], ["name", None], ["\0", 7], ["\ud800", 7], ["n", 2**63]],
)
def test_a_token_with_another_key_is_refused(values: list[object]) -> None:
    digest = paging.page("servers", ("filter",), 1, "", (str, int)).digest
    token = base64.urlsafe_b64encode(json.dumps([digest, *values]).encode()).decode()
    with pytest.raises(InvalidPageToken):
        paging.page("servers", ("filter",), 1, token, (str, int))


@given(st.binary(max_size=60))
def test_no_token_at_all_breaks_anything(data: bytes) -> None:
    try:
        paging.page("servers", (), 1, base64.urlsafe_b64encode(data).decode() or "-", (str,))
    except InvalidPageToken:
        pass
