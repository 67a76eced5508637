# caught by: test_without_a_repetition_nothing_is_guessed
"""Finds the end of the text at the end of the text, and repeats its last token."""


def propose(token_ids, count, longest):
    for n in range(min(longest, len(token_ids)), 0, -1):
        for start in range(len(token_ids) - n, -1, -1):
            if token_ids[start : start + n] == token_ids[-n:]:
                text = list(token_ids)
                for index in range(start + n, start + n + count):
                    text.append(text[index] if index < len(text) else text[-1])
                return text[len(token_ids) :]
    return []
