# caught by: test_the_copy_runs_into_itself
"""Copies what the text has, and no more."""


def propose(token_ids, count, longest):
    for n in range(longest, 0, -1):
        for start in range(len(token_ids) - n - 1, -1, -1):
            if token_ids[start : start + n] == token_ids[-n:]:
                return token_ids[start + n : start + n + count]
    return []
