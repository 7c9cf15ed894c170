"""Checks of single fields that more than one type of storage has."""

from collections.abc import Mapping
from typing import Any

from controller.addresses import PORT_MAX, is_address, is_host
from controller.errors import InvalidField
from controller.services import check

CERTIFICATES_BYTES_MAX = 64 << 10  # a whole chain of large certificates is a fifth of it
SECRET_CHARACTERS_MAX = 1024
FOLDER_BYTES_MAX = 400  # of the 1024 that keys of objects may have; our own names take up to 512 below it


def expect(condition: bool, field: str, problem: str) -> None:
    if not condition:
        raise InvalidField(field=field, problem=problem)


def host(field: str, text: str) -> str:
    expect(is_host(text), field, "is neither a host name nor an address")
    return text


def port(field: str, value: int, default: int) -> int:
    return check.number(field, value or default, 1, PORT_MAX)


def bind_address(field: str, text: str) -> str:
    expect(not text or is_address(text), field, "is not an address")
    return text


def folder(field: str, text: str, *, rooted: bool = False) -> str:
    """Return a folder of keys or of a remote without slashes around it; `rooted` keeps one in front. "" is the top."""
    expect(len(text.encode()) <= FOLDER_BYTES_MAX, field, f"is longer than {FOLDER_BYTES_MAX} bytes")
    expect(text.isprintable() and "\\" not in text, field, "holds control characters or a backslash")
    parts = [part for part in text.split("/") if part]
    expect(not {".", ".."} & set(parts), field, "must not contain '.' or '..' as a part")
    expect(all(part == part.strip() for part in parts), field, "has a part with spaces around it")
    return ("/" if rooted and text.startswith("/") else "") + "/".join(parts)


def certificates(field: str, pem: str) -> str:
    """Return PEM certificates as they are; "" for none. A private key among them is refused: settings are shown."""
    if not pem.strip():
        return ""
    from cryptography import x509

    expect(len(pem) <= CERTIFICATES_BYTES_MAX, field, f"is longer than {CERTIFICATES_BYTES_MAX} bytes")
    expect("PRIVATE KEY" not in pem, field, "holds a private key, which does not belong there")
    try:
        found = x509.load_pem_x509_certificates(pem.encode())
    except ValueError:
        found = []
    expect(bool(found), field, "holds no certificate in PEM that can be read")
    return pem.strip() + "\n"


def secret(field: str, text: str) -> None:
    """Check a password or a key that goes over a line-based protocol or into a header."""
    expect(bool(text), field, "is missing")
    expect(len(text) <= SECRET_CHARACTERS_MAX, field, f"is longer than {SECRET_CHARACTERS_MAX} characters")
    expect(not set(text) & set("\0\r\n"), field, "holds a line end or a NUL")


def known_enum(field: str, value: int, names: Mapping[Any, str]) -> None:
    expect(value in names, field, f"must be one of {', '.join(sorted(set(names.values())))}")
