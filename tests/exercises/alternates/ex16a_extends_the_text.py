"""Appends to a copy of the text, and looks up places with a comprehension."""


def propose(token_ids, count, longest):
    text = list(token_ids)
    for n in range(min(longest, len(text) - 1), 0, -1):
        places = [start for start in range(len(text) - n) if text[start : start + n] == text[len(text) - n :]]
        if places:
            distance = len(text) - n - places[-1]
            for _ in range(count):
                text.append(text[-distance])
            return tuple(text[len(token_ids) :])
    return []
