"""What the clock does for servers: those that were busy when their hypervisor lost them move once they are idle (N1), and portal
tokens that ended long ago are forgotten.
"""

from controller import claims
from controller.cycle.tick import Round
from controller.security import tokens


async def step(around: Round) -> None:
    """Do a round."""
    await around.database.run(claims.settle_all, around.now)
    await around.database.run(tokens.forget_expired, around.now)
