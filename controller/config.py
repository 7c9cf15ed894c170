"""The controller's settings: a TOML file, and over it the environment.

    /etc/backup-manager/controller.toml      BM_CONTROLLER_<KEY>      ──►  Settings (frozen)

A key that is not known, and a value that does not fit, are refused with the key and the place it came from: a setting that
is silently ignored is found on the day it was needed.
"""

import ipaddress
import os
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from controller.addresses import is_host, split_address
from controller.errors import CannotStart

ENVIRONMENT_PREFIX = "BM_CONTROLLER_"

_SCHEMES = ("sqlite", "postgresql", "postgres", "psycopg3")


class ConfigInvalid(CannotStart):
    """The settings cannot be used; the text names the key and the file or variable, and never a value."""


def _address(text: str) -> str:
    split_address(text)
    return text


def _host(text: str) -> str:
    if not is_host(text):
        raise ValueError("is neither a host name nor an address")
    return text


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError:
        raise ValueError("is not a network such as 10.0.0.0/8") from None


def _database(text: str) -> str:
    if text and text.partition("://")[0] not in _SCHEMES:
        raise ValueError("must be a URL such as sqlite:///path or postgresql://user@host/name")
    return text


def _absolute(path: Path) -> Path:
    if not path.is_absolute() or "\0" in str(path):
        raise ValueError("must be an absolute path")
    return path


Address = Annotated[str, AfterValidator(_address)]


class Settings(BaseModel):
    """What a controller needs to know before it starts. The descriptions are those of docs/controller.md."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    state_folder: Annotated[Path, AfterValidator(_absolute)] = Field(
        default=Path("/var/lib/backup-manager/controller"),
        description="folder of everything the controller keeps: its authority, its database, its secrets",
    )
    database: Annotated[str, AfterValidator(_database)] = Field(
        default="",
        repr=False,  # the URL of a PostgreSQL may hold a password
        description="URL of the database; empty means SQLite in the state folder",
    )
    listen: Address = Field(
        default="0.0.0.0:7440",
        description="where panels, `bmctl` and enrolling agents connect; port 0 takes any free one",
    )
    agent_listen: Address = Field(
        default="0.0.0.0:7441", description="where enrolled agents connect; port 0 takes any free one"
    )
    host_names: tuple[Annotated[str, AfterValidator(_host)], ...] = Field(
        default=(),
        description="further names and addresses of this host for its certificate, for clients that check them",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="least level that is logged"
    )
    heartbeat_seconds: float = Field(
        default=10.0, ge=0.1, le=300, description="how often agents give a sign of life; three missed ones mean offline"
    )
    command_accept_seconds: float = Field(
        default=120.0, ge=0.1, le=86400, description="how long an agent may take to accept a job before the job fails"
    )
    tick_seconds: float = Field(
        default=60.0,
        ge=0.05,
        le=3600,
        description="how often the cycle looks for due schedules, for waiting and for stale work",
    )

    webhook_networks: tuple[Annotated[str, AfterValidator(_network)], ...] = Field(
        default=(),
        description="networks such as `10.0.0.0/8` that webhooks may be sent to beside public addresses",
    )

    @property
    def authority_folder(self) -> Path:
        return self.state_folder / "authority"

    @property
    def master_key_file(self) -> Path:
        return self.state_folder / "master.key"

    @property
    def recovery_key_file(self) -> Path:
        return self.state_folder / "recovery.key"

    @property
    def mark_file(self) -> Path:
        return self.state_folder / "mark.json"

    @property
    def ports_file(self) -> Path:
        return self.state_folder / "ports.json"

    @property
    def database_url(self) -> str:
        return self.database or f"sqlite:///{self.state_folder / 'controller.db'}"


def load(file: Path, environment: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings of a file with the environment's over them. Raises ConfigInvalid naming key and place."""
    values = _read(file)
    places = dict.fromkeys(values, str(file))
    for variable, text in environment.items():
        if variable.startswith(ENVIRONMENT_PREFIX):
            key = variable.removeprefix(ENVIRONMENT_PREFIX).lower()
            values[key] = _from_text(key, text)
            places[key] = f"environment variable {variable}"
    try:
        return Settings(**values)
    except ValidationError as error:
        raise ConfigInvalid("; ".join(_sentence(one, places) for one in error.errors(include_input=False))) from None


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as stream:
            return tomllib.load(stream)
    except OSError as error:
        raise ConfigInvalid(f"cannot read {file}: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigInvalid(f"{file} is not TOML: {error}") from None


def _from_text(key: str, text: str) -> Any:
    """Return a variable's text as what the key wants; a list is separated by commas."""
    if key in {"host_names", "webhook_networks"}:
        return [part.strip() for part in text.split(",") if part.strip()]
    return text


def _sentence(error: Any, places: Mapping[str, str]) -> str:
    key = str(error["loc"][0])
    problem = "is not a known key" if error["type"] == "extra_forbidden" else error["msg"].removeprefix("Value error, ")
    return f"{key} in {places.get(key, 'the defaults')}: {problem}"
