# caught by: test_the_first_crossing_counts
"""`>=`: a latency that only touches the limit, and falls again, ends the curve."""


def sustained_rate(points, limit):
    rate, latency = points[0]
    if latency > limit:
        return 0.0
    for next_rate, next_latency in points[1:]:
        if next_latency >= limit > latency:
            return rate + (next_rate - rate) * (limit - latency) / (next_latency - latency)
        if next_latency > limit:
            return rate
        rate, latency = next_rate, next_latency
    return rate
