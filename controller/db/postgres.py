"""What PostgreSQL needs that SQLite does not: one lane for all controllers, and word of what the others did.

    controller A ── BEGIN ─ lane ─ … ─ NOTIFY ─ COMMIT ──┐
    controller B ── BEGIN ─ lane (waits) ───────────────┴─ … ─ COMMIT

Every transaction takes one advisory lock before its first look, and holds it to its commit. So transactions of all controllers run one
after the other, as they do on SQLite: what was read is still true when it is written, nothing has to be tried again for another's
sake, and numbers from a sequence become visible in their order, so that whoever reads an append-only log by its last number misses
nothing. The lane is as wide as one controller's database thread, which is what one installation needs; a second controller is there
for the day the first one dies. A controller that hangs inside a transaction loses it after IDLE_SECONDS_MAX.

NOTIFY only makes it quick. Whoever waits for something looks again by himself after a while: a word may be lost with a connection.
"""

import json
import logging
import select
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import peewee

from controller.db.notes import Note

log = logging.getLogger(__name__)

CHANNEL = "backup_manager"
PAYLOAD_BYTES_MAX = 7900  # of the 8000 that PostgreSQL allows
IDLE_SECONDS_MAX = 30  # between two statements of a transaction, which holds the lane meanwhile
RECONNECT_SECONDS = 2.0
_MIGRATIONS_KEY = 0x626D_6D67  # any numbers, the same in all our controllers
_LANE_KEY = 0x626D_6C6E
_CONNECT: dict[str, Any] = {
    "connect_timeout": 10,
    "application_name": "bm-controller",
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
}


def connect(url: str) -> Any:
    """Return peewee's database for `postgresql://…`, with whatever else libpq takes in a URL; not connected yet."""
    options = f"-c idle_in_transaction_session_timeout={IDLE_SECONDS_MAX}s"
    untyped: Any = peewee.PostgresqlDatabase
    return untyped(_standard(url), prefer_psycopg3=True, options=options, **_CONNECT)


def enter_lane(database: Any) -> None:
    """Wait until no other transaction of a controller is under way; first in a transaction, which ends it."""
    database.execute_sql("SELECT pg_advisory_xact_lock(%s)", (_LANE_KEY,))


def lock_migrations(database: Any) -> None:
    """Wait until nobody else migrates: two at once would both apply the same file."""
    database.execute_sql("SELECT pg_advisory_lock(%s)", (_MIGRATIONS_KEY,))


def unlock_migrations(database: Any) -> None:
    database.execute_sql("SELECT pg_advisory_unlock(%s)", (_MIGRATIONS_KEY,))


def is_lost(database: Any) -> bool:
    """Tell whether the connection broke; what the server had not committed by then is undone."""
    return database.is_closed() or bool(database.connection().closed)


def announce(database: Any, speaker: str, notes: Sequence[Note]) -> None:
    """Tell the other controllers, once this transaction is committed."""
    for payload in payloads(speaker, notes):
        database.execute_sql("SELECT pg_notify(%s, %s)", (CHANNEL, payload))


def payloads(speaker: str, notes: Sequence[Note]) -> Iterator[str]:
    """Yield notes as texts that are short enough; a note that alone is too long is left out, and found by looking."""
    line: list[str] = []
    room = PAYLOAD_BYTES_MAX - len(speaker) - 8
    left = room
    for text in (json.dumps([one.topic, one.key, one.value]) for one in dict.fromkeys(notes)):  # ASCII
        if len(text) + 1 > room:
            continue
        if len(text) + 1 > left:
            yield f'["{speaker}",{",".join(line)}]'
            line, left = [], room
        line.append(text)
        left -= len(text) + 1
    if line:
        yield f'["{speaker}",{",".join(line)}]'


class Ear:
    """A thread that listens to the other controllers, from `start` to `stop`. `heard` is called there, and must be quick."""

    def __init__(self, url: str, speaker: str, heard: Callable[[list[Note]], None]) -> None:
        self._url = _standard(url)
        self._speaker = speaker
        self._heard = heard
        self._ended = threading.Event()
        self._wake, self._woken = socket.socketpair()
        self._thread = threading.Thread(target=self._run, name="database-ear", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the thread. Never started is no error; twice is once."""
        self._ended.set()
        self._wake.close()  # which the other end sees
        if self._thread.ident is not None:
            self._thread.join()
        self._woken.close()

    def _run(self) -> None:
        import psycopg

        while not self._ended.is_set():
            try:
                with psycopg.connect(self._url, autocommit=True, **_CONNECT) as connection:
                    connection.execute(f"LISTEN {CHANNEL}")
                    while not self._ended.is_set():
                        for notification in connection.notifies(timeout=0):
                            self._take(notification.payload)
                        select.select([connection.fileno(), self._woken.fileno()], [], [])
            except psycopg.Error as error:
                log.warning("not hearing other controllers, looking instead error=%s", type(error).__name__)
                self._ended.wait(RECONNECT_SECONDS)

    def _take(self, payload: str) -> None:
        try:
            speaker, *rest = json.loads(payload)
            notes = [Note(str(topic), str(key), int(value)) for topic, key, value in rest]
        except (ValueError, TypeError):
            log.warning("a word that is none of ours on channel %s", CHANNEL)
            return
        if speaker != self._speaker and notes:
            self._heard(notes)


def _standard(url: str) -> str:
    return f"postgresql://{url.partition('://')[2]}"
