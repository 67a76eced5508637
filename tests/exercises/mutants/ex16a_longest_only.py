# caught by: test_the_engine_needs_as_few_steps_with_it
"""Looks up runs of the full length only."""


def propose(token_ids, count, longest):
    n = longest
    for start in range(len(token_ids) - n - 1, -1, -1):
        if token_ids[start : start + n] == token_ids[-n:]:
            text = list(token_ids)
            for index in range(start + n, start + n + count):
                text.append(text[index])
            return text[len(token_ids) :]
    return []
