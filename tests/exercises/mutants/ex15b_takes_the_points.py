# caught by: test_between_two_points_the_line_counts
"""Takes point after point out of the caller's list."""


def sustained_rate(points, limit):
    rate, latency = points.pop(0)
    if latency > limit:
        return 0.0
    while points:
        next_rate, next_latency = points.pop(0)
        if next_latency > limit:
            return rate + (next_rate - rate) * (limit - latency) / (next_latency - latency)
        rate, latency = next_rate, next_latency
    return rate
