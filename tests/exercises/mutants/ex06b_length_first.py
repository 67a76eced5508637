# caught by: test_a_stop_token_at_the_very_end_is_a_stop
"""Asks for the length first: a complete answer is reported as cut."""


def finish_reason(token_ids, num_prompt_tokens, max_tokens, stop_token_ids):
    if len(token_ids) - num_prompt_tokens >= max_tokens:
        return "length"
    return "stop" if token_ids[-1] in stop_token_ids else None
