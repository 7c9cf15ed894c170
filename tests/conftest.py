"""Fixtures that many folders share, and a place for all that tests write.

Each fixture starts its real thing when the first test asks for it, once per process. A run has one temporary folder, which is
gone when it ends, also after Ctrl-C and SIGTERM; its path is short, because sockets' paths must be.
"""

import contextlib
import os
import shutil
import signal
import tempfile
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from tests import shares

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers.guest import BlankDomain, RealGuest
    from tests.servers.juicefs import Juicefs
    from tests.servers.libvirtd import Libvirtd
    from tests.servers.postgres import Postgres
    from tests.servers.weed import Weed

_FOLDER: "pytest.StashKey[str]" = pytest.StashKey()
# Files whose tests share a server that starts slowly.
_SHARE_A_SERVER = (
    "/controller/services/", "/e2e/test_stress_", "/engine/storage/test_ftp", "/engine/storage/test_sftp",
    "/engine/storage/test_trouble.py", "/engine/storage/test_deadlines.py", "/clients/cli/test_schedules.py",
    "/engine/test_consistency.py", "/engine/test_late_freeze.py", "/engine/test_scratch_space.py",
)  # fmt: skip


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Make the run's temporary folder, in the first process only; the workers find it in their options and environment."""
    if hasattr(config, "workerinput"):
        return
    signal.signal(signal.SIGTERM, _interrupt)
    if config.option.basetemp is None:
        folder = tempfile.mkdtemp(prefix="bm-")
        config.stash[_FOLDER] = folder
        config.option.basetemp = f"{folder}/t"
        os.environ["TMPDIR"] = tempfile.tempdir = folder


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    folder = config.stash.get(_FOLDER, "")
    if folder:
        shutil.rmtree(folder, ignore_errors=True)


def pytest_collection_modifyitems(config: pytest.Config, items: "list[pytest.Item]") -> None:
    """Keep one in so many of the cases of each test that has the mark `share`, or all of them (see `tests.shares`)."""
    kept = shares.kept(items)
    if len(kept) < len(items):
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
        items[:] = [item for item in items if item in kept]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Keep the tests of a file that share one server in one process, when told to mind groups; files with many tests go first.

    Otherwise every process would start the file's controller, or stress world, or sshd, for its part of the tests.

    Groups by mark do not arrive: xdist 3.8 writes them into a field of the tests that pytest 9.2 no longer reads.
    """
    if config.getoption("dist") != "loadgroup":
        return None
    from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]  # it brings no types

    scheduling = LoadScopeScheduling(config, log)
    scheduling._split_scope = _unit_of
    return scheduling


def _unit_of(nodeid: str) -> str:
    file = nodeid.partition("::")[0]
    return file if any(part in file for part in _SHARE_A_SERVER) else nodeid


def _interrupt(_number: int, _frame: object) -> NoReturn:
    raise KeyboardInterrupt


@pytest.fixture(scope="session")
def postgres() -> "Iterator[Postgres]":
    """A private PostgreSQL, started when the first test of this process asks; each test takes a database of its own from it."""
    from tests.servers.postgres import Postgres

    with Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def libvirtd(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Libvirtd]":
    """A private libvirtd; a test that stops it starts it again."""
    from tests.servers.libvirtd import Libvirtd

    with Libvirtd(tmp_path_factory.mktemp("libvirtd")) as daemon:
        yield daemon


@pytest.fixture(scope="session")
def weed(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Weed]":
    """A private SeaweedFS; a test that stops it starts it again."""
    from tests.servers.weed import Weed

    with Weed(tmp_path_factory.mktemp("weed")) as server:
        yield server


@pytest.fixture(scope="session")
def juicefs(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Juicefs]":
    """A private JuiceFS gateway; a test that stops it starts it again."""
    from tests.servers.juicefs import Juicefs

    with Juicefs(tmp_path_factory.mktemp("juicefs")) as server:
        yield server


@pytest.fixture
def blank_domain(libvirtd: "Libvirtd") -> "Iterator[Callable[..., BlankDomain]]":
    """Make domains without a system: `blank_domain(disks, …)` as BlankDomain takes them; gone after the test."""
    from tests.servers.guest import BlankDomain

    with contextlib.ExitStack() as stack:

        def make(*arguments: Any, **options: Any) -> BlankDomain:
            return stack.enter_context(BlankDomain(libvirtd.uri, *arguments, **options))

        yield make


@pytest.fixture
def real_guest(libvirtd: "Libvirtd", tmp_path: Any) -> "Iterator[Callable[..., RealGuest]]":
    """Make real guests: `real_guest(…)` as RealGuest takes its options; gone after the test."""
    from tests.servers.guest import RealGuest

    with contextlib.ExitStack() as stack:
        count = 0

        def make(**options: Any) -> RealGuest:
            nonlocal count
            count += 1
            return stack.enter_context(RealGuest(libvirtd.uri, tmp_path / f"guest{count}", **options))

        yield make
