# caught by: test_a_stop_token_in_the_prompt_ends_nothing
"""Finds a stop token anywhere, in the prompt too."""


def finish_reason(token_ids, num_prompt_tokens, max_tokens, stop_token_ids):
    if stop_token_ids & set(token_ids):
        return "stop"
    return "length" if len(token_ids) - num_prompt_tokens >= max_tokens else None
