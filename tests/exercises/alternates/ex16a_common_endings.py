"""For each earlier place: how many tokens before it agree with the end of the text? The most decide, then the latest."""


def propose(token_ids, count, longest):
    def agreeing(end):
        pairs = zip(reversed(token_ids[:end]), reversed(token_ids), strict=False)
        return next((n for n, (a, b) in enumerate(pairs) if a != b or n == longest), min(end, longest))

    best = max(range(1, len(token_ids)), key=lambda end: (agreeing(end), end), default=None)
    if best is None or agreeing(best) == 0:
        return []
    copied = token_ids[best:]
    return [copied[i % len(copied)] for i in range(count)]
