# caught by: test_the_ends_of_the_curve
"""Looks at the lines only: a single point above the limit has none, and its rate is returned."""


def sustained_rate(points, limit):
    rate, latency = points[0]
    for next_rate, next_latency in points[1:]:
        if next_latency > limit:
            return max(0.0, rate + (next_rate - rate) * (limit - latency) / (next_latency - latency))
        rate, latency = next_rate, next_latency
    return rate
