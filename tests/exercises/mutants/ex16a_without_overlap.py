# caught by: test_any_text_of_few_tokens
"""Takes no place that overlaps the end of the text."""


def propose(token_ids, count, longest):
    for n in range(longest, 0, -1):
        for start in range(len(token_ids) - 2 * n, -1, -1):
            if token_ids[start : start + n] == token_ids[-n:]:
                text = list(token_ids)
                for index in range(start + n, start + n + count):
                    text.append(text[index])
                return text[len(token_ids) :]
    return []
