"""How much longer a run takes when machines are taken away at random. Pure arithmetic.

Interruptions arrive at a constant rate; each loses the work since the last checkpoint and the time
to begin again. Knows no prices.
"""

from __future__ import annotations

import math

# Of spot machines, reclaimed within a month: the band that AWS's Spot Instance Advisor shows for
# much of its accelerated hardware, above 20%. Nobody publishes the rate of an hour.
RECLAIMED_A_MONTH = 0.2
HOURS_A_MONTH = 730.5
# Seconds until a replacement trains: booting and setting up (assumed), Ray's start (measured).
RESTART_SECONDS = 300.0 + 15.0
CHECKPOINT_SECONDS = 10.0  # that training stands still for a checkpoint, at most (assumed)


def mean_seconds_between(num_nodes: int, reclaimed_a_month: float = RECLAIMED_A_MONTH) -> float:
    """Mean seconds between interruptions of any of `num_nodes` machines."""
    an_hour = -math.log1p(-reclaimed_a_month) / HOURS_A_MONTH
    return 3600 / (an_hour * num_nodes)


def expected_seconds(seconds: float, num_nodes: int) -> float:
    """Expected wall time of `seconds` of work on spot machines.

    E = M e^(R/M) (e^((t + d)/M) - 1) T / t for failures with mean time M between them, restart R,
    checkpoints that take d every t seconds (Daly 2006, "A higher order estimate of the optimum
    checkpoint interval", eq. 20 without its approximations); t = sqrt(2 d M) (Young 1974).
    """
    mean = mean_seconds_between(num_nodes)
    interval = min(seconds, math.sqrt(2 * CHECKPOINT_SECONDS * mean))
    growth = math.expm1((interval + CHECKPOINT_SECONDS) / mean)
    return mean * math.exp(RESTART_SECONDS / mean) * growth * seconds / interval
