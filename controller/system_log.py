"""The system log (M9): what the controller did and met of its own accord, in sentences, with links to what they are about.

An event says that something happened, to programs; a line of this log says to people what went well or wrong and why. Lines of
level info are kept only while Log Info Level is on (G9).
"""

from datetime import datetime
from typing import Literal, TypeAlias

from controller.db import models

Level: TypeAlias = Literal["info", "warning", "error"]
Source: TypeAlias = Literal["dispatcher", "inventory", "purge", "health", "prune", "heal"]

MESSAGE_CHARACTERS_MAX = 4096
_LINKS = frozenset({"schedule_id", "storage_id", "hypervisor_id", "server_id", "batch_id", "job_id"})


def write(level: Level, source: Source, message: str, now: datetime, **links: str) -> None:
    """Add a line. `links` are ids: schedule_id, storage_id, hypervisor_id, server_id, batch_id, job_id. Inside Database.run.

    A message says what happened, why and what helps, and holds no secret.
    """
    if unknown := links.keys() - _LINKS:
        raise ValueError(f"no link {', '.join(sorted(unknown))}")
    if level == "info" and not _wants_info():
        return
    text = message[:MESSAGE_CHARACTERS_MAX].replace("\0", "")
    models.SystemLog.insert(time=now, level=level, source=source, message=text, **links).execute()


def _wants_info() -> bool:
    return False
