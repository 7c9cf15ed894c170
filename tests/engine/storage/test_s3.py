"""S3 as a storage, on real servers: the contract, on one that keeps every promise and on one that ignores conditions."""

import os
from collections.abc import Iterator

import pytest

from engine.storage.s3_parts import PART_BYTES_MIN
from engine.storage.s3_wire import Patience
from tests.servers.proxy import Proxy
from tests.servers.s3 import S3Server
from tests.storage_contract import StorageContract

QUICK = Patience(
    connect_seconds=10, stall_seconds=10, attempts=3, pause_seconds=0.01, enduring_attempts=5, enduring_seconds=20
)


@pytest.fixture
def proxied(request) -> Iterator[tuple[S3Server, Proxy]]:
    """The class's server, and a proxy before it that can cut."""
    server: S3Server = request.getfixturevalue(request.cls.server)
    with Proxy(server.port) as proxy:
        yield server, proxy


class _S3Contract(StorageContract):
    server = ""

    @pytest.fixture
    def place(self, proxied):
        server, proxy = proxied
        endpoint = f"{server.scheme}://127.0.0.1:{proxy.port}"
        # The smallest parts there are: so what the contract writes goes up in one part, and in several.
        return server.place(QUICK, proxy.cut, endpoint=endpoint, part_size_bytes=PART_BYTES_MIN)


@pytest.fixture(scope="module")
def radosgw(tmp_path_factory) -> Iterator[S3Server]:
    from tests.servers.radosgw import Radosgw

    with Radosgw(tmp_path_factory.mktemp("radosgw")) as server:
        yield server


@pytest.mark.feature("S5")
class TestWeed(_S3Contract):
    """SeaweedFS: refuses a second object under a name, also one in parts; compares no hash of a body."""

    server = "weed"

    def test_it_is_found_to_keep_names(self, storage):
        promises = storage.promises()
        assert storage.abilities.exclusive_create
        assert promises.exclusive_complete
        assert promises.etag_is_md5


@pytest.mark.feature("S5")
class TestJuicefs(_S3Contract):
    """A gateway derived from MinIO: ignores conditions, so that we look first; refuses a body that is not what was signed."""

    server = "juicefs"

    def test_it_is_found_to_overwrite(self, storage):
        promises = storage.promises()
        assert not storage.abilities.exclusive_create
        assert not promises.exclusive_complete
        assert not promises.etag_is_md5


@pytest.mark.feature("S5")
@pytest.mark.skipif(os.environ.get("BM_STORAGES") != "all", reason="run by `make storages`, which installs Ceph")
class TestRadosgw(_S3Contract):
    """Ceph 16 over HTTPS: refuses a second object under a name, but not one in parts; knows no checksums but MD5."""

    server = "radosgw"

    def test_it_is_found_to_keep_names_of_small_objects(self, storage):
        promises = storage.promises()
        assert storage.abilities.exclusive_create
        assert not promises.exclusive_complete
