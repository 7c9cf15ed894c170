"""Recovery bundles on a storage: parts in any order, an attempt that is repeated, and what goes when newer ones are whole."""

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from engine import bundles, cli
from engine.errors import InvalidSpec, StorageError
from engine.ids import new_id
from engine.spec import BundleJob
from engine.storage.local import LocalStorage

NOW = datetime(2026, 11, 23, tzinfo=UTC)


def jobs(number: int, parts: list[bytes], keep: int = 0) -> list[BundleJob]:
    """Return the jobs of the bundle that was made `number` minutes after the first."""
    bundle_id = new_id(NOW + timedelta(minutes=number))
    return [
        BundleJob(bundle_id, one, len(parts), base64.b64encode(data).decode(), keep)
        for one, data in enumerate(parts, 1)
    ]


@pytest.mark.feature("N11")
def test_a_bundle_is_there_when_all_of_its_parts_are(tmp_path: Path) -> None:
    with LocalStorage(str(tmp_path / "nas")) as storage:
        first, second = jobs(0, [b"a" * 1000, b"b"])
        bundles.write(storage, second)
        assert [one.whole for one in bundles.find(storage)] == [False]
        for _ in range(2):  # the attempt again, after its engine died
            bundles.write(storage, first)
        (found,) = bundles.find(storage)
        assert (found.whole, bundles.read(storage, found)) == (True, b"a" * 1000 + b"b")
        with pytest.raises(StorageError, match="not what was written"):
            bundles.write(storage, replace(first, data=base64.b64encode(b"x").decode()))
        for broken in (replace(first, bundle_id="../x"), replace(first, number=3), replace(first, data="?")):
            with pytest.raises(InvalidSpec):
                bundles.write(storage, broken)
        assert bundles.read(storage, found) == b"a" * 1000 + b"b"


@pytest.mark.feature("N11")
def test_only_what_is_older_than_enough_whole_bundles_goes(tmp_path: Path) -> None:
    with LocalStorage(str(tmp_path / "nas")) as storage:
        half = jobs(0, [b"1", b"2"])[0]
        bundles.write(storage, half)
        made = [jobs(number, [b"whole"], keep=2)[0] for number in range(1, 5)]
        counts = [bundles.write(storage, one).removed_count for one in made]
        unfinished = jobs(9, [b"1", b"2"])[0]
        bundles.write(storage, unfinished)

        assert counts == [0, 1, 1, 1]
        assert [one.bundle_id for one in bundles.find(storage)] == [
            made[2].bundle_id, made[3].bundle_id, unfinished.bundle_id,
        ]  # fmt: skip
        assert bundles.write(storage, jobs(10, [b"whole"], keep=0)[0]).removed_count == 0


@pytest.mark.feature("N11")
def test_bm_engine_fetches_the_newest_whole_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with LocalStorage(str(tmp_path / "nas")) as storage:
        for job in (*jobs(1, [b"old"]), *jobs(2, [b"ne", b"w"]), jobs(3, [b"ha", b"lf"])[0]):
            bundles.write(storage, job)
    file, out = tmp_path / "storage.json", tmp_path / "out"
    file.write_text(json.dumps({"type": "local", "path": str(tmp_path / "nas")}))
    for status in (0, 4):  # a file that is there is not replaced
        with pytest.raises(SystemExit) as ended:
            cli.main(["bundle", "--storage", str(file), "--to", str(out)])
        assert ended.value.code == status
        assert (out.read_bytes(), out.stat().st_mode & 0o777) == (b"new", 0o600)
    with pytest.raises(SystemExit) as ended:
        cli.main(["bundle", "--storage", str(file), "--to", f"{out}2", "--id", jobs(3, [b""])[0].bundle_id])
    assert ended.value.code == 3
    assert "bm-controller restore" in capsys.readouterr().out
