"""Logging, set up once: a time, a level, a file of ours, a fixed sentence, and facts as key=value.

Lines that belong to a job carry its id, wherever they are logged: whoever works for a job sets JOB_ID.
"""

import logging
import sys
import time
from contextvars import ContextVar

JOB_ID: ContextVar[str] = ContextVar("job_id", default="")
_FORMAT = "%(asctime)s.%(msecs)03dZ %(levelname)s %(name)s: %(message)s%(job)s"


class _JobFilter(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        job_id = JOB_ID.get()
        record.job = f" job_id={job_id}" if job_id and "job_id=" not in record.getMessage() else ""
        return True


def setup(level: str) -> None:
    """Log to standard error from `level` on ("debug", "info", …), in UTC. Libraries speak from WARNING on."""
    handler = logging.StreamHandler(sys.stderr)
    formatter = logging.Formatter(_FORMAT, "%Y-%m-%dT%H:%M:%S")
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    handler.addFilter(_JobFilter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("controller", "engine"):
        logging.getLogger(name).setLevel(level.upper())
