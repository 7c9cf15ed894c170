"""The agent's settings: a TOML file, and over it the environment.

    /etc/backup-manager/agent.toml      BM_AGENT_<KEY>      ──►  Config (frozen)

A key that is not known, and a value that does not fit, are refused with the key and the place it came from.
"""

import os
import re
import shlex
import sys
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from agent.errors import ConfigInvalid

FILE_DEFAULT = Path("/etc/backup-manager/agent.toml")
ENVIRONMENT_PREFIX = "BM_AGENT_"
LOG_LEVELS = ("debug", "info", "warning", "error")
_SECONDS_MAX = 3600.0
_CONTROLLERS_MAX = 16
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+):([1-9][0-9]{0,4})")


@dataclass(frozen=True, slots=True)
class Config:
    """What an agent needs to know before it starts.

    `state_folder` must survive a reboot, `run_folder` need not. `engine_command` is a program and its first arguments; in
    the file it is a list, in the environment one shell-quoted line. `cancel_word_seconds` is how long an engine may take to
    obey a cancel by word before it gets SIGTERM; `stop_grace_seconds` how long a guest may take to shut down before a restore
    ends it. `controllers` are HOST:PORT of further controllers of the same installation, tried in turn when one does not answer.
    `rclone_config_file` has the remotes of rclone with their credentials; it never leaves this host (S15).
    """

    state_folder: Path = Path("/var/lib/backup-manager/agent")
    run_folder: Path = Path("/run/backup-manager")
    scratch_folder: Path = Path("/var/lib/backup-manager/scratch")
    libvirt_uri: str = "qemu:///system"
    log_level: str = "info"
    engine_command: tuple[str, ...] = (sys.executable, "-m", "engine.worker")
    cancel_word_seconds: float = 10.0
    stop_grace_seconds: float = 60.0
    controllers: tuple[str, ...] = ()
    rclone_config_file: Path = Path("/etc/backup-manager/rclone.conf")

    @property
    def identity_file(self) -> Path:
        return self.state_folder / "identity.json"

    @property
    def journal_file(self) -> Path:
        return self.state_folder / "journal.sqlite3"

    @property
    def operations_folder(self) -> Path:
        return self.state_folder / "operations"

    @property
    def catalog_folder(self) -> Path:
        """Where the engine keeps what this host knows of its servers' backups."""
        return self.state_folder / "catalog"

    @property
    def tickets_folder(self) -> Path:
        """Where restore tickets lie until they expire."""
        return self.state_folder / "tickets"

    @property
    def instance_lock(self) -> Path:
        return self.state_folder / "agent.lock"

    @property
    def lock_folder(self) -> Path:
        """Where the engine's per-domain locks lie; commands run by hand use the same."""
        return self.run_folder / "locks"


def load(file: Path, environment: Mapping[str, str] = os.environ) -> Config:
    """Return the settings of a file with the environment's over them. Raises ConfigInvalid naming key and place."""
    values = {key: (value, str(file)) for key, value in _read(file).items()}
    for variable, text in environment.items():
        if variable.startswith(ENVIRONMENT_PREFIX):
            key = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
            values[key] = (_from_text(key, text), f"environment variable {variable}")
    known = {one.name for one in fields(Config)}
    for key, (_, place) in values.items():
        if key not in known:
            raise ConfigInvalid(field=key, place=place, problem="is not a known key")
    return Config(**{key: _checked(key, value, place) for key, (value, place) in values.items()})


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except FileNotFoundError:
        if file == FILE_DEFAULT:
            return {}  # every key has a default
        raise ConfigInvalid(field="the file", place=file, problem="is not there") from None
    except OSError as error:
        raise ConfigInvalid(field="the file", place=file, problem=error.strerror or "cannot be read") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        raise ConfigInvalid(field="the file", place=file, problem="is not TOML") from None


def _from_text(key: str, text: str) -> Any:
    if key == "engine_command":
        return shlex.split(text)
    if key == "controllers":
        return [part.strip() for part in text.split(",") if part.strip()]
    if key.endswith("_seconds"):
        try:
            return float(text)
        except ValueError:
            return text  # refused below, with the key's name
    return text


def _checked(key: str, value: Any, place: str) -> Any:
    """Return the value as its field's type, or raise ConfigInvalid."""

    def expect(condition: bool, problem: str) -> None:
        if not condition:
            raise ConfigInvalid(field=key, place=place, problem=problem)

    if key.endswith(("_folder", "_file")):
        expect(isinstance(value, str) and value.startswith("/") and "\0" not in value, "must be an absolute path")
        return Path(value)
    if key == "engine_command":
        expect(isinstance(value, list) and all(isinstance(one, str) for one in value), "must be a list of texts")
        expect(bool(value) and value[0].startswith("/"), "must begin with an absolute path")
        return tuple(value)
    if key == "controllers":
        expect(isinstance(value, list) and all(isinstance(one, str) for one in value), "must be a list of texts")
        expect(len(value) <= _CONTROLLERS_MAX, f"must not have more than {_CONTROLLERS_MAX}")
        expect(all(_ADDRESS.fullmatch(one) for one in value), "must be HOST:PORT each, or [IPV6]:PORT")
        return tuple(value)
    if key.endswith("_seconds"):
        expect(isinstance(value, int | float) and not isinstance(value, bool), "must be a number")
        expect(0 <= value <= _SECONDS_MAX, f"must be between 0 and {_SECONDS_MAX:.0f}")
        return float(value)
    expect(isinstance(value, str) and bool(value), "must be a text")
    if key == "log_level":
        expect(value in LOG_LEVELS, f"must be one of {', '.join(LOG_LEVELS)}")
    return value
