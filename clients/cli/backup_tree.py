"""A server's backups drawn as a tree: disk, storage and chain, records; copies apart, the chain that goes on marked."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clients.cli import words
from clients.cli.output import printable, styled

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from rich.console import RenderableType
    from rich.text import Text
    from rich.tree import Tree

    from clients.gen.backupmanager.v1.backup_pb2 import BackupChain, ChainRecord

_MARKS = {"full": "◆", "incremental": "·", "differential": "∘", "copy": "◇"}


def draw(server_name: str, chains: Iterable[BackupChain], now: datetime) -> RenderableType:
    """Return the tree; chains come by disk, storage and age, as the controller lists them."""
    from rich.tree import Tree

    shown = list(chains)
    if not shown:
        return styled(f"{server_name} has no backups.", "dim")
    root = Tree(styled(server_name, "bold"), guide_style="dim")
    disks: dict[str, Tree] = {}
    for chain in shown:
        if chain.disk not in disks:
            disks[chain.disk] = root.add(_disk(chain))
        branch = disks[chain.disk].add(_chain(chain, now))
        if len(chain.records) < chain.backup_count:
            branch.add(styled(f"… {chain.backup_count - len(chain.records)} older records", "dim"))
        for record in chain.records:
            branch.add(_record(record, now))
    return root


def _disk(chain: BackupChain) -> Text:
    line = styled(chain.disk, "bold cyan")
    return (
        line.append("  (removed: left out of restores, its data is kept)", style="yellow")
        if chain.disk_removed
        else line
    )


def _chain(chain: BackupChain, now: datetime) -> Text:
    name = "copies" if chain.copies else f"chain {chain.chain_id[-12:]}"
    line = styled(name, "bold").append(f"  on {chain.storage_name or chain.storage_id}", style="not bold")
    if chain.current:
        line.append("  ● current", style="green")
    amount = f"  {words.plural(chain.backup_count, 'record')}, {words.size(chain.stored_bytes)}"
    begun = words.short_time(words.set_time(chain, "start_time"), now)
    return line.append(f"{amount}, begun {begun}", style="not bold dim")


def _record(record: ChainRecord, now: datetime) -> Text:
    kind = words.enum_label(record, "type")
    line = styled(f"{_MARKS.get(kind, '?')} {kind:<12}", "bold" if kind in {"full", "copy"} else "")
    line.append(f" {words.short_time(words.set_time(record, 'create_time'), now):<16}", style="not bold")
    line.append(f" {words.size(record.stored_bytes):>10}", style="not bold")
    line.append(f"  {record.backup_id}", style="dim not bold")
    state = words.enum_label(record, "state")
    if state != "available":
        line.append(f"  ● {state}", style="bold red")
    if record.fallback_reason:
        line.append(f"  {printable(record.fallback_reason)}", style="yellow")
    return line
