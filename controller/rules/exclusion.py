"""What runs beside what: the one table, as a pure function.

    asked ↓  running →   batch    transfer, other server   transfer, same server   removal    check
    batch                DEFER    DEFER                    DEFER                   QUEUE      RUN
    transfer             QUEUE    CAPPED                   BUSY                    RUN * †    RUN
    removal              QUEUE    RUN *                    QUEUE *                 QUEUE      RUN *
    check                RUN      RUN                      RUN                     RUN *      RUN

It holds on one hypervisor; between two, only the server and the chains are shared. Where a * stands, or on any two
hypervisors, work that meets on a chain cannot run: reading (restore, verify, mount, copy) shares a chain, a backup shares
it and alone may extend it, a removal wants it alone. What is asked for a server whose chain is taken is refused, so that
nobody waits behind a decision that has become another meanwhile; a check is patient, and waits, and so does a single
behind a batch (X2). A batch stands here as the jobs it consists of, each with its server and its chains.
† QUEUE where the removal is of the same server: on one hypervisor, a server's backups are written or removed, never both.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum


class Group(Enum):
    """Kinds of work that are alike in what they need."""

    BATCH = "batch"
    TRANSFER = "transfer"
    REMOVAL = "removal"
    CHECK = "check"


class Outcome(Enum):
    """What becomes of work that is asked for; the later one outweighs the earlier ones."""

    RUN = 0
    CAPPED = 1  # runs while fewer than Backup Concurrency do, else waits
    QUEUE = 2  # waits for the other to end
    DEFER = 3  # comes again at the next tick
    BUSY = 4  # refused, naming the other


class ChainUse(Enum):
    """How work uses the chains it touches."""

    NONE = "none"
    SHARED = "shared"
    EXTENDED = "extended"  # shared, and at most one may extend
    ALONE = "alone"


GROUPS: dict[str, Group] = {
    "batch": Group.BATCH,
    "backup": Group.TRANSFER,
    "restore": Group.TRANSFER,
    "delete": Group.REMOVAL,
    "prune": Group.REMOVAL,
    "purge": Group.REMOVAL,
    "verify": Group.CHECK,
    "ticket": Group.CHECK,
    "bundle": Group.CHECK,
    "mount": Group.CHECK,
    "copy": Group.CHECK,
    "reindex": Group.CHECK,
    "estimate": Group.CHECK,
    "health": Group.CHECK,
    "test": Group.CHECK,
    "inventory": Group.CHECK,
}
CHAIN_USES: dict[str, ChainUse] = {
    "batch": ChainUse.EXTENDED,
    "backup": ChainUse.EXTENDED,
    "restore": ChainUse.SHARED,
    "verify": ChainUse.SHARED,
    "mount": ChainUse.SHARED,
    "copy": ChainUse.SHARED,
    "delete": ChainUse.ALONE,
    "prune": ChainUse.ALONE,
    "purge": ChainUse.ALONE,
}
"""Work that is not named touches no chain: it reads manifests, or nothing of a backup at all."""

_TABLE: dict[tuple[Group, Group], Outcome] = {
    (Group.BATCH, Group.BATCH): Outcome.DEFER,
    (Group.BATCH, Group.TRANSFER): Outcome.DEFER,
    (Group.BATCH, Group.REMOVAL): Outcome.QUEUE,
    (Group.BATCH, Group.CHECK): Outcome.RUN,
    (Group.TRANSFER, Group.BATCH): Outcome.QUEUE,
    (Group.TRANSFER, Group.TRANSFER): Outcome.CAPPED,
    (Group.TRANSFER, Group.REMOVAL): Outcome.RUN,
    (Group.TRANSFER, Group.CHECK): Outcome.RUN,
    (Group.REMOVAL, Group.BATCH): Outcome.QUEUE,
    (Group.REMOVAL, Group.TRANSFER): Outcome.RUN,
    (Group.REMOVAL, Group.REMOVAL): Outcome.QUEUE,
    (Group.REMOVAL, Group.CHECK): Outcome.RUN,
    (Group.CHECK, Group.BATCH): Outcome.RUN,
    (Group.CHECK, Group.TRANSFER): Outcome.RUN,
    (Group.CHECK, Group.REMOVAL): Outcome.RUN,
    (Group.CHECK, Group.CHECK): Outcome.RUN,
}


@dataclass(frozen=True, slots=True)
class Work:
    """Work that is asked for or goes on. `type` is a key of GROUPS; `chains` are the ids of the chains it touches."""

    type: str
    hypervisor_id: str
    server_id: str = ""
    chains: frozenset[str] = frozenset()
    job_id: str = ""

    @property
    def group(self) -> Group:
        return GROUPS[self.type]

    @property
    def chain_use(self) -> ChainUse:
        return CHAIN_USES.get(self.type, ChainUse.NONE)


def decide(asked: Work, running: Work) -> Outcome:
    """Return what becomes of `asked` while `running` goes on."""
    outcomes = [Outcome.RUN]
    if asked.hypervisor_id == running.hypervisor_id:
        outcomes.append(_TABLE[asked.group, running.group])
        if _same_server(asked, running, {Group.TRANSFER, Group.REMOVAL}):
            outcomes.append(Outcome.QUEUE)
    if _same_server(asked, running, {Group.TRANSFER}):
        outcomes.append(Outcome.BUSY)
    if asked.chains & running.chains and _collide(asked.chain_use, running.chain_use):
        patient = asked.group is Group.CHECK or (asked.group is Group.TRANSFER and running.group is Group.BATCH)
        outcomes.append(Outcome.QUEUE if patient else Outcome.BUSY)
    return max(outcomes, key=lambda outcome: outcome.value)


def decide_all(asked: Work, running: Iterable[Work]) -> tuple[Outcome, Work | None]:
    """Return the weightiest outcome of `asked` beside all of `running`, and the first that demands it."""
    weightiest: tuple[Outcome, Work | None] = (Outcome.RUN, None)
    for one in running:
        outcome = decide(asked, one)
        if outcome.value > weightiest[0].value:
            weightiest = (outcome, one)
    return weightiest


def _same_server(asked: Work, running: Work, groups: set[Group]) -> bool:
    """Tell whether two works of exactly these groups are of one server."""
    return {asked.group, running.group} == groups and asked.server_id == running.server_id


def _collide(asked: ChainUse, running: ChainUse) -> bool:
    uses = {asked, running}
    if ChainUse.NONE in uses:
        return False
    return ChainUse.ALONE in uses or (asked is ChainUse.EXTENDED and running is ChainUse.EXTENDED)
