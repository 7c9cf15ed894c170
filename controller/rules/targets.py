"""Where webhooks may be sent: to public addresses, and to what the controller's settings allow beside them.

A webhook makes the controller call an address of somebody's choice from within its own network. So addresses are looked at, not
names, and each time anew: a name may mean another address the next time (DNS rebinding). An IPv4 address that hides in an IPv6
one (mapped, 6to4, Teredo, NAT64) counts as itself.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias
from urllib.parse import urlsplit

from controller.errors import InvalidField

Address: TypeAlias = ipaddress.IPv4Address | ipaddress.IPv6Address
Network: TypeAlias = ipaddress.IPv4Network | ipaddress.IPv6Network

URL_CHARACTERS_MAX = 2048
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NEVER_PUBLIC = (
    ipaddress.ip_network("192.0.0.0/24"),  # protocol assignments; one cloud's metadata service is there
    ipaddress.ip_network("64:ff9b:1::/48"),  # NAT64 with a prefix of one's own
)
_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Target:
    """A URL taken apart. `host` has no brackets; `path` has the query with it."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """Return what belongs into the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def parse(url: str) -> Target:
    """Take a webhook's URL apart. Raises InvalidField."""
    if len(url) > URL_CHARACTERS_MAX:
        raise _refused(f"is longer than {URL_CHARACTERS_MAX} characters")
    if not url.isascii() or any(character <= " " or character in '"<>\\^`{|}\x7f' for character in url):
        raise _refused("holds characters that a URL writes as %XX")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        raise _refused("is not a URL") from None
    if parts.scheme not in _PORTS or not parts.hostname:
        raise _refused("must begin with https:// or http:// and a host")
    if parts.username is not None or parts.password is not None:
        raise _refused("must not hold a user or password; the signature tells the receiver who sends")
    if parts.fragment or url.endswith("#"):
        raise _refused("must not have a fragment")
    if port == 0 or "%" in parts.hostname:
        raise _refused("has no such host or port")
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Target(parts.scheme, parts.hostname, port or _PORTS[parts.scheme], path)


def check(url: str, allowed: Sequence[Network]) -> Target:
    """As `parse`, and look at a host that is written as an address; a name is looked at when it is used."""
    target = parse(url)
    try:
        address = ipaddress.ip_address(target.host)
    except ValueError:
        return target
    if not is_permitted(address, allowed):
        raise _refused("is not a public address, and webhook_networks in the controller's settings does not allow it")
    return target


def is_permitted(address: Address, allowed: Sequence[Network]) -> bool:
    """Tell whether a webhook may be sent to this address."""
    real = _real(address)
    if any(real in network for network in allowed):
        return True
    if any(real in network for network in _NEVER_PUBLIC):
        return False
    return real.is_global and not (real.is_multicast or real.is_reserved)


def _real(address: Address) -> Address:
    if isinstance(address, ipaddress.IPv4Address):
        return address
    if address in _NAT64:
        return ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF)
    hidden = address.ipv4_mapped or address.sixtofour
    if hidden is None and address.teredo is not None:
        hidden = address.teredo[1]
    if hidden is None and int(address) >> 32 == 0 and int(address) > 1:
        hidden = ipaddress.IPv4Address(int(address))  # IPv4-compatible, long out of use
    return hidden or address


def _refused(problem: str) -> InvalidField:
    return InvalidField(field="url", problem=problem)
