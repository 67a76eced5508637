"""Speculative decoding: guess the next tokens cheaply, check all guesses in one step of the model.

A decode step reads every weight of the model to compute one token per sequence. Five tokens take hardly
longer, as the same weights serve all five; only, four of them are not known yet. So they are guessed: the
guesses are called *drafts*. The step computes them like any other tokens, and its logits say which were
right::

    known          ... the cat sat on the          the newest token has no K and V yet
    drafts                              | mat and the dog
    computed        [ the | mat | and | the | dog ]       one step, 5 positions
    sampled           mat   and   so    -     -           what the model says after each position
    accepted          mat   and   so                      two drafts, and one token of the model's own

Nothing new is needed to take a guess back. The invariant of `scheduler.py` speaks of positions [0,
num_computed_tokens): after the step this number grows by what was accepted, and what a rejected draft left
in the KV cache lies behind it, where the next step writes. There is no state of "being speculated".

======================  ============================================================================
`config.py`             what `speculative_config={...}` may say
`ngram.py`              guess by looking the last tokens up in the text so far
`draft_model.py`        guess by a smaller model
`speculator.py`         how many drafts a row of the plan gets, and who gets none for a while
`verification.py`       which drafts are accepted
`rejection.py`          the rule of the paper, and why the engine's rule is a case of it
======================  ============================================================================

Paper: Leviathan, Kalman, Matias, "Fast Inference from Transformers via Speculative Decoding", arXiv
2211.17192.
vLLM V1: `vllm/v1/spec_decode/`, `vllm/v1/sample/rejection_sampler.py`.
"""
