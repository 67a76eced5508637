"""Chapter 15: the paper's figures.

The two halves of every serving figure: how long a step takes, and what to read off the curve.

Replace each `raise NotImplementedError(...)`. Check with   python -m minivllm.course check ex15a
or, in the notebook, with   %check ex15a.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """What a chip reaches, and a model on it.

    bandwidth     bytes per second from memory
    flops         operations per second
    parameters    of the model; each takes 2 bytes and 2 operations per row
    kv_bytes      of the keys and values of one token
    host_seconds  per step, whatever is in it
    """

    bandwidth: float
    flops: float
    parameters: float
    kv_bytes: float
    host_seconds: float


def step_seconds(machine: Machine, rows: int, kv_tokens: int) -> float:
    """ex15a. The roofline: how long one step takes.

    A step reads all parameters once, whatever the number of rows. It multiplies every row by every parameter. Reading
    and multiplying go on at the same time, so of these two only the longer counts. On top of it come the keys and
    values of `kv_tokens` tokens, which have to be read from the same memory, and the time of the host.

    Example, with bandwidth 100, flops 1000, parameters 50, kv_bytes 4, host_seconds 0.5: the parameters are 100 bytes,
    so reading takes 1 s. 5 rows are 500 operations, 0.5 s, hidden behind it; 20 rows take 2 s and hide the reading.
    step_seconds(machine, 5, 25) == 1 + 1 + 0.5, and step_seconds(machine, 20, 25) == 2 + 1 + 0.5.

    Args:
        machine: see above.
        rows: tokens computed in this step, at least 1.
        kv_tokens: tokens whose keys and values are read, 0 or more.

    Returns:
        Seconds.
    """
    raise NotImplementedError("ex15a")


def sustained_rate(points: list[tuple[float, float]], limit: float) -> float:
    """ex15b. Read a figure like the paper's 12: which request rate keeps the latency at `limit`?

    The points are joined by straight lines. Go along the curve from the left: the answer is the rate at which it
    first rises above the limit. (Where it only touches the limit and falls again, it has not risen above it.) A curve
    that stays at or below it to its end sustains the last rate that was measured; more cannot be said. A curve that
    begins above it sustains no rate: 0.0.

    Example: points [(1, 0.2), (2, 0.3), (3, 1.3)]. With limit 0.8 the answer is 2.5, half way up the last line. With
    limit 2 it is 3, with limit 0.1 it is 0.0.

    Args:
        points: (requests per second, latency), at least one, by increasing rate. Latency may fall in between. Not
            changed.
        limit: in the unit of the latencies.

    Returns:
        Requests per second.
    """
    raise NotImplementedError("ex15b")
