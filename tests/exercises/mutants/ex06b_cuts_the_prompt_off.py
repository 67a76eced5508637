# caught by: test_the_first_output_token_may_be_the_end
"""Deletes the prompt from the list, to count the rest."""

def finish_reason(token_ids, num_prompt_tokens, max_tokens, stop_token_ids):
    del token_ids[:num_prompt_tokens]
    if token_ids[-1] in stop_token_ids:
        return "stop"
    return "length" if len(token_ids) == max_tokens else None
