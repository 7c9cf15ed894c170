"""The demo's play: `python -m tests.demo [FOLDER]`. Exit status 0 only if every comparison held.

    enroll ─► storage ─► full ─► changes ─► incremental ─► wipe ─► restore second ─► restore first ─► verify ─► wrong key

It writes FOLDER/report.json: per step seconds, bytes read, bytes stored, and whether a restore was identical.
"""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from engine.units import KIB, MIB, human_bytes
from tests.demo.stage import DISK_BYTES, PROGRAMS, Stage, agent, stage
from tests.waiting import wait_until

PASSPHRASE = "correct horse battery staple"
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


class Report:
    """The steps so far."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []

    @contextmanager
    def step(self, title: str) -> Iterator[dict[str, Any]]:
        """Time a step; the block fills in what else is worth reporting."""
        console.print(f"[bold cyan]▸[/] [bold]{title}[/]")
        facts: dict[str, Any] = {"step": title}
        begun = time.monotonic()
        yield facts
        facts["seconds"] = round(time.monotonic() - begun, 2)
        self.steps.append(facts)

    @property
    def ok(self) -> bool:
        return all(one.get("identical", True) and one.get("refused", True) for one in self.steps)

    def save(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_text(json.dumps({"ok": self.ok, "steps": self.steps}, indent=2) + "\n")
        temporary.replace(path)

    def show(self) -> None:
        table = Table(title="What happened", title_justify="left", header_style="bold")
        table.add_column("step")
        table.add_column("seconds", justify="right")
        table.add_column("read", justify="right")
        table.add_column("stored", justify="right")
        table.add_column("")
        for one in self.steps:
            read, stored = one.get("bytes_read"), one.get("bytes_stored")
            table.add_row(
                one["step"], f"{one['seconds']:.1f}",
                human_bytes(read) if read is not None else "", human_bytes(stored) if stored is not None else "",
                _verdict(one),
            )  # fmt: skip
        console.print(table)


def _verdict(one: dict[str, Any]) -> str:
    if "identical" in one:
        return "[green]✔ identical, byte by byte[/]" if one["identical"] else "[red]✘ DIFFERENT[/]"
    if "refused" in one:
        return "[green]✔ refused[/]" if one["refused"] else "[red]✘ NOT REFUSED[/]"
    return f"[dim]{one.get('note', '')}[/]"


def play(on: Stage, report: Report, scene: ExitStack) -> None:
    """Play all steps; what is started on the way lives until `scene` closes."""
    with report.step("log in to the controller, its authority pinned"):
        token_file = on.folder / "admin-token"
        token_file.touch(mode=0o600)
        token_file.write_text(on.controller.admin_token)
        arguments = ("--fingerprint", on.controller.fingerprint, "--token-file", str(token_file))
        on.bmctl("login", on.controller.api, *arguments)
    with report.step("enroll the hypervisor's agent with a one-time token") as facts:
        token = json.loads(on.bmctl("hypervisor", "enroll", "kvm1", "--output", "json").stdout)["token"]
        scene.enter_context(agent(on, token))
        wait_until(lambda: _domains(on), 30, "the agent to report its domains")
        facts["note"] = "its domains are known"
    _protect(on, report)


def _domains(on: Stage) -> list[Any]:
    found = json.loads(on.bmctl("hypervisor", "domains", "kvm1", "--output", "json").stdout)
    return list(found.get("domains", []))


def _protect(on: Stage, report: Report) -> None:
    with report.step("register the server, add an encrypted SFTP storage, and test it") as facts:
        on.bmctl("server", "register", on.domain.name, "--hypervisor", "kvm1", "--name", "web1")
        _add_storage(on)
        tested = _job(on, "storage", "test", "vault", "--hypervisor", "kvm1")
        facts["note"] = f"{len(tested['result']['test']['steps'])} checks passed"
    copies = {}
    backups = {}
    for name, title in (("first", "full backup of the running server"), ("second", "incremental backup")):
        copies[name] = on.copy(f"{name}.raw")
        with report.step(title) as facts:
            job = _job(on, "backup", "start", "web1", "--storage", "vault")
            result = job["result"]["backup"]
            disk = result["disks"][0]
            backups[name] = result["backup_id"]
            facts.update(
                bytes_read=int(disk["data_bytes"]), bytes_stored=int(disk["stored_bytes"]),
                note=disk["type"].removeprefix("BACKUP_TYPE_").lower(),
            )  # fmt: skip
        if name == "first":
            with report.step("the guest writes on while it runs") as facts:
                for number in range(40):
                    on.write(number * 25 * MIB + 3 * KIB, 64 * KIB, 0x40 + number)
                facts["note"] = "40 scattered pieces of 64 KiB"
    with report.step("disaster: the whole disk is overwritten"):
        for start in range(0, DISK_BYTES, 128 * MIB):
            on.write(start, 128 * MIB, 0xEE)
    for name in ("second", "first"):
        with report.step(f"restore the {name} point into the server's disk") as facts:
            job = _job(on, "backup", "restore", backups[name], "--yes")
            facts["bytes_read"] = int(job["result"]["restore"]["bytes_written"])
            facts["identical"] = on.matches(copies[name])
    with report.step("verify the chain, every frame") as facts:
        found = _job(on, "backup", "verify", backups["second"])["result"]["verify"]
        facts["bytes_read"] = int(found["stored_bytes"])
        facts["note"] = f"{found['frames']} frames, none damaged"
    with report.step("restore by hand with a wrong passphrase") as facts:
        facts["refused"] = _wrong_passphrase_is_refused(on)


def _add_storage(on: Stage) -> None:
    key, passphrase = on.folder / "storage-key", on.folder / "passphrase"
    for path, secret in ((key, on.sshd.private_key), (passphrase, PASSPHRASE)):
        path.touch(mode=0o600)
        path.write_text(secret)
    on.bmctl(
        "storage", "add", "sftp", "vault", "--host", "127.0.0.1", "--port", str(on.sshd.port),
        "--username", on.sshd.username, "--path", str(on.folder / "vault"), "--key-file", str(key),
        "--encrypt", "--passphrase-file", str(passphrase), "--compress",
    )  # fmt: skip


def _job(on: Stage, *arguments: str) -> dict[str, Any]:
    """Start a job, show its progress, and return it once it has ended well."""
    done = on.bmctl(*arguments, "--wait", "--output", "json", live=True)
    return dict(json.loads(done.stdout)["job"])


def _wrong_passphrase_is_refused(on: Stage) -> bool:
    """Try `bm-engine restore` on the same storage; the key must stay closed, and nothing may be written."""
    storage, wrong, target = on.folder / "storage.json", on.folder / "wrong", on.folder / "stolen"
    target.mkdir()
    storage.touch(mode=0o600)
    description = {
        "type": "sftp", "host": "127.0.0.1", "port": on.sshd.port, "username": on.sshd.username,
        "path": str(on.folder / "vault"), "private_key_file": str(on.folder / "storage-key"), "host_key": on.sshd.host_key,
    }  # fmt: skip
    storage.write_text(json.dumps(description))
    wrong.write_text("password123")
    done = subprocess.run(
        [
            PROGRAMS / "bm-engine", "--output", "json", "restore", "--storage", str(storage),
            "--passphrase-file", str(wrong), "--to", str(target), on.domain.name,
        ],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode != 5 or any(target.iterdir()):
        console.print(done.stderr, style="red")
        return False
    return bool(json.loads(done.stdout)["error"]["reason"] == "WRONG_KEY")


def main() -> int:
    build = Path(sys.argv[1] if len(sys.argv) > 1 else "build").resolve()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    report = Report()
    begun = time.monotonic()
    console.print(Panel.fit("[bold]Backup Manager[/]\na virtual server is backed up, destroyed and restored"))
    with ExitStack() as scene:
        with report.step("set up a disk with a file system, libvirtd, a domain, sshd and a controller"):
            on = scene.enter_context(stage(build / "demo"))
        try:
            play(on, report, scene)
        except subprocess.CalledProcessError as error:
            console.print(f"[red]{' '.join(map(str, error.cmd))} ended with {error.returncode}[/]")
            console.print(error.stdout or "", error.stderr or "")
            raise
    report.show()
    report.save(build / "demo" / "report.json")
    console.print(
        f"[bold green]Everything restored is what was backed up.[/] {time.monotonic() - begun:.0f} s, report in {build}/demo/report.json"
        if report.ok
        else "[bold red]A comparison failed.[/]"
    )
    return 0 if report.ok else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        console.print("[yellow]Interrupted; what was started is gone.[/]")
        sys.exit(130)
