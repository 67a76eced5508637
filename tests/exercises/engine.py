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
# What the real model is asked to continue: `python -m minivllm.course show ex04b`.
SENTENCES = [
    "The capital of France is",
    "Once upon a time",
    "One, two, three, four,",
    "The opposite of hot is",
    "Water boils at",
    "The sun rises in the east and sets in the",
]
MAX_STEPS = 500  # the engine's own parts take less than 100


def tokenizer_of(model):
    """The tokenizer of the real model; None for the tiny one, which has none."""
    if not (model / "tokenizer.json").exists():
        return None
    from minivllm.weights.loader import load_tokenizer

    return load_tokenizer(model)


def default_prompts(model):
    """`PROMPTS`; for the real model `SENTENCES`, in its tokens."""
    tokenizer = tokenizer_of(model)
    return PROMPTS if tokenizer is None else [tokenizer.encode(sentence) for sentence in SENTENCES]


def make_llm(model, **options):
    """An `LLM` on token ids, with the given parts."""
    from minivllm import LLM

    defaults = {
        "num_blocks": 64,
        "block_size": BLOCK_SIZE,
        "max_model_len": 64,
        "enable_prefix_caching": False,
        # Not "auto", which would import Numba, longer than all these tests take.
        "attention_backend": "torch",
    }
    return LLM(str(model), skip_tokenizer_init=True, **(defaults | options))


_REMEMBERED = {}


def remembered(name, make):
    """`make()`, done once per run: what answers are compared with is the same for all answers.

    Ask before the code under test is in its place. `name` is whatever tells it from others, the model included.
    """
    if name not in _REMEMBERED:
        _REMEMBERED[name] = make()
    return _REMEMBERED[name]


def print_texts(model, prompts, texts):
    """Print each prompt and what follows it; nothing for the tiny model, which has no words."""
    if (tokenizer := tokenizer_of(model)) is not None:
        for prompt, text in zip(prompts, texts, strict=True):
            print(tokenizer.decode(prompt) + " ->" + tokenizer.decode(text).replace("\n", "\\n"))


def generate(model, prompts=None, max_tokens=11, prepare=None, **options):
    """Greedy token ids for each prompt, from an engine with the given parts; its blocks must all come back.

    `prepare` may change the model before it runs. What the real model writes is printed, too.
    """
    from minivllm import SamplingParams

    prompts = default_prompts(model) if prompts is None else prompts
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
    got = [texts[str(index)] for index in range(len(prompts))]
    print_texts(model, prompts, got)
    return got
