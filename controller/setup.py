"""Making a state folder, and looking at one.

    <state>/authority/     roots and our certificate        <state>/controller.db (or another database)
            master.key     opens the secrets in the database
            ports.json     while a controller serves

`initialize` goes on where an earlier run was cut short. It never replaces anything: a second master key would make every
secret unreadable, a second authority every agent a stranger.
"""

import contextlib
import re
import sqlite3
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from urllib.parse import unquote

from controller import installation
from controller.clock import SystemClock
from controller.config import Settings
from controller.db.database import Database
from controller.db.secrets import Vault
from controller.errors import CannotStart, InvalidField
from controller.files import make_private_folder
from controller.security import tokens
from controller.security.authority import Authority, read_roots

FIRST_TOKEN = "admin"  # noqa: S105 - its name
_TOKEN_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")


@dataclass(frozen=True, slots=True)
class Initialized:
    """What a controller is known by, and the secret of the token that was made ("" for none)."""

    installation_id: str
    authority_fingerprint: str
    secret: str = field(repr=False)


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that `check` looked at."""

    subject: str
    good: bool
    text: str


def initialize(settings: Settings, new_token: str | None = None) -> Initialized:
    """Make what is missing of a state folder. Raises CannotStart.

    A token is made for a new installation, or for an old one when `new_token` names it: the way back in after the last
    admin token was lost, for whoever may read the state folder anyway.
    """
    if new_token is not None and not _TOKEN_NAME.fullmatch(new_token):
        raise CannotStart("--new-token must be 1 to 64 letters, digits, '.', '-' or '_'")
    now = SystemClock().now()
    try:
        make_private_folder(settings.state_folder)
        authority = _authority(settings, now)
    except (OSError, ValueError) as error:
        raise CannotStart(f"cannot make the state folder {settings.state_folder}: {error}") from error
    database = Database.open(settings.database_url)
    try:
        fresh = database.call(_is_fresh)
        _vault(settings.master_key_file, fresh=fresh)
        identity = database.call(installation.create, now)
        name = new_token or (FIRST_TOKEN if fresh else "")
        secret = database.call(tokens.create, name, "admin", None, (), "bm-controller init", now).secret if name else ""
    except InvalidField as error:
        raise CannotStart(f"--new-token: {error.facts['problem']}") from error
    finally:
        database.close()
    return Initialized(identity.installation_id, authority.fingerprint, secret)


def examine(settings: Settings) -> list[Finding]:
    """Return what is right and wrong with a state folder, changing nothing; a controller may be using it."""
    looks: list[tuple[str, Callable[[Settings], str]]] = [
        ("state folder", _look_at_folder),
        ("authority", _look_at_authority),
        ("master key", _look_at_master_key),
        ("database", _look_at_database),
    ]
    return [_finding(subject, look, settings) for subject, look in looks]


def _authority(settings: Settings, now: datetime) -> Authority:
    try:
        return Authority.load(settings.authority_folder, settings.host_names, now)
    except FileNotFoundError:
        return Authority.create(settings.authority_folder, settings.host_names, now)


def _is_fresh() -> bool:
    """Tell whether no initialization was finished: the first token is made last."""
    return not tokens.list_tokens(limit=1)


def _vault(path: Path, *, fresh: bool) -> Vault:
    if path.exists() or not fresh:  # a missing key of an old installation has to be found again, not made again
        return Vault.load(path)
    return Vault.create(path)


# ---- looking -----------------------------------------------------------------------------------------------------------


def _finding(subject: str, look: Callable[[Settings], str], settings: Settings) -> Finding:
    try:
        return Finding(subject, True, look(settings))
    except (CannotStart, OSError, ValueError, sqlite3.Error) as error:
        return Finding(subject, False, str(error))


def _look_at_folder(settings: Settings) -> str:
    mode = stat.S_IMODE(settings.state_folder.stat().st_mode)
    if mode & 0o077:
        raise CannotStart(f"{settings.state_folder} is open to others (mode {mode:o}); chmod 700 it")
    return str(settings.state_folder)


def _look_at_authority(settings: Settings) -> str:
    roots = read_roots(settings.authority_folder)
    if not roots:
        raise CannotStart(f"no root in {settings.authority_folder}; run bm-controller init first")
    for path in settings.authority_folder.glob("*.key"):
        if path.stat().st_mode & 0o077:
            raise CannotStart(f"{path} is open to others; chmod 600 it")
    return ", ".join(f"{fingerprint} until {end:%Y-%m-%d}" for fingerprint, end in roots)


def _look_at_master_key(settings: Settings) -> str:
    Vault.load(settings.master_key_file)
    return str(settings.master_key_file)


def _look_at_database(settings: Settings) -> str:
    scheme, _, rest = settings.database_url.partition("://")
    if scheme != "sqlite":
        return _look_at_postgres(settings.database_url)
    path = Path("/" + unquote(rest).lstrip("/"))
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, timeout=5)) as connection:
        row = connection.execute("SELECT installation_id FROM installation").fetchone()
        damage = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
    if row is None:
        raise CannotStart(f"{path} is empty; run bm-controller init first")
    if damage != "ok":
        raise CannotStart(f"{path} is damaged: {damage}")
    return f"installation {row[0]} in {path}"


def _look_at_postgres(url: str) -> str:
    import psycopg

    try:
        with psycopg.connect(f"postgresql://{url.partition('://')[2]}", connect_timeout=5) as connection:
            row = connection.execute("SELECT installation_id FROM installation").fetchone()
    except psycopg.Error as error:
        raise CannotStart(f"the database does not answer: {type(error).__name__}") from error
    if row is None:
        raise CannotStart("the database is empty; run bm-controller init first")
    return f"installation {row[0]}"
