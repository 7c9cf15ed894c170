"""Fixtures that many folders share. Each starts its real thing when the first test asks for it, once per process."""

import contextlib
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from tests.servers.guest import BlankDomain, RealGuest
    from tests.servers.libvirtd import Libvirtd


@pytest.fixture(scope="session")
def libvirtd(tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Libvirtd]":
    """A private libvirtd; a test that stops it starts it again."""
    from tests.servers.libvirtd import Libvirtd

    with Libvirtd(tmp_path_factory.mktemp("libvirtd")) as daemon:
        yield daemon


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
