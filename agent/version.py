"""Which agent this is, and which protocol it speaks."""

from importlib.metadata import PackageNotFoundError, version

PROTOCOL_VERSION = 1


def _version() -> str:
    try:
        return version("backup-manager")
    except PackageNotFoundError:  # run from a source tree that was never installed
        return "0"


AGENT_VERSION = _version()
