# caught by: test_the_longest_run_decides
"""Searches in two bytes for each token: ids that agree in 16 bits are taken for one."""

from array import array


def propose(token_ids, count, longest):
    short = array("H", [token % 65_536 for token in token_ids])
    for n in range(longest, 0, -1):
        for start in range(len(token_ids) - n - 1, -1, -1):
            if short[start : start + n] == short[-n:]:
                text = list(token_ids)
                for index in range(start + n, start + n + count):
                    text.append(text[index])
                return text[len(token_ids) :]
    return []
