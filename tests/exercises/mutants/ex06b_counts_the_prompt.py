# caught by: test_max_tokens_counts_output_only
"""Compares max_tokens with the whole length."""


def finish_reason(token_ids, num_prompt_tokens, max_tokens, stop_token_ids):
    if token_ids[-1] in stop_token_ids:
        return "stop"
    return "length" if len(token_ids) >= max_tokens else None
