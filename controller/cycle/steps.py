"""What each round of the cycle does, in this order. A new step is one line here, and a file beside this one."""

from controller.cycle import (
    batch_dispatch,
    dispatch,
    health,
    housekeeping,
    places,
    presence,
    prune,
    purge,
    reconcile,
    stale,
)
from controller.cycle.tick import Step

STEPS: tuple[Step, ...] = (
    Step("stale", stale.step),
    Step("schedules", batch_dispatch.step),
    Step("queue", dispatch.step),
    Step("prune", prune.step),
    Step("purge", purge.step),
    Step("presence", presence.step),
    Step("health", health.step),
    Step("reconcile", reconcile.step),
    Step("housekeeping", housekeeping.step),
    Step("places", places.step),
)
