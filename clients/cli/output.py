"""What a verb shows: tables and cards for people, one JSON document for scripts. Notes and questions go to stderr.

terminal   colors; columns that matter less give way until the rest fits
pipe       the same tables without colors, as wide as they are
json       the messages of the interface with their field names; see `plain`
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from clients.cli import words

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from google.protobuf.message import Message
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

Format: TypeAlias = Literal["table", "json"]
Cell: TypeAlias = "str | Text"
PIPE_COLUMNS = 100_000  # nobody reads a pipe's lines at a width
_GAP = 3  # cells between two columns
_CELLS_MIN = 5  # below that a cut word says nothing
_STYLES = {
    "completed": "green",
    "online": "green",
    "available": "green",
    "active": "green",
    "connected": "green",
    "enabled": "green",
    "completed with warnings": "yellow",
    "healthy": "green",
    "degraded": "bold yellow",
    "unhealthy": "bold red",
    "unknown": "dim",
    "partial": "yellow",
    "deferred": "yellow",
    "queued": "yellow",
    "dispatched": "yellow",
    "paused": "yellow",
    "read-only": "yellow",
    "disconnected": "yellow",
    "running": "cyan",
    "failed": "bold red",
    "damaged": "bold red",
    "missing": "bold red",
    "banned": "bold red",
    "offline": "red",
    "revoked": "red",
    "revoking": "bold yellow",
    "expired": "red",
    "cancelled": "magenta",
    "locked": "yellow",
    "migrating": "yellow",
    "deletes blocked": "yellow",
    "conflict": "red",
    "deleted": "dim",
    "disabled": "dim",
    "shut off": "dim",
}


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. Those of the highest `rank` give way first on a narrow terminal; rank 0 stays."""

    title: str
    cell: Callable[[Any], Cell]
    right: bool = False
    rank: int = 0
    whole: bool = False  # an id or a digest: cut off it is of no use


class Screen:
    """Where one verb's output goes."""

    def __init__(self, output: Format) -> None:
        self.json = output == "json"
        self.now = datetime.now(UTC)

    @cached_property
    def console(self) -> Console:
        """For results: stdout."""
        return console(sys.stdout)

    @cached_property
    def side(self) -> Console:
        """For all that is not the result: stderr."""
        return console(sys.stderr)

    def show(self, document: Message | dict[str, Any], render: Callable[[], RenderableType | None]) -> None:
        """Show a result: `document` as JSON, or what `render` makes of it for people."""
        if self.json:
            data = document if isinstance(document, dict) else plain(document)
            print(json.dumps(data, indent=2, ensure_ascii=False))
        elif (shown := render()) is not None:
            self.console.print(shown)

    def show_list(self, reply: Message, field: str, columns: Sequence[Column], *, empty: str) -> None:
        """Show a list call's reply: JSON is {"<field>": [rows], …}, of all pages."""
        document = plain(reply)
        document.pop("next_page_token", None)
        document.pop("total_count", None)  # all rows are there: their number is
        self.show(document, lambda: self.table(getattr(reply, field), columns, empty=empty))

    def note(self, text: RenderableType) -> None:
        """Say something beside the result, to people only."""
        if not self.json:
            self.side.print(text)

    def table(
        self, rows: Sequence[Any], columns: Sequence[Column], *, empty: str = "", title: str = ""
    ) -> RenderableType:
        """Return rows as a table that fits the terminal, or the sentence `empty` where there are none."""
        if not rows and empty:
            return styled(empty, "dim")
        return table(rows, columns, title=title, width=self.console.width)


def console(stream: Any) -> Console:
    """Return a rich console: the terminal's width and colors, or a pipe's neither."""
    from rich.console import Console

    width = None if stream.isatty() else PIPE_COLUMNS
    return Console(file=stream, width=width, soft_wrap=width is not None, highlight=False, emoji=False, markup=False)


def table(rows: Sequence[Any], columns: Sequence[Column], *, title: str, width: int) -> Table:
    kept = list(columns)
    while True:
        rank = max(column.rank for column in kept)
        if rank == 0 or sum(_wanted_widths(rows, kept)) + _GAP * (len(kept) - 1) <= width:
            return _table(rows, kept, title, width)
        kept = [column for column in kept if column.rank < rank]


def card(title: Cell, facts: Iterable[tuple[str, Cell]], *parts: RenderableType) -> RenderableType:
    """Return one thing's facts, a name and a value a line, with further parts below. Facts that say nothing are left out."""
    from rich.console import Group
    from rich.table import Table

    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in facts:
        if str(value) not in {"", "-"}:
            grid.add_row(f"  {name}", printable(value))
    shown: list[RenderableType] = [title, grid]
    for part in parts:
        shown += ["", part] if isinstance(part, Table) else [part]
    return Group(*shown)


def styled(text: str, style: str) -> Text:
    from rich.text import Text

    return Text(str(printable(text)), style=style)


def heading(*parts: Cell) -> Text:
    """Return a card's first line: the first part bold, the others after it."""
    from rich.text import Text

    first, *rest = parts
    line = Text(str(printable(first)), style="bold")
    for part in rest:
        shown = printable(part)
        line.append("  ", style="not bold").append(shown if isinstance(shown, Text) else Text(shown, style="not bold"))
    return line


def printable(cell: Cell) -> Cell:
    """Return a cell without control characters but line ends: names and messages come from elsewhere, and a terminal obeys."""
    text = str(cell)
    if all(one.isprintable() or one == "\n" for one in text):
        return cell
    return "".join(one if one.isprintable() or one == "\n" else "\N{REPLACEMENT CHARACTER}" for one in text)


def state(label: str) -> Text:
    """Return a state in its color, with a dot before it: the word is there for who sees no colors."""
    return styled(f"● {label}", _STYLES.get(label, "")) if label not in {"", "-"} else styled("-", "dim")


def state_of(message: Any, field: str = "state") -> Text:
    return state(words.enum_label(message, field))


def plain(message: Any) -> dict[str, Any]:
    """Return a message as JSON values, every field under its own name, so that a script finds the same keys always.

    As the standard JSON form of protobuf with field names preserved, but 64-bit numbers are numbers, and a message that
    is not set is null. Of a oneof only the part that is set is there.
    """
    data: dict[str, Any] = {}
    for field in message.DESCRIPTOR.fields:
        in_oneof = field.containing_oneof is not None
        if in_oneof and not message.HasField(field.name):
            continue
        value = getattr(message, field.name)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            data[field.name] = dict(value)
        elif field.is_repeated:
            data[field.name] = [_plain_value(field, item) for item in value]
        elif field.message_type is not None and not message.HasField(field.name):
            data[field.name] = None
        else:
            data[field.name] = _plain_value(field, value)
    return data


def _plain_value(field: Any, value: Any) -> Any:
    if field.message_type is not None:
        known = field.message_type.full_name in {"google.protobuf.Timestamp", "google.protobuf.Duration"}
        return value.ToJsonString() if known else plain(value)
    if field.enum_type is not None:
        known_value = field.enum_type.values_by_number.get(value)
        return known_value.name if known_value is not None else value
    return value


def _table(rows: Sequence[Any], columns: Sequence[Column], title: str, width: int) -> Table:
    from rich import box
    from rich.table import Table

    made = Table(
        box=box.SIMPLE_HEAD,
        title=title or None,
        title_style="bold",
        title_justify="left",
        header_style="bold dim",
        border_style="dim",
        show_edge=False,
        pad_edge=False,
        padding=(0, 1),
    )
    widths = _fitted(_wanted_widths(rows, columns), columns, width - _GAP * (len(columns) - 1))
    for column, cells in zip(columns, widths, strict=True):
        made.add_column(
            column.title,
            justify="right" if column.right else "left",
            no_wrap=True,
            overflow="fold" if column.whole else "ellipsis",
            min_width=cells if column.whole else None,
            max_width=cells,
        )
    for row in rows:
        made.add_row(*(printable(column.cell(row)) for column in columns))
    return made


def _wanted_widths(rows: Sequence[Any], columns: Sequence[Column]) -> list[int]:
    """Return how many terminal cells each column takes when nothing is cut."""
    return [max([len(column.title), *(_cells(column.cell(row)) for row in rows)]) for column in columns]


def _fitted(widths: list[int], columns: Sequence[Column], room: int) -> list[int]:
    """Return widths that fit: the widest of the columns that may be cut give way first, and none below _CELLS_MIN."""
    fitted = list(widths)
    while sum(fitted) > room:
        able = [at for at, column in enumerate(columns) if not column.whole and fitted[at] > _CELLS_MIN]
        if not able:
            break
        widest = max(able, key=lambda at: fitted[at])
        below = max((fitted[at] for at in able if fitted[at] < fitted[widest]), default=_CELLS_MIN)
        fitted[widest] -= min(sum(fitted) - room, max(1, fitted[widest] - below))
    return fitted


def _cells(cell: Cell) -> int:
    from rich.cells import cell_len

    return cell_len(str(printable(cell)))
