# caught by: test_the_longest_run_decides
"""Searches in the tokens as text: "1 3" is found in "21 3"."""


def propose(token_ids, count, longest):
    known = " ".join(map(str, token_ids[:-1]))
    for n in range(min(longest, len(token_ids) - 1), 0, -1):
        wanted = " ".join(map(str, token_ids[-n:]))
        place = known.rfind(wanted)
        if place >= 0:
            follows = [*known[place + len(wanted) :].split(), str(token_ids[-1])]
            return [int(follows[i % len(follows)]) for i in range(count)]
    return []
