# caught by: test_the_first_output_token_may_be_the_end
"""Looks for the end from the second output token on."""


def finish_reason(token_ids, num_prompt_tokens, max_tokens, stop_token_ids):
    num_output = len(token_ids) - num_prompt_tokens
    if num_output > 1 and token_ids[-1] in stop_token_ids:
        return "stop"
    return "length" if num_output >= max_tokens else None
