"""Where a server lives, when hypervisors disagree (N1).

    inventory ──► its own servers: present or gone ──┐
              └─► others' servers that it reports    ├──► gone at home, one claim, idle: the server moves there
                  too: claims                        └──► a claim while home has it, or two claims: Conflict

A hypervisor that falls silent moves nothing: only its own word, or the panel's, says that a server has left it. The panel's word
about where a server lives settles all claims of that moment: they are refused, and count again only after they were taken back.
Sync functions, run by `Database.run`; an inventory and what follows from it are one transaction.
"""

import logging
from collections.abc import Iterable, Sequence
from datetime import datetime

from controller import happenings, hypervisors, leases
from controller.db import models
from controller.db.statements import chunks, statement
from controller.hypervisors import Domain

log = logging.getLogger(__name__)

PRESENT, GONE = "present", "gone"
_Server, _Claim, _Domain = models.Server, models.ServerClaim, models.Domain


def take_inventory(hypervisor_id: str, session_id: str, domains: Sequence[Domain], now: datetime) -> bool:
    """Keep a whole inventory in place of the last one, and what it says of servers. False when a newer session has taken over."""
    if not hypervisors.replace_domains(hypervisor_id, session_id, domains, now):
        return False
    reported = {one.domain_uuid for one in domains}
    own = _living(_Server.hypervisor_id == hypervisor_id)
    _note_presence(own, reported, now)
    own_domains = {row.domain_uuid for row in own}
    touched = _note_claims(hypervisor_id, reported - own_domains, now)
    settle(touched | {row.server_id for row in own}, now)
    return True


def settle(server_ids: Iterable[str], now: datetime) -> None:
    """Move those servers whose hypervisor has lost them, that one other has now, and that nothing works on."""
    for chunk in chunks(sorted(server_ids)):
        rows = _living(_Server.server_id.in_(chunk) & (_Server.place_state == GONE))
        for row in rows:
            claims = _claims_of(row.server_id)
            idle = not leases.holders(leases.server_resource(row.server_id))
            if len(claims) == 1 and idle and not _taken(claims[0], row.domain_uuid):
                _move(row, claims[0], now)


# As the index of these says it: they are few, and all living servers are many.
_LOST = f"SELECT server_id FROM server WHERE place_state = '{GONE}' AND delete_time IS NULL"  # noqa: S608 - a constant


def settle_all(now: datetime) -> None:
    """Do so for all servers: one that was busy when its hypervisor lost it moves once it is idle."""
    settle([server_id for (server_id,) in statement(_LOST)], now)


def decide(server_id: str, now: datetime) -> None:
    """Take the panel's word that a server lives where its row says: whoever else reports it is refused."""
    row = _Server.get(_Server.server_id == server_id)
    others = [
        one.hypervisor_id
        for one in _Domain.select(_Domain.hypervisor_id).where(
            (_Domain.domain_uuid == row.domain_uuid) & (_Domain.hypervisor_id != row.hypervisor_id)
        )
    ]
    taken = {one.hypervisor_id for one in _living(_Server.domain_uuid == row.domain_uuid)}
    forget(server_id)
    for hypervisor_id in sorted(set(others) - taken):
        _Claim.insert(server_id=server_id, hypervisor_id=hypervisor_id, refused=True, create_time=now).execute()
    here = hypervisors.find_domain(row.hypervisor_id, domain_uuid=row.domain_uuid)
    _Server.update(place_state=PRESENT if here else "").where(_Server.server_id == server_id).execute()


def forget(server_id: str) -> None:
    """Drop all claims on a server."""
    _Claim.delete().where(_Claim.server_id == server_id).execute()


# ---- inside -------------------------------------------------------------------------------------------------------------


def _living(condition: object) -> list[models.Server]:
    return list(_Server.select().where(condition & _Server.delete_time.is_null()))


def _claims_of(server_id: str) -> list[str]:
    rows = _Claim.select().where((_Claim.server_id == server_id) & ~_Claim.refused)
    return sorted(row.hypervisor_id for row in rows)


def _taken(hypervisor_id: str, domain_uuid: str) -> bool:
    """Tell whether a hypervisor's domain belongs to a server that lives there."""
    return bool(_living((_Server.hypervisor_id == hypervisor_id) & (_Server.domain_uuid == domain_uuid)))


def _note_presence(own: Sequence[models.Server], reported: set[str], now: datetime) -> None:
    """Keep what a hypervisor says of its own servers. One that it never reported cannot be gone from it."""
    for row in own:
        missing = GONE if row.place_state else ""
        state = PRESENT if row.domain_uuid in reported else missing
        if state == row.place_state:
            continue
        _Server.update(place_state=state).where(_Server.server_id == row.server_id).execute()
        if state == GONE:
            log.warning("domain gone server_id=%s hypervisor_id=%s", row.server_id, row.hypervisor_id)
            _event("server.domain_gone", row, row.hypervisor_id, now)


def _note_claims(hypervisor_id: str, foreign: set[str], now: datetime) -> set[str]:
    """Keep which of others' servers a hypervisor reports; return the ids of servers whose claims have changed."""
    wanted: dict[str, models.Server] = {}
    for chunk in chunks(sorted(foreign)):
        rows = _living(
            _Server.domain_uuid.in_(chunk) & (_Server.hypervisor_id != hypervisor_id) & (_Server.hypervisor_id != "")
        )
        wanted.update({row.server_id: row for row in rows})
    known = {row.server_id: row for row in _Claim.select().where(_Claim.hypervisor_id == hypervisor_id)}
    for server_id in known.keys() - wanted.keys():
        _Claim.delete().where((_Claim.server_id == server_id) & (_Claim.hypervisor_id == hypervisor_id)).execute()
    for server_id in sorted(wanted.keys() - known.keys()):
        row = wanted[server_id]
        _Claim.insert(server_id=server_id, hypervisor_id=hypervisor_id, refused=False, create_time=now).execute()
        if row.place_state != GONE:
            log.warning(
                "server claimed twice server_id=%s lives_on=%s claimed_by=%s",
                server_id,
                row.hypervisor_id,
                hypervisor_id,
            )
            _event("server.claimed", row, hypervisor_id, now)
    return (known.keys() - wanted.keys()) | (wanted.keys() - known.keys())


def _move(row: models.Server, hypervisor_id: str, now: datetime) -> None:
    log.info("server moved server_id=%s source=%s target=%s", row.server_id, row.hypervisor_id, hypervisor_id)
    _Server.update(hypervisor_id=hypervisor_id, place_state=PRESENT, version=_Server.version + 1).where(
        _Server.server_id == row.server_id
    ).execute()
    _Claim.delete().where((_Claim.server_id == row.server_id) & (_Claim.hypervisor_id == hypervisor_id)).execute()
    _event("server.moved", row, hypervisor_id, now)


def _event(kind: str, row: models.Server, hypervisor_id: str, now: datetime) -> None:
    happenings.record(
        kind,
        now,
        server_id=row.server_id,
        hypervisor_id=hypervisor_id,
        body={"name": row.name, "lived_on": row.hypervisor_id},
    )
