"""Host names, addresses and ports, as settings and requests give them."""

import ipaddress
import re

PORT_MAX = 65535
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_HOST_NAME = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*\.?")


def is_address(text: str) -> bool:
    """Tell whether `text` is an IPv4 or IPv6 address."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def is_host(text: str) -> bool:
    """Tell whether `text` is a host name or an address."""
    return is_address(text) or (
        _HOST_NAME.fullmatch(text) is not None and not text.rsplit(".", maxsplit=1)[-1].isdecimal()
    )


def split_address(text: str) -> tuple[str, int]:
    """Return host and port of `host:port`; an IPv6 address stands in brackets. Raises ValueError saying what is wrong."""
    host, colon, port = text.rpartition(":")
    if not colon or not port.isascii() or not port.isdecimal() or int(port) > PORT_MAX:
        raise ValueError("must be host:port, with a port from 0 to 65535")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if not is_host(bare) or (":" in bare) != (bare != host):
        raise ValueError("must be host:port; an IPv6 address stands in brackets")
    return bare, int(port)


def join_address(host: str, port: int) -> str:
    """Return `host:port`, the reverse of `split_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
