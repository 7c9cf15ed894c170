"""An engine process as `engine.worker`, but with segments of 4 MiB, so that a small disk has many.

python -m tests.engine.small_segments < spec
"""

from functools import partial

from engine import pipeline
from engine.units import MIB

pipeline.store = partial(pipeline.store, segment_bytes_max=4 * MIB)

if __name__ == "__main__":
    from engine.worker import main

    main()
