"""What bm-engine's verbs print of their results for a person; with `-o json` the result itself is printed (cli_common.py)."""

import argparse
from typing import Any

from engine.cli import print_json
from engine.units import human_bytes


def print_test(result: dict[str, Any]) -> None:
    """Print what was tried, one step a line, of a failed test too; the failure itself follows on stderr."""
    for step in result["steps"]:
        rate = f"  {human_bytes(step['bytes_per_second'])}/s" if step["bytes_per_second"] else ""
        mark = "failed" if step["failed"] else "ok"
        print(f"{mark:<7} {step['name'].replace('_', ' '):<20} {step['seconds'] * 1000:>9.1f} ms{rate}")
    for name in result["pending"]:
        print(f"{'-':<7} {name.replace('_', ' ')}")
    for hint in result["hints"]:
        print(f"hint: {hint}")
    if result["host_key"]:
        print(f"host key: {result['host_key']}")


def print_backup(result: dict[str, Any]) -> None:
    print(f"backup {result['backup_id']}  consistency: {result['consistency']}")
    for disk in result["disks"]:
        why = f" ({disk['fallback_reason']})" if disk["fallback_reason"] else ""
        sizes = f"{human_bytes(disk['data_bytes'])} in {human_bytes(disk['stored_bytes'])}"
        print(f"  {disk['disk']}: {disk['type']}{why}, {sizes}")


def print_backups(options: argparse.Namespace, records: list[dict[str, Any]], unreadable: list[str]) -> None:
    """Print records as `list` does."""
    if options.output == "json":
        print_json({"backups": records, "unreadable": unreadable})
        return
    for record in records:
        backup = record["backup"]
        disks = ", ".join(f"{disk['disk']} {disk['type']}" for disk in backup["disks"])
        stored = human_bytes(sum(disk["stored_bytes"] for disk in backup["disks"]))
        print(
            f"{backup['create_time'][:19]}  {backup['domain_name']:<20} {backup['backup_id']}  {stored:>9}  {disks}{_faults(record)}"
        )
    for name in unreadable:
        print(f"cannot be read: {name}")


def print_restore(result: dict[str, Any]) -> None:
    print(f"restored {', '.join(result['disks'])}: {human_bytes(result['bytes_written'])} written")
    for file in result["files"]:
        print(f"  {file}")


def print_verify(result: dict[str, Any]) -> None:
    print(
        f"{result['frames']} frames, {human_bytes(result['stored_bytes'])} checked, {result['damaged_count']} damaged"
    )
    for one in result["damaged"]:
        place = f"frame {one['frame']}" if one["frame"] >= 0 else "as a whole"
        print(f"  {one['object_name']} {place}: {one['detail']}; disk bytes {one['start']} to {one['end']}")


def print_delete(result: dict[str, Any]) -> None:
    print(f"deleted {len(result['backup_ids'])} backups, {human_bytes(result['freed_bytes'])} free")


def _faults(record: dict[str, Any]) -> str:
    """Return what is wrong with a backup's disks, as far as it is known, "" if nothing."""
    known = (("unreadable", record["unreadable_disks"]), ("damaged", record["damaged_disks"]))
    return "".join(f"  {what}: {', '.join(disks)}" for what, disks in known if disks)
