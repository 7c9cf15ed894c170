"""What every group of figures gets: a folder, the number of rounds, and the disks, made when the first group asks."""

import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from tests.bench import aged as aged_disk
from tests.bench import disk as usual_disk
from tests.bench.disk import BenchDisk
from tests.bench.rounds import progress


@dataclass
class Bench:
    """`folder` is gone after the benchmark; whatever is written lies in it, so that everybody has the same file system."""

    folder: Path
    rounds: int
    part: int = 1  # the disks are so many times smaller: for trying the benchmark out

    @cached_property
    def disk(self) -> BenchDisk:
        """The usual disk."""
        progress("making the disk")
        return usual_disk.make(self.scratch("disk"), self.part)

    @cached_property
    def aged(self) -> BenchDisk:
        """The same bytes on a disk that has been written here and there for years."""
        progress("making the aged disk")
        return aged_disk.make(self.scratch("aged"), self.disk, self.part)

    def scratch(self, name: str) -> Path:
        """Return a new folder."""
        return Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.folder))
