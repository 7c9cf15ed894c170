"""What each type of storage is set by, as a person meets it: options of `bmctl storage add` and `update`, and questions.

One row is one field of the type's config in storage.proto. The guided way asks the rows in their order and checks each answer
at once, with the same `check` that an option passes through.
"""

from __future__ import annotations

import inspect
import ipaddress
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clients.cli import ask
from clients.cli.failures import Usage

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Mapping

_BUCKET = re.compile(r"[a-z0-9A-Z][a-zA-Z0-9._-]{1,62}")
_HOST = re.compile(r"[A-Za-z0-9._:%\[\]-]{1,253}")
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Field:
    """`option` is the flag; `about` one line; `default` what is shown and used for an empty answer, None where one is needed.

    `asked` says that the guided way asks for it: what hardly anybody changes it leaves alone. `kind` bool is a yes or no.
    """

    name: str
    option: str
    about: str
    check: Callable[[str], Any]
    default: Any = None
    asked: bool = True
    kind: type = str

    @property
    def required(self) -> bool:
        return self.default is None

    @property
    def flag(self) -> str:
        return self.option.partition("/")[0]

    @property
    def key(self) -> str:
        """The option's name as a parameter: types that share an option share it."""
        return self.flag.removeprefix("--").replace("-", "_")


def text(value: str) -> str:
    if not value.strip() or not value.isprintable():
        raise ValueError("a word or a name is needed")
    return value.strip()


def anything(value: str) -> str:
    return value.strip()


def host(value: str) -> str:
    """Return a host name or an address. Raises ValueError for a URL, or what has a path or a user in it."""
    if not _HOST.fullmatch(value):
        raise ValueError("a name or an address alone, such as backup.example.net or 192.0.2.7")
    return value


def port(value: str) -> int:
    return number(value, 1, 65535)


def number(value: str, least: int, most: int) -> int:
    if not value.isdecimal() or not least <= int(value) <= most:
        raise ValueError(f"a number from {least} to {most}")
    return int(value)


def absolute(value: str) -> str:
    if not value.startswith("/") or ".." in value.split("/"):
        raise ValueError("an absolute path without `..`, such as /srv/backups")
    return value


def bucket(value: str) -> str:
    if not _BUCKET.fullmatch(value):
        raise ValueError("the bucket's name alone: 2 to 63 letters, digits, `.`, `-` or `_`")
    return value


def endpoint(value: str) -> str:
    if value and not re.fullmatch(r"https?://[^/\s@]+/?", value):
        raise ValueError("a URL such as https://s3.example.net:9000, or nothing for AWS")
    return value.rstrip("/")


def remote(value: str) -> str:
    if not re.fullmatch(r"[\w][\w .+@-]*", value):
        raise ValueError("the remote's name in rclone.conf alone, without a colon")
    return value


def address(value: str) -> str:
    try:
        return str(ipaddress.ip_address(value)) if value else ""
    except ValueError:
        raise ValueError("an IP address of the hypervisor, or nothing") from None


def part_size(value: str) -> int:
    """Return bytes from MiB; 0 chooses. Source: S6."""
    return number(value, 5, 512) * _MIB if value not in {"", "0"} else 0


def one_of(words: dict[str, int]) -> Callable[[str], int]:
    def check(value: str) -> int:
        if value not in words:
            raise ValueError(f"one of {', '.join(words)}")
        return words[value]

    return check


_BIND = Field(
    "bind_address", "--bind-address", "Source address of the connections; empty lets the system choose.", address, "", asked=False
)  # fmt: skip
_CA = Field(
    "ca_certificate", "--ca-file", "PEM file of what signed the server's certificate.", anything, "", asked=False
)

FIELDS: dict[str, tuple[Field, ...]] = {
    "sftp": (
        Field("host", "--host", "Name or address of the SSH server.", host),
        Field("port", "--port", "Its port; a Hetzner Storage Box has 23.", port, 22),
        Field("username", "--username", "User there.", text),
        Field("path", "--path", "Absolute path there; the last folder is made if it is missing.", absolute),
        Field("host_key", "--host-key", "Its host key, `type base64`; learnt at the first test.", anything, "", asked=False),
        _BIND,
    ),
    "s3": (
        Field("endpoint", "--endpoint", "URL of the server; empty is AWS.", endpoint, ""),
        Field("region", "--region", "Region; servers without regions take us-east-1.", text, "us-east-1"),
        Field("bucket", "--bucket", "Name of the bucket, which has to be there.", bucket),
        Field("prefix", "--prefix", "Folder of keys that the backups lie below; empty is the whole bucket.", anything, ""),
        Field("access_key", "--access-key", "Access key id; the secret key is asked for after it.", text),
        Field("concurrency", "--s3-concurrency", "Parts of an upload sent at once.", lambda value: number(value, 1, 64), 8, asked=False),
        Field("part_size_bytes", "--part-size", "MiB of an upload's part, 5 to 512; 0 chooses.", part_size, 0, asked=False),
        Field(
            "addressing", "--addressing", "How the bucket is named in requests: auto, path or virtual.",
            one_of({"auto": 0, "path": 1, "virtual": 2}), 0, asked=False,
        ),
        _CA,
        _BIND,
    ),
    "ftp": (
        Field("host", "--host", "Name or address of the FTP server.", host),
        Field("port", "--port", "Its port.", port, 21),
        Field("username", "--username", "User there; the password is asked for after it.", text),
        Field("path", "--path", "Absolute path there, as the user sees it after the login.", absolute),
        Field("tls_version_max", "--tls-max", "Highest version of TLS: 1.2 or 1.3.", one_of({"1.2": 1, "1.3": 2}), 0, asked=False),
        Field("tls_disabled", "--no-tls/--tls", "Send everything in clear, the password too.", bool, default=False, kind=bool),
        Field(
            "skip_tls_verify", "--skip-tls-verify/--verify-tls", "Do not check the server's certificate.", bool,
            default=False, asked=False, kind=bool,
        ),
        _CA,
        _BIND,
    ),
    "rclone": (
        Field("remote", "--remote", "Name of the remote in rclone.conf on the hypervisors, without a colon.", remote),
        Field("path", "--path", "Folder of the remote, such as bucket/backups; empty is its root.", anything, ""),
        Field(
            "s3_concurrency", "--s3-concurrency", "Upload concurrency for remotes of rclone's type s3.",
            lambda value: number(value, 1, 64), 4, asked=False,
        ),
        Field(
            "force", "--force/--no-force", "Accept a remote that is refused else: MEGA, Dropbox, archive tiers.", bool,
            default=False, asked=False, kind=bool,
        ),
        _BIND,
    ),
    "local": (Field("path", "--path", "Absolute path on each hypervisor.", absolute),),
}  # fmt: skip

ABOUT = {
    "sftp": "an SSH server with SFTP",
    "s3": "a bucket: AWS, MinIO, Wasabi, R2, B2, Ceph",
    "ftp": "an FTP server, by TLS",
    "rclone": "a remote of rclone's configuration on the hypervisors",
    "local": "a folder or a mount on the hypervisors",
}


def parameters(kinds: Iterable[str]) -> list[inspect.Parameter]:
    """Return the options of all fields of some types, as parameters that typer reads; None where one is not given."""
    found: dict[str, inspect.Parameter] = {}
    for field in (one for kind in kinds for one in FIELDS[kind]):
        shown = (
            f" Default {field.default}."
            if isinstance(field.default, int) and field.default and field.kind is not bool
            else ""
        )
        hint: Any = Annotated[field.kind | None, typer.Option(field.option, help=field.about + shown)]
        made = inspect.Parameter(field.key, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=hint)
        found.setdefault(field.key, made)
    return list(found.values())


def own_parameters(verb: Callable[..., None], leave_out: Collection[str] = ()) -> list[inspect.Parameter]:
    """Return the parameters of `verb` that are written out in it, without those to leave out."""
    found = inspect.signature(verb, eval_str=True).parameters.values()
    return [one for one in found if one.kind is not inspect.Parameter.VAR_KEYWORD and one.name not in leave_out]


def with_parameters(verb: Callable[..., None], wanted: Iterable[inspect.Parameter]) -> Callable[..., None]:
    """Return `verb` as a verb with exactly these options; it gets them as keywords."""
    named = [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in wanted]

    def whole(**given: Any) -> None:
        verb(**given)

    whole.__name__ = getattr(verb, "__name__", "verb")
    whole.__doc__ = verb.__doc__
    whole.__annotations__ = {one.name: one.annotation for one in named}
    whole.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]  # what typer reads
    return whole


def place(kind: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config's values that were given as options, by field. Raises Usage naming the option.

    An option of another type is refused: it would be thought to have been obeyed.
    """
    own = {field.key: field for field in FIELDS[kind]}
    values = {}
    for key, value in given.items():
        if value is None:
            continue
        if key not in own:
            raise Usage(field=f"--{key.replace('_', '-')}", problem=f"a storage of the type {kind} has no such setting")
        values[own[key].name] = checked(own[key], value)
    return values


def checked(field: Field, value: Any) -> Any:
    """Return an option's or an answer's value as the config has it. Raises Usage naming the option."""
    if field.kind is bool:
        return bool(value)
    if field.name == "ca_certificate" and value:
        return ask.read_file(str(value), option=field.flag)
    try:
        return field.check(str(value))
    except ValueError as error:
        raise Usage(field=field.flag, problem=str(error)) from error
