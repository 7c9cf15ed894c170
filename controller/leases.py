"""Who may work on what: leases on servers, chains and removals, and slots on hypervisors.

    lease       resource            holder | shared   generation      one row for each resource, claimed by one statement
    lease_hold  job_id, resource                                      what a job has to give back
    slot        hypervisor, number  job_id                            Backup Concurrency, as rows

    server:…    who works on a server, or waits to        next:…    the single that waits while a batch works on the server
    chain:…     who reads, extends or removes a chain     work:…    singles and removals together, or one batch alone

A lease does not expire: it ends with its job. Each claim and each release makes its generation grow, so that whoever held it
before is recognized. A claim's outcome is the answer; nothing is read first. Run inside a transaction; a job that gets only a
part of what it wants raises and so gets nothing.
"""

from collections.abc import Mapping, Sequence

import peewee

from controller.db.models import Lease, LeaseHold, Slot
from controller.db.statements import find_rows, insert_rows, statement


def server_resource(server_id: str) -> str:
    return f"server:{server_id}"


def chain_resource(chain_id: str) -> str:
    return f"chain:{chain_id}"


def removal_resource(hypervisor_id: str) -> str:
    """The right to remove backups from a hypervisor; one job at a time."""
    return f"removal:{hypervisor_id}"


def work_resource(hypervisor_id: str) -> str:
    """The right to move data on a hypervisor: singles and removals share it, a batch has it alone."""
    return f"work:{hypervisor_id}"


def next_resource(server_id: str) -> str:
    """The right to be the next single on a server that a batch works on; one at a time (X2)."""
    return f"next:{server_id}"


def claim(resource: str, job_id: str) -> int | None:
    """Take a resource alone. Return its new generation, or None when others have it."""
    return take_all({resource: job_id}, exclusive=True).get(resource)


def share(resource: str, job_id: str) -> int | None:
    """Take a resource together with others that share it. Return its new generation, or None when one has it alone."""
    return take_all({resource: job_id}, exclusive=False).get(resource)


_TAKE = {
    True: """
        ON CONFLICT (resource) DO UPDATE SET holder = excluded.holder, generation = lease.generation + 1
        WHERE lease.holder = '' AND lease.shared = 0 RETURNING resource, generation
    """,
    False: """
        ON CONFLICT (resource) DO UPDATE SET shared = lease.shared + 1, generation = lease.generation + 1
        WHERE lease.holder = '' RETURNING resource, generation
    """,
}


def take_all(wanted: Mapping[str, str], *, exclusive: bool) -> dict[str, int]:
    """Do what `claim` or `share` does for many resources, of which `wanted` has the jobs, by one statement.

    Return the generations of those that were got; the others are left as they are.
    """
    shared = 0 if exclusive else 1
    rows = [
        {"resource": resource, "holder": job_id if exclusive else "", "shared": shared, "generation": 1}
        for resource, job_id in sorted(wanted.items())
    ]
    got = {str(resource): int(number) for resource, number in insert_rows(Lease, rows, _TAKE[exclusive])}
    holds = [{"job_id": wanted[one], "resource": one, "exclusive": exclusive} for one in got]
    insert_rows(LeaseHold, holds)
    return got


def step_back(job_id: str, resource: str, other: str) -> None:
    """Give a resource that a job has alone back, and take another one alone for it. Raises nothing: see `holders`."""
    LeaseHold.delete().where((LeaseHold.job_id == job_id) & (LeaseHold.resource == resource)).execute()
    Lease.update(holder="", generation=Lease.generation + 1).where(
        (Lease.resource == resource) & (Lease.holder == job_id)
    ).execute()
    claim(other, job_id)


_RELEASE = {
    True: "UPDATE lease SET holder = '', generation = generation + 1 WHERE resource = ?",
    False: "UPDATE lease SET shared = shared - 1, generation = generation + 1 WHERE resource = ?",
}


def release_all(job_id: str) -> None:
    """Give back everything that a job has, slots too. A job that has nothing is no error."""
    for resource, exclusive in statement(
        "DELETE FROM lease_hold WHERE job_id = ? RETURNING resource, exclusive", job_id
    ):
        statement(_RELEASE[bool(exclusive)], resource)
    statement("UPDATE slot SET job_id = '' WHERE job_id = ?", job_id)


_HOLDERS = "SELECT job_id FROM lease_hold WHERE resource = ? ORDER BY job_id"


def holders(resource: str) -> list[str]:
    """Return the jobs that have a resource, alone or together, oldest first."""
    return [job_id for (job_id,) in statement(_HOLDERS, resource)]


def first_holders(resources: Sequence[str]) -> dict[str, str]:
    """Return the oldest job that has each of these resources; those that nobody has are left out."""
    found: dict[str, str] = {}
    for row in sorted(find_rows(LeaseHold.resource, resources), key=lambda row: row.job_id):
        found.setdefault(row.resource, row.job_id)
    return found


def chains_of(job_ids: Sequence[str]) -> dict[str, frozenset[str]]:
    """Return the chains that each of these jobs holds."""
    prefix = chain_resource("")
    found: dict[str, set[str]] = {job_id: set() for job_id in job_ids}
    for row in find_rows(LeaseHold.job_id, job_ids):
        if row.resource.startswith(prefix):
            found[row.job_id].add(row.resource.removeprefix(prefix))
    return {job_id: frozenset(chains) for job_id, chains in found.items()}


def chains_in_use(server_id: str) -> frozenset[str]:
    """Return the chains of a server that any job holds, as `backups.chains_of` names them."""
    prefix = chain_resource(f"{server_id}/")
    rows = LeaseHold.select(LeaseHold.resource).where(LeaseHold.resource.startswith(prefix))
    return frozenset(row.resource.removeprefix(chain_resource("")) for row in rows)


def claim_slot(hypervisor_id: str, job_id: str, cap: int) -> bool:
    """Take a place to work at on a hypervisor that has `cap` of them. False when all are taken."""
    if Slot.select().where((Slot.hypervisor_id == hypervisor_id) & (Slot.number <= cap)).count() < cap:
        for number in range(1, cap + 1):
            Slot.insert(hypervisor_id=hypervisor_id, number=number, job_id="").on_conflict_ignore().execute()
    other = Slot.alias()
    mine = (other.hypervisor_id == hypervisor_id) & (other.number <= cap)
    free = other.select(peewee.fn.MIN(other.number)).where(mine & (other.job_id == ""))
    taken = other.select(peewee.fn.COUNT(other.number)).where(
        (other.hypervisor_id == hypervisor_id) & (other.job_id != "")
    )
    statement = Slot.update(job_id=job_id).where(
        (Slot.hypervisor_id == hypervisor_id)
        & (Slot.number == free)
        & (Slot.job_id == "")
        & (taken < cap)  # a cap that was lowered counts what still works above it
    )
    return bool(statement.execute() == 1)
