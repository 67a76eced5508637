# caught by: test_max_tokens_counts_output_only
"""Lets the sequence grow one token too far."""


def finish_reason(token_ids, num_prompt_tokens, max_tokens, stop_token_ids):
    if token_ids[-1] in stop_token_ids:
        return "stop"
    return "length" if len(token_ids) - num_prompt_tokens > max_tokens else None
