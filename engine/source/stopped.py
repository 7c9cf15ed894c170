"""The disks of a stopped domain, read from its images without a lock, so that it can be started at any moment.

    nobody writes? ─► new bitmaps ─► fingerprints ─► nobody writes? ─► read ─► nobody wrote, nothing started?  else all is void
                      └ 30 ms each ┘                                  ▲ a watcher: a start, a change ─► reading ends at once

A start wins: the exports close, DomainStarted leaves the block, and the caller goes on with a running domain. Only while a
bitmap is added is an image locked, for some 30 ms (QEMU flushes six times meanwhile): a start in just that moment fails, as
it would beside any other tool. The bitmaps are the new tracking point; QEMU itself records in them whatever is written from
then on, so it does no harm that they come a little before the first read.
"""

import contextlib
import threading
from collections.abc import Collection, Iterator, Mapping
from functools import partial

from engine.errors import DomainStarted, HypervisorError, ImageBusy, ImageChanged, LibvirtUnreachable, NbdError
from engine.failpoint import reached
from engine.hypervisor.connection import Domain, DomainEvent
from engine.hypervisor.domains import DiskInfo, DomainInfo, has_managed_save, is_active, wait_settled
from engine.source.export import export_image
from engine.source.images import add_bitmap, image_files
from engine.source.nbd_disk import NbdDisk
from engine.source.running import Instant
from engine.source.unlocked import Fingerprint, fingerprint, fingerprints, write_locked
from engine.work import Stop

WATCH_SECONDS = 1.0


@contextlib.contextmanager
def stopped_disks(
    domain: Domain,
    info: DomainInfo,
    bases: Mapping[str, str | None],
    checkpoint: str,
    stop: Stop,
    copies: Collection[str] = (),
) -> Iterator[Instant]:
    """Serve the disks of `bases` for the block; see `running_disks`.

    From the block's end, or its middle, come DomainStarted if the domain was started, ImageChanged if an image was written to.
    Raises ImageBusy if one is open elsewhere, DiskUnsupported, HypervisorError.
    """
    images = [disk for disk in info.disks if disk.target in bases]
    disks: dict[str, NbdDisk] = {}
    with _watched(domain, disks, stop) as watch, contextlib.ExitStack() as stack:
        files = [file for image in images for file in image_files(image.path, image.format)]
        _refuse_writers(files)
        if checkpoint:
            _add_bitmaps([image for image in images if image.target not in copies], checkpoint)
        watch.begin(files)
        _refuse_writers(files)  # one that came before the fingerprints would not show in them
        for image in images:
            base = bases[image.target]
            bitmaps = [base] if base is not None else []
            export = stack.enter_context(export_image(image.path, image.format, bitmaps=bitmaps, shared=True))
            reached("exported")
            disks[image.target] = NbdDisk(export.socket, export.name, base or "")
        if has_managed_save(domain):
            yield Instant(disks, "paused", "the domain was saved to disk with its memory, its guest was not shut down")
        else:
            yield Instant(disks, "offline")


def _refuse_writers(files: list[str]) -> None:
    for file in files:
        if write_locked(file):
            raise ImageBusy(path=file)


def _add_bitmaps(images: list[DiskInfo], name: str) -> None:
    for image in images:
        if image.holds_bitmaps:
            add_bitmap(image.path, name)
            reached("bitmap_added")


class _Watch:
    """What is known of a stopped domain's images while they are read."""

    def __init__(self, domain: Domain, disks: Mapping[str, NbdDisk], stop: Stop) -> None:
        self._domain = domain
        self._disks = disks
        self._stop = stop
        self._started = threading.Event()
        self._seen: dict[str, Fingerprint] = {}

    def begin(self, files: list[str]) -> None:
        """From now on every change of these files counts."""
        self._seen = fingerprints(files, self._stop.event)
        self._stop.check()

    def changed(self, event: DomainEvent) -> None:
        if event.change == "started":
            self._started.set()
            self.interrupt()

    def interrupt(self) -> None:
        for disk in list(self._disks.values()):
            disk.interrupt()

    def look(self) -> None:
        """Raise DomainStarted, ImageChanged, or HypervisorError if nothing can be learned."""
        if self._started.is_set() or is_active(self._domain):
            raise DomainStarted(domain=self._domain.name)
        for path, seen in list(self._seen.items()):
            if fingerprint(path) != seen:
                raise ImageChanged(domain=self._domain.name, path=path)

    def follow(self, ended: threading.Event) -> None:
        """Look once a second, and interrupt the disks as soon as they are void. For a thread of its own."""
        while not ended.wait(WATCH_SECONDS):
            try:
                self.look()
            except LibvirtUnreachable:  # it is being restarted
                continue
            except HypervisorError:  # the look at the end raises it once more
                self.interrupt()
                return


@contextlib.contextmanager
def _watched(domain: Domain, disks: Mapping[str, NbdDisk], stop: Stop) -> Iterator[_Watch]:
    """Let nothing that was read count if the domain started or an image changed: that leaves the block, not its echo.

    The event tells of a start that ended again at once; the looks tell of what was missed since libvirtd was restarted and
    its events with it.
    """
    watch, ended = _Watch(domain, disks, stop), threading.Event()
    end = domain.connection.watch_domain(domain, watch.changed)
    watcher = threading.Thread(target=partial(watch.follow, ended), name="start-watch", daemon=True)
    watcher.start()
    try:
        yield watch
        watch.look()
    except (
        NbdError,
        HypervisorError,
    ) as error:  # perhaps an echo: a lock of the QEMU that starts, a bitmap in its hands
        wait_settled(domain, stop)
        if not isinstance(error, DomainStarted | ImageChanged):
            watch.look()
        raise
    finally:
        ended.set()
        watcher.join()
        end()
