"""The dashboard, the tree and the diagnosis as a person sees them: at 80 and at 140 cells, without colors, on a terminal."""

import io
import re
import signal
from datetime import UTC, datetime

import pytest
from rich.console import Console

from clients.cli import backup_tree, dashboard, overview
from clients.cli.output import Screen
from clients.gen.backupmanager.v1 import overview_pb2, overview_service_pb2, storage_pb2
from tests.clients import overviews
from tests.clients.bmctl import Bmctl
from tests.clients.canned import Canned

BLOCKS = overview_pb2.FINDING_STATE_BLOCKS


def lines(width: int, data: overview_pb2.Overview | None = None) -> list[str]:
    """Return the dashboard's lines without colors."""
    console = Console(file=io.StringIO(), width=width, no_color=True, highlight=False, emoji=False, markup=False)
    with console.capture() as captured:
        console.print(dashboard.render(data or overviews.overview(), datetime.now(UTC), width))
    return captured.get().splitlines()


@pytest.mark.feature("M1", "M2", "M3", "M4", "H2")
@pytest.mark.parametrize("width", [80, 140])
def test_everything_is_on_the_screen_and_nothing_leaves_it(width: int) -> None:
    text = "\n".join(lines(width))
    assert max(map(len, lines(width))) <= width
    for said in (
        "2 jobs", "5 waiting, 1 batch", "117 of 120 servers", "41.0 TiB", "3480 backups", "3 of 4 on", "● 1 overdue",
        "3 of 4 online", "● 1 unhealthy", "● unhealthy", "● healthy", "████▓▓▓░░░", "30.0 TiB free", "● partial",
        "29 of 30, 1 failed", "● overdue, 2 hours ago", "Failing servers (1)", "STORAGE_FULL", "Without any backup (3)",
        "To be purged (1)", "9.00 GiB", "Recent errors", "backup db1",
        "Not as the catalog said (7)", "Taken in",
    ):  # fmt: skip
        assert said in text, said
    assert "\x1b" not in text, "a server's name does not speak to the terminal"


@pytest.mark.feature("M1")
def test_a_wide_screen_has_one_row_of_cards_and_two_columns_a_narrow_one_has_neither() -> None:
    wide, narrow = lines(140), lines(80)
    assert sum(line.startswith("╭") for line in wide) == 1
    assert sum(line.startswith("╭") for line in narrow) == 2
    assert any("Storages" in line and "Upcoming" in line for line in wide)
    assert not any("Storages" in line and "Upcoming" in line for line in narrow)
    assert len(wide) < len(narrow)


def test_an_empty_installation_says_so() -> None:
    empty = overview_pb2.Overview(counts=overview_pb2.OverviewCounts(), paused=True)
    text = "\n".join(lines(80, empty))
    for said in ("0 jobs", "0 of 0 servers", "Storages  none yet", "nothing is scheduled", "● dispatcher paused"):
        assert said in text, said


@pytest.mark.parametrize(
    ("total", "free", "ours", "expected"),
    [
        (0, 0, 5, "··········"),
        (100, 100, 0, "░░░░░░░░░░"),
        (100, 0, 100, "██████████"),
        (100, 30, 40, "████▓▓▓░░░"),
        (100, 0, 500, "██████████"),
    ],
)
def test_bars_say_what_fills_a_storage(total: int, free: int, ours: int, expected: str) -> None:
    usage = storage_pb2.StorageUsage(total_bytes=total, free_bytes=free, backup_bytes=ours)
    assert str(dashboard.usage_bar(usage, 10)) == expected


def test_a_share_is_full_only_when_nothing_is_missing() -> None:
    bars = [str(dashboard.share_bar(part, 1000, 10)) for part in (0, 999, 1000)]
    assert bars == ["░░░░░░░░░░", "█████████░", "██████████"]
    assert str(dashboard.share_bar(0, 0, 4)) == "░░░░"


@pytest.mark.feature("M10", "M17")
def test_the_tree_marks_the_current_chain_copies_and_removed_disks() -> None:
    console = Console(file=io.StringIO(), width=120, no_color=True, highlight=False)
    with console.capture() as captured:
        console.print(backup_tree.draw("web1", overviews.chains(), datetime.now(UTC)))
    text = captured.get()
    assert re.search(r"├── vda\n│   ├── chain 0000000000c2  on offsite  ● current  2 records, 800 MiB", text)
    assert re.search(r"copies  on offsite  2 records", text)
    assert "└── vdb  (removed: left out of restores, its data is kept)" in text
    assert text.count("● current") == 1
    assert re.search(r"◆ full +2 days ago +400 MiB", text)


@pytest.mark.feature("E1")
def test_a_diagnosis_shows_marks_words_and_remedies() -> None:
    reply = overview_service_pb2.DiagnoseServerResponse(
        server_name="web1",
        summary="the schedule is disabled",
        findings=[
            overview_pb2.Finding(step="errors", state=overview_pb2.FINDING_STATE_OK, sentence="no errors"),
            overview_pb2.Finding(
                step="schedule", state=BLOCKS, sentence="the schedule is disabled", remedy="Enable it"
            ),
        ],
    )
    console = Console(file=io.StringIO(), width=80, no_color=True, highlight=False)
    with console.capture() as captured:
        console.print(overview._diagnosis(Screen("table"), reply))
    text = captured.get()
    assert "web1  ✗ is not backed up" in text
    assert re.search(r"✓ errors +no errors", text)
    assert re.search(r"✗ schedule +the schedule is disabled *\n +→ Enable it", text)


@pytest.mark.feature("M1")
def test_watch_refreshes_on_a_terminal_until_it_is_interrupted(bmctl: Bmctl, canned: Canned) -> None:
    with bmctl.on_terminal("overview", "--watch", "--every", "0.5", columns=140) as terminal:
        terminal.wait_for("117 of 120 servers")
        canned.overview.counts.protected_server_count = 118
        terminal.wait_for("118 of 120 servers")
        terminal.interrupt(signal.SIGINT)
        assert terminal.end() in {0, 130}
    assert b"\x1b[?1049l" in terminal.raw, "the screen of before is back"


@pytest.mark.feature("M1")
def test_json_and_pipes(bmctl: Bmctl) -> None:
    assert bmctl("overview", "--output", "json").json["overview"]["counts"]["backup_count"] == 3480
    piped = bmctl("overview")
    assert (piped.code, "\x1b" in piped.out) == (0, False)
    assert max(map(len, piped.out.splitlines())) <= 140
    tree = bmctl("server", "tree", "web1")
    assert "● current" in tree.out
    assert bmctl("diagnose", "web1", "-o", "json").json["will_be_backed_up"] is True
    health = bmctl("storage", "health", "offsite")
    assert "kvm1" in health.out, health.err
    assert bmctl("storage", "check", "offsite").code == 0
