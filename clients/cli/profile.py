"""Where bmctl remembers the controller: address, pinned authority and access token, in one file that only its owner reads.

$BMCTL_CONFIG, else $XDG_CONFIG_HOME/backup-manager/bmctl.json, else ~/.config/backup-manager/bmctl.json
"""

from __future__ import annotations

import json
import os
import re
import stat
from dataclasses import asdict, dataclass, field
from pathlib import Path

from clients.errors import ClientError

PROFILE_VERSION = 1
TOKEN_VARIABLE = "BMCTL_TOKEN"  # noqa: S105  # the name of a variable


# A token goes into a header; what is no token must not get there, and an enrollment token is none.
_TOKEN = re.compile(r"bmt_[A-Za-z0-9_-]{43}")


class TokenMalformed(ClientError):
    reason = "INVALID_FIELD"
    template = "{field}: this is no access token; one is bmt_ and 43 letters, digits, - or _"


class NotLoggedIn(ClientError):
    reason = "NOT_LOGGED_IN"
    template = "bmctl does not know a controller yet"
    remedy = "Log in with `bmctl login HOST:PORT`"


class ProfileUnreadable(ClientError):
    reason = "PROFILE_UNREADABLE"
    template = "{path}: {problem}"
    remedy = "Correct it, or log in again with `bmctl login HOST:PORT`"


@dataclass(frozen=True, slots=True)
class Profile:
    """One controller. `authority` is PEM, `fingerprint` its SHA-256 in hex, `token` the access token's secret."""

    address: str
    authority: str
    fingerprint: str
    token: str = field(repr=False)


def path() -> Path:
    """Return where the profile is, or would be."""
    if named := os.environ.get("BMCTL_CONFIG"):
        return Path(named)
    base = os.environ.get("XDG_CONFIG_HOME")
    return (Path(base) if base else Path.home() / ".config") / "backup-manager" / "bmctl.json"


def load() -> Profile:
    """Return the profile, with the token of BMCTL_TOKEN where that is set.

    Raises NotLoggedIn, ProfileUnreadable, TokenMalformed.
    """
    profile = find()
    if profile is None:
        raise NotLoggedIn
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        return profile
    return Profile(profile.address, profile.authority, profile.fingerprint, check_token(TOKEN_VARIABLE, token))


def check_token(source: str, text: str) -> str:
    """Return an access token's text without white space around it. Raises TokenMalformed, which names only its source."""
    token = text.strip()
    if not _TOKEN.fullmatch(token):
        raise TokenMalformed(field=source)
    return token


def find() -> Profile | None:
    """Return the profile as it is in the file, None where there is none. Raises ProfileUnreadable."""
    where = path()
    try:
        with where.open(encoding="utf-8") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            data = json.load(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        problem = error.strerror if isinstance(error, OSError) else "it is not JSON"
        raise ProfileUnreadable(path=where, problem=problem) from None  # the cause would quote the file
    if mode & 0o077:
        raise ProfileUnreadable(path=where, problem=f"others may read it, and it holds a token; run chmod 600 {where}")
    try:
        if data.pop("version") != PROFILE_VERSION:
            raise ProfileUnreadable(path=where, problem="it was written by another version of bmctl")
        return Profile(**{name: str(value) for name, value in data.items()})
    except (AttributeError, KeyError, TypeError):
        raise ProfileUnreadable(path=where, problem="a part is missing or unknown") from None


def save(profile: Profile) -> Path:
    """Write the profile whole, 0600 from its first byte on, and return where."""
    where = path()
    where.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    temporary = where.with_name(f".{where.name}.{os.getpid()}")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            json.dump({"version": PROFILE_VERSION, **asdict(profile)}, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(where)
    finally:
        temporary.unlink(missing_ok=True)
    return where


def forget() -> bool:
    """Remove the profile; tell whether there was one."""
    try:
        path().unlink()
    except FileNotFoundError:
        return False
    return True
