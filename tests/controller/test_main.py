"""bm-controller as a person meets it: init, check, wrong settings, the way back in."""

import asyncio
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from clients.gen.backupmanager.v1 import system_service_pb2
from tests.controller.services.api import Api
from tests.servers.controller import Controller


def command(folder: Path, *arguments: str, text: str = "", **environment: str) -> subprocess.CompletedProcess[str]:
    config = folder / "controller.toml"
    config.write_text(f'state_folder = "{folder / "state"}"\n{text}')
    return subprocess.run(
        [sys.executable, "-m", "controller.main", *arguments, "--config", str(config)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def secret_of(output: str) -> str:
    return next(
        line.removeprefix("access token: ") for line in output.splitlines() if line.startswith("access token: ")
    )


def test_init_makes_all_that_serve_needs_once(tmp_path: Path) -> None:
    first = command(tmp_path, "init")
    assert first.returncode == 0, first.stderr
    secret = secret_of(first.stdout)
    state = tmp_path / "state"
    for path in (state, *state.rglob("*")):
        if path.is_dir() or path.suffix != ".crt":
            assert not stat.S_IMODE(path.stat().st_mode) & 0o077, path
    second = command(tmp_path, "init")
    assert second.returncode == 0
    assert second.stdout == first.stdout.replace(f"access token: {secret}\n", "")
    third = command(tmp_path, "init", "--new-token", "spare")
    assert secret_of(third.stdout) != secret
    for name in ("spare", "a b"):
        assert command(tmp_path, "init", "--new-token", name).returncode == 1


def test_init_goes_on_where_it_was_cut_short(tmp_path: Path) -> None:
    assert command(tmp_path, "init").returncode == 0
    authority = tmp_path / "state" / "authority"
    roots = sorted(path.name for path in authority.glob("root-*"))
    (tmp_path / "state" / "controller.db").unlink()
    again = command(tmp_path, "init")
    assert secret_of(again.stdout)
    assert sorted(path.name for path in authority.glob("root-*")) == roots


@pytest.mark.feature("S28")
def test_a_lost_master_key_is_never_made_again(tmp_path: Path) -> None:
    assert command(tmp_path, "init").returncode == 0
    (tmp_path / "state" / "master.key").unlink()
    again = command(tmp_path, "init")
    assert again.returncode == 1
    assert "master key" in again.stderr
    assert not (tmp_path / "state" / "master.key").exists()


def test_check_says_what_is_right_and_what_is_wrong(tmp_path: Path) -> None:
    before = command(tmp_path, "check")
    assert before.returncode == 1
    assert before.stdout.count("BAD ") == 4
    assert command(tmp_path, "init").returncode == 0
    good = command(tmp_path, "check")
    assert (good.returncode, good.stdout.count("ok  ")) == (0, 4)
    (tmp_path / "state" / "master.key").chmod(0o644)
    (tmp_path / "state").chmod(0o755)
    bad = command(tmp_path, "check")
    assert bad.returncode == 1
    assert [line.split(":")[0] for line in bad.stdout.splitlines() if line.startswith("BAD")] == [
        "BAD state folder",
        "BAD master key",
    ]


def test_check_finds_a_damaged_database(tmp_path: Path) -> None:
    assert command(tmp_path, "init").returncode == 0
    path = tmp_path / "state" / "controller.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    data = bytearray(path.read_bytes())
    data[4096:8192] = b"\xff" * 4096
    path.write_bytes(data)
    found = command(tmp_path, "check")
    assert found.returncode == 1
    assert "BAD database" in found.stdout


def test_check_can_be_run_beside_a_serving_controller(tmp_path: Path) -> None:
    with Controller(tmp_path / "c") as controller:
        assert controller.command("check").count("ok  ") == 4


@pytest.mark.parametrize("verb", ["init", "serve", "check"])
def test_wrong_settings_are_one_line_with_key_and_place(tmp_path: Path, verb: str) -> None:
    refused = command(tmp_path, verb, text="tick_secnds = 1")
    assert refused.returncode == 1
    assert refused.stderr == (f"bm-controller: tick_secnds in {tmp_path / 'controller.toml'}: is not a known key\n")
    refused = command(tmp_path, verb, BM_CONTROLLER_LISTEN="x")
    assert "listen in environment variable BM_CONTROLLER_LISTEN: must be host:port" in refused.stderr


def test_serve_without_init_says_what_to_do(tmp_path: Path) -> None:
    refused = command(tmp_path, "serve")
    assert refused.returncode == 1
    assert refused.stderr.endswith("run bm-controller init first\n")
    assert "Traceback" not in refused.stderr


@pytest.mark.feature("N4")
def test_a_spare_admin_token_opens_the_door(tmp_path: Path) -> None:
    with Controller(tmp_path / "c") as controller:
        assert controller.stop() == 0
        spare = secret_of(controller.command("init", "--new-token", "spare"))
        controller.start()

        async def ask() -> str:
            async with controller.channel(spare) as channel:
                return (await Api(channel).system.GetVersion(system_service_pb2.GetVersionRequest())).token_name

        assert asyncio.run(ask()) == "spare"


def test_a_copied_state_folder_is_the_same_controller(tmp_path: Path) -> None:
    with Controller(tmp_path / "c") as controller:
        assert controller.stop() == 0
        shutil.copytree(controller.state, tmp_path / "copy")
        with_copy = command(tmp_path, "check", BM_CONTROLLER_STATE_FOLDER=str(tmp_path / "copy"))
        assert with_copy.returncode == 0
        assert controller.fingerprint in with_copy.stdout
        assert controller.installation_id in with_copy.stdout
