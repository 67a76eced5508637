# caught by: test_the_ends_of_the_curve
"""Draws the first line on to the left of a curve that begins above the limit: a negative rate."""


def sustained_rate(points, limit):
    rate, latency = points[0]
    for next_rate, next_latency in points[1:]:
        if next_latency > limit:
            return rate + (next_rate - rate) * (limit - latency) / (next_latency - latency)
        rate, latency = next_rate, next_latency
    return rate
