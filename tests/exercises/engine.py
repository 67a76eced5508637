"""The engine around the student's part: a tiny random model, a few prompts, the text they give.

Greedy text of a random Llama depends on its whole past, so one token in a wrong slot shows in the text.
"""

import pytest

BLOCK_SIZE = 4
# Lengths around the block size: one short of a block, exactly one and two blocks, one more.
PROMPTS = [
    [7, 3, 200, 41, 19, 88],
    [5],
    [9, 8, 7, 6],
    [1, 2, 3, 4, 5, 6, 7, 8],
    [250, 60, 61],
    list(range(30, 47)),
]
MAX_STEPS = 500  # the engine's own parts take less than 100


def make_llm(model, **options):
    """An `LLM` on token ids, with the given parts."""
    from minivllm import LLM

    defaults = {
        "num_blocks": 64,
        "block_size": BLOCK_SIZE,
        "max_model_len": 64,
        "enable_prefix_caching": False,
    }
    return LLM(str(model), skip_tokenizer_init=True, **(defaults | options))


def generate(model, prompts=PROMPTS, max_tokens=11, prepare=None, **options):
    """Greedy token ids for each prompt, from an engine with the given parts; its blocks must all come back.

    `prepare` may change the model before it runs.
    """
    from minivllm import SamplingParams

    engine = make_llm(model, **options).llm_engine
    if prepare is not None:
        prepare(engine.runner.model.model)
    max_tokens = [max_tokens] * len(prompts) if isinstance(max_tokens, int) else max_tokens
    for index, prompt in enumerate(prompts):
        params = SamplingParams(temperature=0.0, max_tokens=max_tokens[index], ignore_eos=True)
        engine.add_request(str(index), {"prompt_token_ids": prompt}, params)
    texts = {}
    for _ in range(MAX_STEPS):
        for output in engine.step():
            texts[output.request_id] = list(output.outputs[0].token_ids)
        if not engine.has_unfinished_requests():
            break
    else:
        pytest.fail(f"the engine has not finished after {MAX_STEPS} steps: it waits for something that never comes",
                    pytrace=False)  # fmt: skip
    kv = engine.scheduler.kv
    kv.check_invariants()
    if kv.pool.num_used:
        pytest.fail(f"{kv.pool.num_used} blocks were never given back to the engine", pytrace=False)
    return [texts[str(index)] for index in range(len(prompts))]
