# caught by: test_the_first_output_token_may_be_the_end
"""`pop` to look at the newest token: it is gone from the text."""


def finish_reason(token_ids, num_prompt_tokens, max_tokens, stop_token_ids):
    newest = token_ids.pop()
    if newest in stop_token_ids:
        return "stop"
    return "length" if len(token_ids) + 1 - num_prompt_tokens >= max_tokens else None
