"""A storage's test as people see it: one line a step, drawn while it runs and again, with times and rates, when it has ended.

✓ connect                  24 ms
✓ write                   180 ms   44.4 MiB/s
✗ rename                   12 ms   … is not permitted. Let the user list, read, write, rename and delete …
- size                   not tried
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING

from clients.cli import words
from clients.cli.output import styled
from clients.cli.progress import figures

if TYPE_CHECKING:
    from collections.abc import Iterator

    from rich.console import Console, RenderableType
    from rich.text import Text

    from clients.cli.progress import Display
    from clients.gen.backupmanager.v1.job_pb2 import Job

_TITLES = {
    "connect": "connect and log in",
    "repository": "see whose it is",
    "write": "write",
    "rename": "rename to its final name",
    "complete": "complete an upload",
    "size": "tell sizes",
    "refuse_second_write": "refuse a second write",
    "read": "read back",
    "range_read": "read ranges",
    "list": "list",
    "delete": "delete",
}


def title(name: str) -> str:
    """Return what a step does, in words."""
    return _TITLES.get(name, name.replace("_", " "))


def report(job: Job) -> Iterator[RenderableType]:
    """Yield the lines of a test that has ended: what worked, what failed and what to do now, what was not tried, and hints."""
    from rich.table import Table

    result = job.result.test
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    grid.add_column(justify="right", no_wrap=True)
    for step in result.steps:
        mark = styled("  ✗", "bold red") if step.failed else styled("  ✓", "green")
        took = words.span(words.seconds_of(step.duration))
        grid.add_row(mark, title(step.name), took, words.rate(step.bytes_per_second) if step.bytes_per_second else "")
    for name in result.pending_steps:
        grid.add_row(styled("  -", "dim"), styled(title(name), "dim"), styled("not tried", "dim"), "")
    yield grid
    if job.HasField("failure"):
        yield styled(f"\n  ✗ {job.failure.message} [{job.failure.reason}]", "red")
    for hint in result.hints:
        yield styled(f"  ! {hint}", "yellow")


class Checklist:
    """The steps of a test that runs: those that were seen are checked off, the present one is marked."""

    def __init__(self) -> None:
        self._seen: list[str] = []
        self._line = "asking"

    def change(self, job: Job) -> None:
        stage = job.progress.stage
        if stage and stage not in self._seen:
            self._seen.append(stage)
        self._line = "" if self._seen else figures(job).line

    def lost(self) -> None:
        self._line = "no answer from the controller, trying again"

    def drawn(self) -> Text:
        """Return the list as it is now."""
        from rich.text import Text

        text = Text()
        for number, name in enumerate(self._seen):
            last = number == len(self._seen) - 1
            text.append("  … " if last else "  ✓ ", style="cyan" if last else "green").append(f"{title(name)}\n")
        return text.append(f"  {self._line}") if self._line else text


@contextmanager
def checklist(console: Console) -> Iterator[Display]:
    """Draw a test's steps in place for as long as the block lasts; they go when it ends, and the report takes their place."""
    from rich.live import Live

    steps = Checklist()
    with Live(console=console, transient=True, refresh_per_second=8, get_renderable=steps.drawn):
        yield steps
