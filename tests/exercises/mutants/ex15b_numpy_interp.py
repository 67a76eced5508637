# caught by: test_the_first_crossing_counts
"""numpy.interp looks the limit up among the latencies by halving: right only where they never fall."""

import numpy as np


def sustained_rate(points, limit):
    rates, latencies = zip(*points, strict=True)
    if latencies[0] > limit:
        return 0.0
    return float(np.interp(limit, latencies, rates))
