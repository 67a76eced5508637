# caught by: test_the_latest_place_is_copied
"""Takes the first place from the front."""


def propose(token_ids, count, longest):
    for n in range(longest, 0, -1):
        for start in range(len(token_ids) - n):
            if token_ids[start : start + n] == token_ids[-n:]:
                text = list(token_ids)
                for index in range(start + n, start + n + count):
                    text.append(text[index])
                return text[len(token_ids) :]
    return []
