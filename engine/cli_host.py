"""bm-engine's verbs that look after a host: prune, estimate, inventory, cleanup, heal, forget."""

import argparse
import os
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from engine.catalog import read_history
from engine.cli import print_json
from engine.cli_common import (
    CANCELLED,
    find_server,
    make_job,
    open_target,
    refuse,
    run_verb,
    stopped_by_signals,
)
from engine.cli_print import print_backups
from engine.cli_storage import load_storage_file
from engine.console import ConsoleReport
from engine.errors import BackupNotFound, HypervisorError, InvalidSpec
from engine.inventory import HostCatalog, rebuilder, repositories
from engine.prune import PrunePlan, plan_prune
from engine.reindex import reindex
from engine.repository import check_repository
from engine.retention import PRESETS, Policy, Rhythm, Rules, Verdict
from engine.spec import DeleteJob, Settings
from engine.storage.open import open_storage
from engine.units import human_bytes
from engine.work import Work

STALE_HOURS_MIN = 24
AGENT_SETTINGS = Path("/etc/backup-manager/agent.toml")
AGENT_STATE = Path("/var/lib/backup-manager/agent")
AGENT_IDENTITY = "identity.json"  # an agent has it from its enrollment on
_BUCKETS = ("daily", "weekly", "monthly", "yearly")
_WORDS = {
    "age": "young enough", "daily": "newest of its day", "weekly": "newest of its week", "monthly": "newest of its month",
    "yearly": "newest of its year", "keep_last": "among the last", "active_chain": "in the active chain",
    "newest": "the newest", "damaged": "damaged", "chain": "in the chain of", "needed": "needed by", "no_policy": "no policy",
}  # fmt: skip


# ---- prune -------------------------------------------------------------------------------------------------------------


def prune(options: argparse.Namespace) -> int:
    """Show what rules given by hand would delete and why the rest stays, and delete it if that is confirmed (C5, R11)."""
    state = agent_state(options.agent_state, os.environ)
    if (state / AGENT_IDENTITY).exists() and not options.unmanaged:
        message = "this host is enrolled: its controller decides what is kept. --unmanaged prunes all the same"
        return refuse(options, "HOST_ENROLLED", message, {"agent_state": str(state)})
    rules = rules_of(options)
    target, _ = open_target(options, want_key=False)
    with open_storage(target) as storage:
        check_repository(storage, target)
        server_id = find_server(storage, options.server)
        history = read_history(storage, server_id, {})
    rhythm = Rhythm(timedelta(hours=options.interval_hours), timedelta(days=options.full_interval_days))
    plan = plan_prune(history, rules, datetime.now(UTC), rhythm, target.key_id)
    confirmed = bool(plan.delete) and (options.yes or (options.output != "json" and sys.stdin.isatty()))
    if options.output != "json":
        _print_plan(plan, rules)
    if plan.delete and confirmed and not options.yes:
        confirmed = input(f"Type yes to delete {len(plan.delete)} backups for ever: ") == "yes"
    if not confirmed:
        if options.output == "json":
            print_json({"plan": _plan_json(plan), "deleted": None})
        return 0
    job = make_job(delete=DeleteJob(server_id, tuple(plan.delete)))
    extra = {"plan": _plan_json(plan)}
    return run_verb(options, job, target, Settings(workers=options.workers), _print_deleted, extra)


def rules_of(options: argparse.Namespace) -> Rules:
    """Return the rules that the options name. Raises InvalidSpec for none at all, a negative number, an unknown zone."""
    given = {name: getattr(options, name) for name in _BUCKETS} | {"days": options.keep_days}
    counts = {name: count for name, count in given.items() if count is not None}
    if not counts and not options.preset and options.keep_last is None:
        raise InvalidSpec(field="rules", problem="name some: --preset, --keep-days, --daily …, or --keep-last alone")
    base = asdict(PRESETS[options.preset]) if options.preset else {}
    try:
        zone = ZoneInfo(options.time_zone) if options.time_zone else datetime.now().astimezone().tzinfo or UTC
        keep_last = 2 if options.keep_last is None else options.keep_last
        return Rules(Policy(**{**base, **counts}), keep_last, zone, trim_tails=options.trim_tails)
    except (ValueError, KeyError, OSError) as error:  # a zone's name is looked up as a file's
        raise InvalidSpec(field="rules", problem=f"{error} will not do") from error


def agent_state(option: str, environment: Mapping[str, str]) -> Path:
    """Return the state folder of this host's agent: the option, or what the agent itself would use."""
    if option:
        return Path(option)
    if configured := environment.get("BM_AGENT_STATE_FOLDER"):
        return Path(configured)
    try:
        settings = tomllib.loads(AGENT_SETTINGS.read_text())
    except (OSError, ValueError):
        settings = {}
    return Path(str(settings.get("state_folder", AGENT_STATE)))


def _plan_json(plan: PrunePlan) -> dict[str, Any]:
    backups = [
        {
            "backup_id": one.backup_id,
            "create_time": one.create_time.isoformat(),
            "kept": one.kept,
            "reasons": [asdict(reason) for reason in one.reasons],
            "expire_time": one.expire_time.isoformat() if one.expire_time else None,
        }
        for one in plan.verdicts
    ]
    return {"backups": backups, "delete": plan.delete, "unreadable": plan.unreadable}


def _print_plan(plan: PrunePlan, rules: Rules) -> None:
    for one in plan.verdicts:
        time = one.create_time.astimezone(rules.zone)
        print(f"{time:%Y-%m-%d %H:%M}  {one.backup_id}  {'keep' if one.kept else 'GO':<4}  {_why(one, rules)}")
    known = {one.backup_id for one in plan.verdicts}
    for backup_id in plan.delete:
        if backup_id not in known:
            print(f"{'':16}  {backup_id}  GO    its deletion was begun and interrupted")
    for backup_id in plan.unreadable:
        print(f"{'':16}  {backup_id}  keep  cannot be read; nothing is deleted while it is there")
    print(f"{len(plan.verdicts) - len(known & set(plan.delete))} stay, {len(plan.delete)} may go")


def _why(one: Verdict, rules: Rules) -> str:
    words = [_WORDS[reason.rule] + (f" {reason.of}" if reason.of else "") for reason in one.reasons]
    if one.expire_time is not None:
        words.append(f"expected to go {one.expire_time.astimezone(rules.zone):%Y-%m-%d}")
    return ", ".join(words)


def _print_deleted(result: dict[str, Any]) -> None:
    print(f"deleted {len(result['backup_ids'])} backups, {human_bytes(result['freed_bytes'])} free")


# ---- estimate ----------------------------------------------------------------------------------------------------------


def estimate_domain(options: argparse.Namespace) -> int:
    """Show what the next backup would read of each disk, without making one (C4)."""
    from engine.estimate import estimate
    from engine.hypervisor.connection import open_connection

    with open_connection(options.libvirt) as connection:
        domain = connection.domain(options.domain)
        disks = estimate(domain)
    if options.output == "json":
        print_json({"domain": domain.name, "domain_uuid": domain.uuid, "disks": [asdict(one) for one in disks]})
        return 0
    for one in disks:
        if one.unsupported:
            print(f"{one.disk}: left out, {one.unsupported}")
            continue
        print(f"{one.disk}: {human_bytes(one.size_bytes)}, a full reads {human_bytes(one.full_bytes)}")
        for since in one.since:
            what = since.detail or f"{human_bytes(since.dirty_bytes)} written since"
            print(f"  repository {since.repository}…, backup {since.backup_id}: {what}")
    return 0


# ---- inventory ---------------------------------------------------------------------------------------------------------


def show_inventory(options: argparse.Namespace) -> int:
    """Show the backups that this host's own catalog knows; with a storage it is built anew where it is missing (C9)."""
    records: list[dict[str, Any]] = []
    unreadable: list[str] = []
    if options.storage:
        records, unreadable = _of_storage(options)
    else:
        if options.rebuild:
            raise InvalidSpec(field="--rebuild", problem="needs --storage")
        for catalog in repositories(Path(options.catalog)):
            for server_id in catalog.servers():
                known = catalog.read(server_id)
                if known is None:
                    unreadable.append(f"{catalog.repository_id}/{server_id}, which --storage builds anew")
                records += known or []
    wanted = [one for one in records if _means(one, options.server)]
    if options.server and not wanted and not unreadable:
        raise BackupNotFound(backup_id="any", server_id=options.server)
    print_backups(options, wanted, unreadable)
    return 0


def _of_storage(options: argparse.Namespace) -> tuple[list[dict[str, Any]], list[str]]:
    """Return all records of one repository, from the file where it can be believed, else from the storage."""
    target, _ = open_target(options, want_key=False)
    catalog = HostCatalog(Path(options.catalog), target.repository_id)
    known = {server_id: catalog.read(server_id) for server_id in catalog.servers()}
    if known and not options.rebuild and all(records is not None for records in known.values()):
        return [one for records in known.values() for one in records or []], []
    report = ConsoleReport(quiet=options.quiet)
    with open_storage(target) as storage:
        check_repository(storage, target)
        work = Work(report, Settings(workers=options.workers))
        found = reindex(storage, "", {}, work, rebuilder(catalog, report.warn))
    report.close()
    if not found.unreadable:
        catalog.keep_only({one["server_id"] for one in report.records})
    return report.records, found.unreadable


def _means(record: dict[str, Any], name: str) -> bool:
    backup = record["backup"]
    return not name or name in {record["server_id"], backup["domain_uuid"], backup["domain_name"]}


# ---- cleanup and heal --------------------------------------------------------------------------------------------------


def cleanup(options: argparse.Namespace) -> int:
    """Thaw guests, end leftover jobs, remove leftover files; with a storage also what dead backups and old checkpoints left."""
    from engine.heal import HealSpec, heal
    from engine.hypervisor.connection import open_connection
    from engine.hypervisor.domains import list_domains

    with open_connection(options.libvirt) as connection:
        wanted = [connection.domain(options.domain).uuid] if options.domain else []
        uuids = wanted or [info.uuid for info in list_domains(connection)]
    done: list[str] = []
    failed: list[str] = []
    report, stop = ConsoleReport(quiet=options.quiet), stopped_by_signals()
    report.stage("clean")
    for uuid in uuids:
        healed = heal(HealSpec(options.libvirt, uuid, options.scratch, options.locks), stop)
        done += healed.done
        failed += healed.failed
    report.close()
    if getattr(options, "storage", ""):
        _clean_storage(options, uuids, done, failed)
    if options.output == "json":
        print_json({"done": done, "failed": failed})
    else:
        print("\n".join([*done, *(f"not done: {one}" for one in failed)]) or "nothing to tidy up")
    if stop.event.is_set():
        return CANCELLED
    return 1 if failed else 0


def forget(options: argparse.Namespace) -> int:
    """Remove all our checkpoints and bitmaps of one domain, after what a dead engine left open there."""
    from engine.cleanup import forget_domain
    from engine.heal import HealSpec, heal
    from engine.hypervisor.connection import open_connection

    with open_connection(options.libvirt) as connection:
        uuid = connection.domain(options.domain).uuid
    healed = heal(HealSpec(options.libvirt, uuid, options.scratch, options.locks), stopped_by_signals())
    done, failed = healed.done, healed.failed
    if not failed:  # bitmaps cannot be seen while a leftover job runs
        done += forget_domain(options.libvirt, uuid, Path(options.locks))
    if options.output == "json":
        print_json({"done": done, "failed": failed})
    else:
        print("\n".join([*done, *(f"not done: {one}" for one in failed)]) or "there is no checkpoint of ours")
    return 1 if failed else 0


def remove_stale(options: argparse.Namespace) -> int:
    """Abort the stale uploads on a storage, or only list them."""
    if options.older_than < STALE_HOURS_MIN:
        raise InvalidSpec(
            field="--older-than", problem=f"must be {STALE_HOURS_MIN} at least: a slow upload is no stale one"
        )
    with open_storage(load_storage_file(options.storage)) as storage:
        found = storage.remove_stale(options.older_than * 3600, dry_run=options.dry_run)
    if options.output == "json":
        print_json({"uploads": list(found), "aborted": not options.dry_run})
        return 0
    said = "is stale" if options.dry_run else "aborted"
    print("\n".join(f"{said}: {name}" for name in found) or "no stale uploads")
    return 0


def _clean_storage(options: argparse.Namespace, uuids: list[str], done: list[str], failed: list[str]) -> None:
    """Tidy up what only a look at the storage can tell to be of no use."""
    from engine.cleanup import clean_storage, drop_stale_checkpoints

    target, _ = open_target(options, want_key=False)
    with open_storage(target) as storage:
        locks = Path(options.locks)
        done += clean_storage(storage, os.uname().nodename, locks)
        for uuid in uuids:
            try:
                done += drop_stale_checkpoints(storage, target.repository_id, options.libvirt, uuid, locks)
            except HypervisorError as error:
                failed.append(str(error))
