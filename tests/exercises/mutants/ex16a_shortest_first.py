# caught by: test_the_longest_run_decides
"""Begins with single tokens, which nearly always have an earlier place."""


def propose(token_ids, count, longest):
    for n in range(1, longest + 1):
        for start in range(len(token_ids) - n - 1, -1, -1):
            if token_ids[start : start + n] == token_ids[-n:]:
                text = list(token_ids)
                for index in range(start + n, start + n + count):
                    text.append(text[index])
                return text[len(token_ids) :]
    return []
