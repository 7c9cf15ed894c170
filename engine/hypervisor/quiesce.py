"""The instant of a backup: what state the guest is in while it is taken, and that it goes on afterwards.

    mode              asks for               else
    freeze_or_pause   frozen file systems    a short pause
    freeze            frozen file systems    QuiesceFailed
    pause             a short pause          an error
    none              nothing

Frozen is as good as unmounted. Paused and crash are what a power cut leaves: journals repair it; all disks are of one
instant either way. Whatever happens in the block, and to this process, the guest is thawed and resumed: see thaw_guard.py.
What an engine before us left undone comes first: a guest that it paused would otherwise count as paused by its owner, and a
freeze of which it never learned the outcome would be forgotten with its mark.
"""

import contextlib
import logging
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from engine.errors import AgentUnavailable, DomainState, HypervisorError, QuiesceFailed
from engine.hypervisor.connection import Domain
from engine.hypervisor.domains import guest_agent_of, state_of, stopped_by_io_error
from engine.hypervisor.freeze import ensure_thawed, freeze, freeze_status, thaw
from engine.hypervisor.thaw_guard import ThawGuard, ensure_resumed, heal_held
from engine.spec import Consistency

log = logging.getLogger(__name__)

Reached: TypeAlias = Literal["frozen", "paused", "crash"]

FREEZE_SECONDS = 30  # databases flush in the agent's hook; longer than this the guest's users notice
_THAW_SECONDS = 10.0
_EARLIER_SECONDS = 5.0  # for what an engine before us left; an agent that answers at all does within 0.1 s
_RESUME_SECONDS = 30.0


@dataclass(slots=True)
class Quiesced:
    """What was reached. Read it after the block: a guest that thaws by itself in the middle makes `frozen` a `crash`.

    `detail` says why it is less than was asked, "" if it is not. `fault` tells whether something failed that is there, such
    as an agent that hangs: the owner has to hear of it, where a guest without an agent is as its owner wants it.
    `thaw_confirmed` is False when the guest has not said `thawed` yet: a guard goes on trying, and so must self-heal.
    `seconds` is how long the guest stood still for our sake.
    """

    reached: Reached
    detail: str = ""
    fault: bool = False
    thaw_confirmed: bool = True
    seconds: float = 0.0


@contextlib.contextmanager
def quiesce(
    domain: Domain,
    mode: Consistency,
    folder: Path,
    timeout_seconds: int = FREEZE_SECONDS,
    exclude: Collection[str] = (),
    lock_fd: int = -1,
) -> Iterator[Quiesced]:
    """Hold the guest still for the block, as well as `mode` asks and the guest can; keep the block short.

    `folder` is the lock folder (marks for self-heal lie there), `lock_fd` the descriptor of this domain's lock, `exclude`
    mount points to leave out of a freeze. A domain that its owner has paused stays paused. Raises QuiesceFailed for
    `freeze` without success, DomainState for a stopped domain, HypervisorError when it cannot be resumed.
    """
    undone = heal_held(domain, folder, _EARLIER_SECONDS)
    state = state_of(domain)
    if state not in {"running", "paused", "suspended"}:
        raise DomainState(domain=domain.name, state=state, needed="a running domain")
    if mode == "none" or state != "running":
        yield _as_it_is(domain, mode, state)
        return
    with ThawGuard(domain, folder, lock_fd) as guard:
        quiesced = Quiesced("paused", thaw_confirmed=undone)
        frozen = mode != "pause" and _try_freeze(domain, guard, quiesced, timeout_seconds, exclude)
        if mode == "freeze" and not frozen:
            raise QuiesceFailed(domain=domain.name, detail=quiesced.detail)
        begun = time.monotonic()
        try:
            if not frozen:
                _pause(domain, guard)
            yield quiesced
        finally:
            if frozen:
                _end_freeze(domain, guard, quiesced, begun)
            else:
                _end_pause(domain, guard, quiesced, begun)


def _as_it_is(domain: Domain, mode: Consistency, state: str) -> Quiesced:
    """Return what an instant is worth to which we add nothing. Raises QuiesceFailed where a freeze alone would do."""
    fault = stopped_by_io_error(domain)
    detail = "a disk's I/O error has stopped the domain" if fault else f"the domain was {state} already"
    if mode == "none":
        return Quiesced("crash", detail if fault else "", fault)
    if mode == "freeze":
        raise QuiesceFailed(domain=domain.name, detail=f"{detail}, its agent cannot answer")
    return Quiesced("paused", detail if fault or mode != "pause" else "", fault)


def _try_freeze(
    domain: Domain, guard: ThawGuard, quiesced: Quiesced, timeout_seconds: int, exclude: Collection[str]
) -> bool:
    """Freeze, and tell whether it worked; if not, the guest is thawed again, or `quiesced` says that it may not be."""
    agent = guest_agent_of(domain)
    if agent != "connected":  # no request has ever reached it
        quiesced.detail = "the domain has no guest agent" if agent == "absent" else "no guest agent is connected"
        return False
    guard.arm("freeze")
    try:
        freeze(domain, timeout_seconds, exclude)
    except (AgentUnavailable, QuiesceFailed) as error:
        quiesced.detail, quiesced.fault = error.facts["detail"], True
        quiesced.thaw_confirmed = _thaw(domain, guard, _THAW_SECONDS)
        return False
    quiesced.reached = "frozen"
    return True


def _end_freeze(domain: Domain, guard: ThawGuard, quiesced: Quiesced, begun: float) -> None:
    """Thaw; a guest that was not frozen any more (Windows gives up after 10 s) makes the backup what a power cut leaves."""
    with contextlib.suppress(HypervisorError):
        if thaw(domain) == 0:
            quiesced.reached, quiesced.fault = "crash", True
            quiesced.detail = "the guest thawed by itself before the instant was over"
        quiesced.seconds = time.monotonic() - begun
        if freeze_status(domain) == "thawed":
            guard.disarm("freeze")
            quiesced.thaw_confirmed = True
            return
    quiesced.thaw_confirmed = _thaw(domain, guard, _THAW_SECONDS)
    quiesced.seconds = time.monotonic() - begun


def _thaw(domain: Domain, guard: ThawGuard, seconds: float) -> bool:
    confirmed = ensure_thawed(domain, seconds)
    if confirmed:
        guard.disarm("freeze")
    else:
        log.warning("the guest does not confirm that it is thawed domain=%s", domain.name)
    return confirmed


def _pause(domain: Domain, guard: ThawGuard) -> None:
    guard.arm("pause")
    with domain.translated("virDomainSuspend"):
        domain.handle.suspend()


def _end_pause(domain: Domain, guard: ThawGuard, quiesced: Quiesced, begun: float) -> None:
    if not ensure_resumed(domain, _RESUME_SECONDS):
        raise HypervisorError(
            operation="virDomainResume", domain=domain.name, detail="the guest is still paused", code=0
        )
    quiesced.seconds = time.monotonic() - begun
    guard.disarm("pause")
    if (
        not quiesced.thaw_confirmed
    ):  # a freeze that came too late was held up by the pause; one look, the guard has time
        quiesced.thaw_confirmed = _thaw(domain, guard, 0)
