"""Helper programs end with their block, with us, and also when they do not want to."""

import os
import signal
import socket
from pathlib import Path

import pytest

from engine.source import child as child_module
from engine.source.child import private_folder, running
from tests.waiting import wait_until

pytestmark = pytest.mark.feature("T24")


def test_program_that_ignores_the_request_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(child_module, "END_SECONDS", 0.3)
    program = "trap '' TERM; echo ready >&2; while :; do read -r _ < /proc/self/fd/9; done 9<> \"$0\""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    folder = private_folder(tmp_path)
    with running(["/bin/sh", "-c", program, str(pipe)], folder) as child:
        wait_until(lambda: child.message() == "ready", 10, "the program")
    assert child._process.returncode == -signal.SIGKILL
    assert not folder.exists()


def test_end_of_the_program_is_seen_without_reaping_it(tmp_path: Path) -> None:
    with running(["/bin/sh", "-c", "echo $0 >&2; exit 3", "last words"], private_folder(tmp_path)) as child:
        wait_until(child.has_ended, 10, "the program's end")
        assert Path(f"/proc/{child.pid}").exists()
        assert child.message() == "last words"
    assert child._process.returncode == 3
    assert list(tmp_path.iterdir()) == []


def test_only_the_end_of_a_long_message_is_kept(tmp_path: Path) -> None:
    with running(["/bin/sh", "-c", "seq 10000 >&2; echo end >&2"], private_folder(tmp_path)) as child:
        wait_until(child.has_ended, 10, "the program's end")
        assert len(child.message()) <= 4096
        assert child.message().endswith("10000\nend")


def test_missing_program_disconnects_its_clients(tmp_path: Path) -> None:
    folder = private_folder(tmp_path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(folder / "sock"))
    listener.listen(1)
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(folder / "sock"))
        with running(["no-such-program"], folder, listener) as child:
            client.settimeout(10)
            with pytest.raises(ConnectionResetError):
                client.recv(1)
            assert "no-such-program" in child.message()
    assert child._process.returncode == 127


def test_program_sees_neither_our_life_line_nor_our_files(tmp_path: Path) -> None:
    with (tmp_path / "secret").open("w") as secret:
        os.set_inheritable(secret.fileno(), True)
        with running(["/bin/sh", "-c", "ls -l /proc/$$/fd >&2"], private_folder(tmp_path)) as child:
            wait_until(child.has_ended, 10, "the program's end")
            opened = [line.split("/fd/")[-1] for line in child.message().splitlines()]
    assert not any("secret" in line or "socket:" in line for line in opened)
