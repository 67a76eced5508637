"""Deals out with a helper that knows what is left; returns lists in place of tuples."""


def next_chunks(running, waiting, token_budget):
    def deal(requests):
        left = token_budget
        for tokens, computed in requests:
            if left < 1:
                return
            target = min(tokens, computed + left)
            left -= target - computed
            yield [target - computed, target == tokens]

    return list(deal([*running, *[(tokens, 0) for tokens in waiting]]))
