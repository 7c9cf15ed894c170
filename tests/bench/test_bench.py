"""The benchmark's own arithmetic, and that its command works; the figures themselves belong to a quiet machine."""

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.bench.figures import absent, figure
from tests.bench.rounds import alternate


@pytest.mark.parametrize(("aim", "met"), [(">= 2", True), (">= 2.1", False), ("<= 2", True), ("<= 1.9", False)])
def test_a_figure_is_the_median_of_its_rounds_and_says_whether_it_meets_its_aim(
    capsys: pytest.CaptureFixture[str], aim: str, *, met: bool
) -> None:
    assert figure("a", [9.0, 2.0, 1.0], aim) is met
    line = json.loads(capsys.readouterr().out)
    assert line == {"figure": "a", "value": 2.0, "aim": aim, "met": met, "rounds": 3, "min": 1.0, "max": 9.0}


def test_a_missing_program_is_a_figure_that_is_not_met(capsys: pytest.CaptureFixture[str]) -> None:
    assert not absent("a", ">= 1", "sh")
    assert capsys.readouterr().out == ""
    assert absent("a", ">= 1", "no-such-program")
    line = json.loads(capsys.readouterr().out)
    assert line["met"] is False
    assert line["missing"] == "no-such-program"


def test_what_is_compared_runs_in_turn_after_everybody_has_run_once() -> None:
    ran: list[str] = []

    def a() -> str:
        ran.append("a")
        return f"a{len(ran)}"

    def b() -> str:
        ran.append("b")
        return f"b{len(ran)}"

    results = alternate("it", 2, a, b)
    assert "".join(ran) == "ab" + "ab" + "ba"
    assert results == [("a3", "b4"), ("a6", "b5")]


def _bench(*arguments: str) -> Any:
    command = [sys.executable, "-m", "tests.bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


def test_the_command_measures_the_group_that_it_is_told() -> None:
    done = _bench("startup", "--rounds", "1")
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["aim"] for line in lines] == ["<= 100"], done.stderr
    assert lines[0]["rounds"] == 10
    assert done.returncode == (0 if lines[0]["met"] else 1)


def test_an_unknown_group_is_wrong_usage() -> None:
    assert _bench("nonsense").returncode == 2
