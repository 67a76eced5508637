"""Cuts the output off first."""


def finish_reason(token_ids, num_prompt_tokens, max_tokens, stop_token_ids):
    output = token_ids[num_prompt_tokens:]
    ends = [("stop", output[-1] in stop_token_ids), ("length", len(output) == max_tokens)]
    return next((reason for reason, holds in ends if holds), None)
