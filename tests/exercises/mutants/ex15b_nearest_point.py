# caught by: test_between_two_points_the_line_counts
"""The last measured rate below the limit."""


def sustained_rate(points, limit):
    best = 0.0
    for rate, latency in points:
        if latency > limit:
            break
        best = rate
    return best
