"""What undoes a freeze or a pause when the engine dies in between: a child with a pipe, and a mark for later.

    engine ── pipe ──► guard      `+freeze`, `-freeze`, `+pause`, `-pause`; the end of the pipe means: undo what is still `+`
       └── <folder>/<domain uuid>.quiesced     the same, for self-heal, should both have died

The guard is told before anything is done to the guest, ignores the signals that end its parent, and inherits the domain's
lock: nobody begins to work on a domain whose guest is still being thawed. After UNDO_SECONDS it lets go of the lock and goes
on, ever more seldom, until the guest confirms, the domain is gone, or the mark is: `heal` tries as well when it is called.
A deed that the engine itself does not undo within HELD_SECONDS_MAX, since libvirt holds it up, is undone by the guard.
"""

import contextlib
import json
import logging
import math
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, Self, TypeAlias, get_args

import libvirt

from engine.errors import DomainBusy, DomainNotFound, HypervisorError
from engine.hypervisor.connection import Connection, Domain, open_connection
from engine.hypervisor.freeze import ensure_thawed
from engine.hypervisor.lock import DomainLock
from engine.ids import is_id

log = logging.getLogger(__name__)

UNDO_SECONDS = 600.0
HELD_SECONDS_MAX = (
    60.0  # FREEZE_SECONDS for the agent, and as much for libvirt; services in the guest fail when it lasts longer
)
_START_SECONDS_MAX = 20.0  # 0.1 s on an idle machine
_ROUND_SECONDS = 5.0
_RETRY_SECONDS = 0.5
_RETRY_SECONDS_MAX = 60.0
_SUFFIX = ".quiesced"

Deed: TypeAlias = Literal["freeze", "pause"]
_DEEDS: tuple[Deed, ...] = get_args(Deed)


class ThawGuard:
    """A guard for one domain, as a `with` block around everything that is done to its guest.

    `folder` takes the mark, `lock_fd` is the domain's lock (-1 for none). One thread at a time. Leaving the block while a
    deed is not undone leaves the guard at work on it. What another engine's mark still names is taken over with it.
    """

    def __init__(self, domain: Domain, folder: Path, lock_fd: int = -1) -> None:
        self._domain = domain
        self._mark = mark_path(folder, domain.uuid)
        self._lock_fd = lock_fd
        self._deeds: set[str] = set()
        self._child: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self._mark.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._child = subprocess.Popen(
            [
                *(sys.executable, "-P", "-m", __name__, self._domain.connection.uri, self._domain.uuid),
                *(str(self._mark), str(self._lock_fd)),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            pass_fds=() if self._lock_fd < 0 else (self._lock_fd,),
            cwd="/",
            start_new_session=True,
        )
        try:
            self._wait_ready()
            earlier = _read_mark(self._mark)
            for deed in earlier.deeds if earlier is not None else ():
                self.arm(deed)
        except BaseException:
            self._deeds.clear()
            self._child.kill()
            self._leave()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    @property
    def pid(self) -> int:
        return self._child.pid if self._child is not None else 0

    def arm(self, deed: Deed) -> None:
        """Say what is about to be done; from here on it will be undone, whatever happens to us."""
        self._deeds.add(deed)
        self._note()
        self._say(f"+{deed}")

    def disarm(self, deed: Deed) -> None:
        """Say that a deed is undone and that this is certain."""
        self._deeds.discard(deed)
        self._say(f"-{deed}")
        self._note()

    def _note(self) -> None:
        """Write the mark, or remove it with the last deed."""
        if self._deeds:
            _write_mark(
                self._mark, Mark(self._domain.uuid, tuple(deed for deed in _DEEDS if deed in self._deeds), self.pid)
            )
        else:
            self._mark.unlink(missing_ok=True)

    def _say(self, word: str) -> None:
        assert self._child is not None
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(f"{word}\n".encode())
            self._child.stdin.flush()
        except BrokenPipeError as error:
            raise HypervisorError(operation="thaw guard", detail="it ended too early", code=0) from error

    def _wait_ready(self) -> None:
        assert self._child is not None
        assert self._child.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(self._child.stdout, selectors.EVENT_READ)
            ready = selector.select(_START_SECONDS_MAX)
        if not ready or self._child.stdout.read(1) != b"+":
            raise HypervisorError(operation="thaw guard", detail="it did not start", code=0)

    def _leave(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        for stream in (child.stdin, child.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        if not self._deeds:
            child.wait()
            return
        log.warning("a guest is left to its thaw guard domain=%s deeds=%s", self._domain.name, sorted(self._deeds))
        threading.Thread(target=child.wait, name="thaw-guard", daemon=True).start()  # reaps it whenever it ends


# ---- marks: what must be undone when nobody is left who remembers --------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Mark:
    """A domain whose guest may still be frozen or paused by us; `guard` is the process that watches over it."""

    uuid: str
    deeds: tuple[Deed, ...]
    guard: int

    def guarded(self) -> bool:
        """Tell whether the guard lives; its process id may have gone to somebody else, or to a process that is dead."""
        try:
            words = Path(f"/proc/{self.guard}/cmdline").read_bytes().split(b"\0")
        except OSError:
            return False
        return self.uuid.encode() in words


def marks(folder: Path) -> tuple[Mark, ...]:
    """Return all marks in a folder. An unreadable one counts as both deeds: undoing what was not done does no harm."""
    if not folder.is_dir():
        return ()
    paths = [path for path in folder.iterdir() if path.suffix == _SUFFIX and is_id(path.stem)]
    return tuple(mark for path in sorted(paths) if (mark := _read_mark(path)) is not None)


def mark_path(folder: Path, domain_uuid: str) -> Path:
    return folder / f"{domain_uuid}{_SUFFIX}"


def heal(connection: Connection, folder: Path, seconds: float, only: str = "") -> tuple[str, ...]:
    """Undo what dead engines left in guests, `seconds` for each; return the UUIDs that are still not known to be well.

    `folder` is the lock folder as well: a domain that somebody works on, or whose guard is still at it, is left alone and
    not returned: its mark stays. With `only`, a UUID, no other domain is looked at.
    """
    left = []
    for mark in marks(folder):
        if only not in {"", mark.uuid}:
            continue
        with contextlib.suppress(DomainBusy), DomainLock(folder, mark.uuid, "self-heal"):
            if not _heal_one(connection, folder, mark, seconds):
                left.append(mark.uuid)
    return tuple(left)


def heal_held(domain: Domain, folder: Path, seconds: float) -> bool:
    """Undo what is still marked of a domain whose lock the caller holds; False if the guest does not confirm in `seconds`."""
    mark = _read_mark(mark_path(folder, domain.uuid))
    return mark is None or _heal_one(domain.connection, folder, mark, seconds)


def _heal_one(connection: Connection, folder: Path, mark: Mark, seconds: float) -> bool:
    try:
        domain = connection.domain(mark.uuid)
    except DomainNotFound:  # what is not there cannot be frozen
        done = True
    else:
        done = undo(domain, set(mark.deeds), seconds)
    if done:
        mark_path(folder, mark.uuid).unlink(missing_ok=True)
        log.info("a guest was brought back domain=%s deeds=%s", mark.uuid, mark.deeds)
    return done


def undo(domain: Domain, deeds: set[str], seconds: float) -> bool:
    """Resume and thaw, in that order: a paused guest's agent does not answer. False if `seconds` were not enough."""
    deadline = time.monotonic() + seconds
    if "pause" in deeds and not ensure_resumed(domain, seconds):
        return False
    return "freeze" not in deeds or ensure_thawed(domain, max(0.0, deadline - time.monotonic()))


def ensure_resumed(domain: Domain, seconds: float) -> bool:
    """Resume a domain that was paused on purpose (one that QEMU stopped for another reason is left as it is); True if it is."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            with domain.translated("virDomainResume"):
                if tuple(domain.handle.state()) == (libvirt.VIR_DOMAIN_PAUSED, libvirt.VIR_DOMAIN_PAUSED_USER):
                    domain.handle.resume()
            return True
        except DomainNotFound:
            return True
        except HypervisorError as error:
            log.warning("could not resume domain=%s detail=%s", domain.name, error)
        if time.monotonic() >= deadline:
            return False
        time.sleep(_RETRY_SECONDS)


def _read_mark(path: Path) -> Mark | None:
    try:
        data = json.loads(path.read_bytes())
        return Mark(path.stem, tuple(deed for deed in _DEEDS if deed in data["deeds"]), int(data["guard"]))
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError):
        return Mark(path.stem, _DEEDS, 0)


def _write_mark(path: Path, mark: Mark) -> None:
    """Write a mark. Raises HypervisorError."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        temporary.write_text(json.dumps({"deeds": mark.deeds, "guard": mark.guard}))
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise HypervisorError(operation="thaw guard", detail=f"no mark can be written: {error}", code=0) from error


# ---- the child -----------------------------------------------------------------------------------------------------------


def main(arguments: list[str]) -> int:
    """Run as the guard: obey standard input to its end, then undo what is left."""
    uri, domain_uuid, mark, lock_fd = arguments[0], arguments[1], Path(arguments[2]), int(arguments[3])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # whoever ends the engine's whole group must not end its guard
    open_connection(uri).close()  # libvirt is reachable, and loaded: nothing is left to go wrong later
    sys.stdout.write("+")
    sys.stdout.flush()
    deeds = obey(sys.stdin, uri, domain_uuid)
    if deeds:
        _undo_until(uri, domain_uuid, mark, deeds, lock_fd)
    return 0


def obey(lines: IO[str], uri: str, domain_uuid: str) -> set[str]:
    """Listen to the end, undoing meanwhile what lasts longer than HELD_SECONDS_MAX; return the deeds that are left."""
    held: dict[str, float] = {}
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(_RETRY_SECONDS):
            overdue = {deed for deed, since in held.copy().items() if time.monotonic() - since > HELD_SECONDS_MAX}
            with contextlib.suppress(HypervisorError):
                if overdue and _undo_once(uri, domain_uuid, overdue):
                    held.update((deed, math.inf) for deed in overdue & set(held))  # once is enough

    watcher = threading.Thread(target=watch, name="held-too-long")
    watcher.start()
    try:
        return listen(lines, held)
    finally:
        ended.set()
        watcher.join()


def listen(lines: IO[str], held: dict[str, float] | None = None) -> set[str]:
    """Return the deeds that are not undone at the end of `lines`; `held` has since when each lasts, on the monotonic clock."""
    held = {} if held is None else held
    for line in lines:
        word = line.strip()
        if word.startswith("+"):
            held[word[1:]] = time.monotonic()
        else:
            held.pop(word[1:], None)
    return set(held)


def _undo_until(uri: str, domain_uuid: str, path: Path, deeds: set[str], lock_fd: int) -> None:
    """Undo until it is done, on a new connection each round since libvirtd may be restarting, at last once a minute.

    Ends when the mark is gone or names another guard: somebody else made sure, or took over.
    """
    deadline, pause = time.monotonic() + UNDO_SECONDS, _RETRY_SECONDS
    while (mark := _read_mark(path)) is not None and mark.guard in {os.getpid(), 0}:
        with contextlib.suppress(HypervisorError):
            if _undo_once(uri, domain_uuid, deeds):
                mark = _read_mark(path)
                if mark is not None and mark.guard in {os.getpid(), 0}:
                    path.unlink(missing_ok=True)
                return
        if time.monotonic() >= deadline:
            pause = min(2 * pause, _RETRY_SECONDS_MAX)
            if lock_fd >= 0:  # a guest whose agent never answers again is to be backed up all the same
                os.close(lock_fd)
                lock_fd = -1
        time.sleep(pause)


def _undo_once(uri: str, domain_uuid: str, deeds: set[str]) -> bool:
    """Undo deeds, trying for some seconds; what is no longer there is undone. Raises HypervisorError."""
    with open_connection(uri) as connection:
        try:
            domain = connection.domain(domain_uuid)
        except DomainNotFound:
            return True
        return undo(domain, deeds, _ROUND_SECONDS)


if __name__ == "__main__":
    os._exit(main(sys.argv[1:]))  # nothing is left to be written, and the engine waits for this end
