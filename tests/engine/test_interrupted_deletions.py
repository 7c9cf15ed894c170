"""Deletions that break off at each of their requests, on real servers: no backup is left without its data, and a second try finishes.

    undisturbed   where in the stream each request ends, by a proxy that looks on
    unsent        the line dies just before a request is complete
    unanswered    the line dies with the request at the server, which may do it or not
    refused       S3: each request is answered with an error, done or not done

After each, what is listed restores byte by byte; then the same deletion is asked for again. `test_failing_storage.py` has it for a
local folder, operation by operation. Of a line that is cut once the storages make nothing: what they can repeat they repeat.
"""

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from engine.format import names
from engine.spec import ReindexJob
from engine.storage.base import Storage
from engine.storage.s3 import S3Storage
from engine.storage.s3_parts import PART_BYTES_MIN
from tests.engine.format.samples import FULL, INCREMENTAL, SERVER
from tests.engine.hostile import World, make_world
from tests.engine.rig import reason, result
from tests.engine.storage import test_ftp_interrupted as on_ftp
from tests.engine.storage import test_rclone_interrupted as on_rclone
from tests.engine.storage import test_s3_interrupted as on_s3
from tests.engine.storage import test_sftp_interrupted as on_sftp
from tests.servers.http_rules import HttpRules, Request, Told
from tests.servers.proxy import Proxy
from tests.servers.s3 import BucketPlace
from tests.servers.sshd import Sshd
from tests.shares import share
from tests.storage_faults import Exposed

pytestmark = [pytest.mark.feature("R19"), pytest.mark.feature("N15")]
GOING = [(INCREMENTAL,), (FULL, INCREMENTAL)]
KINDS = ["sftp", "ftp", "rclone", "s3"]
SLICES = 8  # tests that the requests of one deletion are spread over


@dataclass
class Scene:
    """`root` is what lies on the storage, or a copy of it that `fetch` renews and `put_back` puts there, in `place`."""

    world: World
    exposed: Exposed
    monkeypatch: pytest.MonkeyPatch
    place: BucketPlace | None = None

    @contextmanager
    def through(self, opening: Callable[[], Storage]) -> Iterator[None]:
        with self.monkeypatch.context() as patch:
            patch.setattr("engine.storage.open.open_storage", lambda _spec, **_options: opening())
            yield

    def delete(self, going: tuple[str, ...], opening: Callable[[], Storage] | None = None) -> str:
        """Delete over the line; return the reason of a failure, "" for none."""
        with self.through(opening or self.exposed.open):
            return reason(self.world.rig.delete(SERVER, *going))

    def offered(self) -> set[str]:
        """Return the backups that lie there whole, each of them restored; no manifest is without its segments."""
        self.fetch()
        found = result(self.world.rig.run(reindex=ReindexJob(SERVER)))
        assert found["unreadable"] == []
        backup_ids = {one["backup"]["backup_id"] for one in self.world.rig.report.records}
        for backup_id in backup_ids:
            assert reason(self.world.restore(backup_id)) == ""
        for path in self.world.root.glob("servers/*/*/*/manifest.json"):
            marked = (path.parent / "deleted.json").exists()
            assert marked or list(path.parent.glob("*.data")), path
        return backup_ids

    @contextmanager
    def as_it_was(self) -> Iterator[None]:
        """Put the storage back after the block."""
        kept = self.world.rig.folder / "kept"
        shutil.copytree(self.world.root, kept)
        try:
            yield
        finally:
            shutil.rmtree(self.world.root)
            kept.rename(self.world.root)
            self.put_back()

    def put_back(self) -> None:
        if self.place is not None:
            with self.exposed.honest() as storage:
                for one in ("servers", "keys"):
                    storage.sweep(one)
                for path in self.world.root.rglob("*"):
                    name = str(path.relative_to(self.world.root))
                    if path.is_file() and names.parse(name) is not None:
                        storage.delete(name)
                        storage.put(name, path.read_bytes())

    def fetch(self) -> None:
        if self.place is not None:
            shutil.rmtree(self.world.root)
            with self.exposed.honest() as storage:
                for entry in storage.list():
                    path = self.world.root / entry.name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    path.write_bytes(storage.get(entry.name))

    def request_ends(self, going: tuple[str, ...]) -> Sequence[int]:
        """Return after how many bytes each request of a deletion has gone, counted from its beginning."""
        line = self.line
        with self.as_it_was():
            begin, before = line.bytes["up"], len(line.ends)
            assert self.delete(going) == ""
            return sorted({end - begin for end in line.ends[before:]})

    @property
    def line(self) -> Proxy:
        assert self.exposed.line is not None
        return self.exposed.line


@pytest.fixture(scope="module")
def sshd(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sshd]:
    with Sshd(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def scene(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Scene]:
    world = make_world(tmp_path, monkeypatch, encrypted=True)
    for module in (on_s3, on_ftp, on_rclone, on_sftp):
        # Few tries, but none given up because this machine is busy: nothing here is about silence.
        patience = replace(module.SHORT, connect_seconds=20, stall_seconds=30)
        monkeypatch.setattr(module, "SHORT", patience)
    with exposing(kind, tmp_path, world.root, request) as (exposed, place):
        made = Scene(world, exposed, monkeypatch, place)
        made.put_back()
        yield made


@contextmanager
def exposing(
    kind: str, folder: Path, root: Path, request: pytest.FixtureRequest
) -> Iterator[tuple[Exposed, BucketPlace | None]]:
    match kind:
        case "ftp":
            front = on_ftp.Front(folder, "reuse")
            with front.server, front.line() as line:
                yield front.expose(line, root), None
        case "s3":
            server = request.getfixturevalue("juicefs")
            with Proxy(server.port) as line:
                place = server.place(on_s3.SHORT, part_size_bytes=PART_BYTES_MIN)
                yield on_s3.expose(server, line, place), place
        case _:
            server = request.getfixturevalue("sshd")
            with Proxy(server.port) as line:
                exposed = (
                    on_sftp.expose(server, line, root)
                    if kind == "sftp"
                    else on_rclone.on_ssh(server, line, folder, root)
                )
                yield exposed, None


def assert_finished(scene: Scene, going: tuple[str, ...]) -> None:
    """What is left is whole; asked for again, the deletion ends, and nothing of what went is there."""
    stays = {FULL, INCREMENTAL} - set(going)
    assert stays <= scene.offered()
    assert scene.delete(going) in {"", "BACKUP_NOT_FOUND"}  # the latter: all of it was gone before it broke off
    assert scene.offered() == stays
    here = [name for name in scene.exposed.everything() if not name.endswith("/")]  # a gateway's own folders
    assert not [name for name in here if any(name.startswith(f"servers/{SERVER}/{one}/") for one in going)]


@pytest.mark.share(8 * SLICES)
@pytest.mark.parametrize("number", range(SLICES))
@pytest.mark.parametrize("going", GOING, ids=["one", "all"])
@pytest.mark.parametrize("moment", ["unsent", "unanswered"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_deletion_whose_line_dies_at_any_request(
    scene: Scene, kind: str, moment: str, going: tuple[str, ...], number: int
) -> None:
    ends = scene.request_ends(going)
    assert len(ends) > 20
    for end in share(ends[number::SLICES], f"{kind} {moment} {len(going)}", len(ends)):
        with scene.as_it_was():
            scene.line.die_after(max(1, end - 1) if moment == "unsent" else end)
            failed = scene.delete(going)
            scene.line.refuse(on=False)
            scene.line.resume()
            assert failed in {"STORAGE_UNREACHABLE", ""}, failed
            assert failed or end >= 0.95 * ends[-1], "it cannot have been done already"
            assert_finished(scene, going)


@pytest.mark.share(12)
@pytest.mark.parametrize("going", GOING, ids=["one", "all"])
@pytest.mark.parametrize("lasting", [False, True], ids=["once", "from then on"])
@pytest.mark.parametrize(
    "told",
    [Told(500, "InternalError"), Told(500, "InternalError", after=True), Told(403, "AccessDenied")],
    ids=["failed", "done", "denied"],
)
@pytest.mark.parametrize("kind", ["s3"])
def test_a_deletion_whose_requests_are_refused(
    scene: Scene, juicefs: Any, told: Told, going: tuple[str, ...], kind: str, *, lasting: bool
) -> None:
    with HttpRules(juicefs.port) as rules:
        assert scene.place is not None
        assert scene.place.spec.s3 is not None
        config = replace(scene.place.spec.s3, endpoint=f"http://127.0.0.1:{rules.port}")

        def far() -> Storage:
            return S3Storage(config, on_s3.SHORT)

        with scene.as_it_was():
            assert scene.delete(going, far) == ""
            count = len(rules.requests)
        for number in share(range(1, count + 1), f"{told} {lasting} {len(going)}", count):
            with scene.as_it_was():
                before = len(rules.requests)

                def judge(request: Request, at: int = before + number) -> Told | None:
                    return told if request.number == at or (lasting and request.number > at) else None

                rules.answer(judge)
                failed = scene.delete(going, far)
                rules.answer(lambda _: None)
                assert failed in {"", "STORAGE_UNREACHABLE", "STORAGE_PERMISSION_DENIED", "STORAGE_FAILED"}, failed
                assert_finished(scene, going)
