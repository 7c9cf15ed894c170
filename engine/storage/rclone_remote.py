"""What a remote of rclone is, and whether it is a place for backups (S16, S17, S18). Rules only: nothing here asks anybody.

    remote ─► alias, crypt, … ─► the type that stores      each described by its section in rclone's configuration
       └── features, as rclone tells them of the whole

A section holds secrets: of it only the values named here are looked at, and only the type is ever told.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from engine.errors import InvalidSpec

Section = Mapping[str, str]

WRAPPED_DEPTH_MAX = 8
# Here an upload that does not come to its end leaves nothing, by the protocol and by rclone's way of using it (tried: cut,
# killed, and in its first bytes). Its rename is a copy, so the final name is written at once.
WHOLE_UPLOADS = frozenset({"s3"})

_NAME = re.compile(r"\w[\w .+@-]*")
# Where the value of an option means: to be thawed for hours before it can be read.
_ARCHIVE_TIERS = {
    "storage_class": frozenset({"GLACIER", "DEEP_ARCHIVE", "COLD_ARCHIVE", "DEEP_COLD_ARCHIVE"}),
    "access_tier": frozenset({"ARCHIVE"}),
    "storage_tier": frozenset({"ARCHIVE"}),
}
_HINT_S3 = "this remote is of rclone's type s3: a storage of the type S3 reaches the same bucket directly, faster and with less memory"
_HINT_STORAGE_BOX = (
    "this Storage Box is reached by WebDAV: a remote (or a storage) of the type SFTP, port 23, is faster and safer"
)


@dataclass(frozen=True, slots=True)
class Remote:
    """`kinds` are the types from the remote itself to what it lies on; `features` are rclone's of the remote with its path."""

    sections: tuple[Section, ...]
    features: Mapping[str, bool]

    @property
    def kinds(self) -> tuple[str, ...]:
        return tuple(section.get("type", "") for section in self.sections)

    @property
    def writes_whole(self) -> bool:
        """Whether an object appears only when its upload is complete, so that it needs no temporary name."""
        return set(self.kinds) <= WHOLE_UPLOADS | {"alias"}

    @property
    def has_folders(self) -> bool:
        """Whether a folder can be there without an object in it."""
        return self.features.get("CanHaveEmptyDirectories", False)

    @property
    def is_bucket(self) -> bool:
        return self.features.get("BucketBased", False)

    @property
    def checks_hash(self) -> bool:
        """Whether rclone should compare a hash after an upload: where the remote keeps one, and need not read all of it again."""
        return not self.features.get("SlowHash", False) and not set(self.kinds) & WHOLE_UPLOADS


def check_place(remote: str, path: str) -> str:
    """Return `remote:path` as rclone names it. Raises InvalidSpec for what rclone would take for something else."""
    if not _NAME.fullmatch(remote):
        raise InvalidSpec(field="rclone.remote", problem="must be the name of a remote, without a colon")
    if "]" in path or any(ord(one) < 32 for one in path):
        raise InvalidSpec(field="rclone.path", problem="must not contain ] or control characters")
    if ".." in path.split("/"):
        raise InvalidSpec(field="rclone.path", problem="must not lead upwards")
    return f"{remote}:{path.rstrip('/') or ('/' if path else '')}"


def sections(name: str, look_up: Callable[[str], Section]) -> Iterator[Section]:
    """Yield the section of the remote `name` and those of the remotes that it lies on; a section that is missing is empty."""
    waiting = [(name, 0)]
    while waiting:
        name, depth = waiting.pop(0)
        section = look_up(name)
        yield section
        if depth < WRAPPED_DEPTH_MAX:
            waiting += [(inner, depth + 1) for inner in _inner_names(section)]


def why_refused(remote: Remote) -> tuple[str, str] | None:
    """Return the type and the reason why it is no place for backups, unless forced; None where it is one."""
    kinds = remote.kinds
    if "mega" in kinds:
        return "mega", "uploads are spooled to this host's disk before they begin"
    if "dropbox" in kinds:
        return "dropbox", "its rate limits stop backups half-way"
    for section in remote.sections:
        for option, tiers in _ARCHIVE_TIERS.items():
            if section.get(option, "").upper() in tiers:
                return section[
                    "type"
                ], f"its {option} is {section[option]}, which cannot be read in ranges without a thaw"
    if not remote.features.get("PutStream", False):
        return kinds[0], "it takes no stream: uploads would be spooled to this host's disk before they begin"
    return None


def why_impossible(remote: Remote) -> tuple[str, str] | None:
    """Return the type and the reason why nothing can force it: an unfinished object could not be told from a whole one."""
    if remote.writes_whole or remote.features.get("Move", False) or remote.features.get("Copy", False):
        return None
    return remote.kinds[0], "it can neither rename nor copy, so a broken upload would lie under a final name"


def hints_for(remote: Remote) -> tuple[str, ...]:
    """Return what a person should know who chose this remote."""
    found = []
    if "s3" in remote.kinds:
        found.append(_HINT_S3)
    if any(one.get("type") == "webdav" and "your-storagebox.de" in one.get("url", "") for one in remote.sections):
        found.append(_HINT_STORAGE_BOX)
    return tuple(found)


def _inner_names(section: Section) -> Sequence[str]:
    """Return the names of the remotes that a section lies on: of `name:path`, and of lists like `dir=name:path name2:path`."""
    if section.get("type") in {"alias", "crypt", "chunker", "compress", "hasher", "cache"}:
        places = [section.get("remote", "")]
    else:
        places = section.get("upstreams", "").split() if section.get("type") in {"union", "combine"} else []
    names = (place.rpartition("=")[2].partition(":") for place in places)
    return [name for name, colon, _ in names if colon and name]
