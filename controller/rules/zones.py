"""Time zones by their IANA names, read from the system's files."""

import re
from zoneinfo import ZoneInfo

from controller.errors import InvalidField

NAME_CHARACTERS_MAX = 64
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_+-]*(/[A-Za-z0-9_+-]+){0,2}")
_NO_PLACE = {"localtime", "posixrules", "Factory"}  # files beside the zones that say nothing to another host


def find_zone(field: str, name: str) -> ZoneInfo:
    """Return the zone of an IANA name, such as `Europe/Berlin`. Raises InvalidField naming `field`."""
    try:
        if len(name) > NAME_CHARACTERS_MAX or name in _NO_PLACE or not _NAME.fullmatch(name):
            raise ValueError(name)
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # no such file, none of a zone, a folder
        problem = "is not the name of a time zone, such as Europe/Berlin or UTC"
        raise InvalidField(field=field, problem=problem) from None
