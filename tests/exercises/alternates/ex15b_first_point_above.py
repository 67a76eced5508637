"""Looks for the first point above the limit, then reads the line before it."""


def sustained_rate(points, limit):
    above = next((i for i, (_, latency) in enumerate(points) if latency > limit), None)
    if above is None:
        return points[-1][0]
    if above == 0:
        return 0.0
    (x0, y0), (x1, y1) = points[above - 1], points[above]
    share = (limit - y0) / (y1 - y0)
    return x0 * (1 - share) + x1 * share
