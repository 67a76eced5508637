"""`warm_up`: no kernel is compiled in the middle of a request. The kernels are compiled for an H100 and not run."""

import json
import os
import subprocess
import sys

import torch

from minivllm.aot.warm_up import decode_steps, powers_of_two, prefill_steps, warm_up
from minivllm.backends.cuda_graphs import LARGEST_BUCKET, bucket_sizes
from minivllm.kernels.heuristics import Chip, choose_num_splits, prefill_tiles
from minivllm.weights.random_model import random_llama
from tests.kernels.test_kernel_aot import NOTE_HASHES

H100 = Chip(capability=90, num_sms=132)
# Prints how many kernels are compiled by the warm-up, how many more by the requests after it, and how many these
# use. The kernels compute nothing, so the tokens are whatever lay in memory.
COUNT = (
    NOTE_HASHES
    + """
import json, sys
from minivllm import LLM, SamplingParams
from minivllm.aot.warm_up import warm_up

llm = LLM(sys.argv[1], attention_backend="triton", device="cpu", max_num_seqs=6, max_num_batched_tokens=400, num_blocks=300,
          max_model_len=512, skip_tokenizer_init=True, speculative_config=json.loads(sys.argv[2]))
warm_up(llm.llm_engine)
warm = set(hashes)
hashes.clear()
prompts = [{"prompt_token_ids": [5] * length} for length in (1, 3, 390, 40, 7, 200, 1, 1)]
params = [SamplingParams(temperature=0, max_tokens=n, ignore_eos=True, detokenize=False)
          for n in (9, 2, 4, 12, 2, 30, 1, 20)]
llm.generate(prompts, params, use_tqdm=False)
print(len(warm), len(hashes - warm), len(hashes))
"""
)


def count(folder, speculation=None):
    """(kernels compiled before the requests, compiled by them, used by them); perhaps with drafts."""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-c", COUNT, str(folder), json.dumps(speculation)]
    run = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert run.returncode == 0, run.stderr
    return tuple(map(int, run.stdout.split()))


def test_after_the_warm_up_requests_compile_nothing(tiny_llama):
    """Would catch a variant that the warm-up does not know: some request waits for it, for seconds."""
    num_warm, num_more, num_used = count(tiny_llama)
    assert num_warm > 8 and num_more == 0
    assert num_used >= 7  # the control: they use kernels, and of several kinds


def test_a_draft_models_kernels_are_compiled_by_requests_as_the_docstring_says(tiny_llama, tmp_path):
    """Would catch a docstring that promises a warm draft model, or still excepts one that is warmed up by now."""
    draft = random_llama(tmp_path / "draft", hidden_size=96, head_dim=32, byte_tokenizer=True)
    speculation = {"method": "draft_model", "model": str(draft), "num_speculative_tokens": 2}
    _, num_more, _ = count(tiny_llama, speculation)
    says = "kernels of a draft model" in " ".join(sys.modules[warm_up.__module__].__doc__.split())
    assert (num_more > 0) == says


def test_a_batch_beyond_the_recordings_may_need_splits_they_lack_as_the_docstring_says():
    """Would catch an exception that is none, or another number of sequences than the largest recording's."""
    # One KV head: a program for each sequence.
    recorded = {choose_num_splits(H100, size, 4096) for size in bucket_sizes(1024)}
    assert not {choose_num_splits(H100, num_seqs, 4096) for num_seqs in (300, 1024)} <= recorded
    assert f"more sequences than are recorded ({LARGEST_BUCKET})" in sys.modules[warm_up.__module__].__doc__


def test_every_kind_of_prefill_step_within_the_limits_is_met():
    """Would catch limits under which a choice of tiles or lanes is left to a request."""

    def kind(num_seqs, num_tokens):
        lanes = max(64, 1 << (num_seqs - 1).bit_length())
        return prefill_tiles(H100, 128, 2, num_tokens / num_seqs), lanes

    for max_num_seqs, max_tokens in ((64, 2048), (256, 2048), (200, 210), (3, 4096), (1, 2)):
        met = {kind(r, tokens) for r, tokens, _ in prefill_steps(max_num_seqs, max_tokens, 16)}
        tokens = {r: range(r + 1, max_tokens + 1) for r in range(1, max_num_seqs + 1)}
        assert {kind(r, t) for r in tokens for t in tokens[r][:: 1 + len(tokens[r]) // 40]} <= met


def test_every_number_of_splits_within_the_limits_is_met():
    """Would catch a number of splits that is left to a request."""

    def splits(num_seqs, width):
        return choose_num_splits(H100, num_seqs * 8, width * 16)

    for max_num_seqs, max_width in ((64, 512), (7, 100), (1, 1)):
        met = {splits(num_seqs, width) for num_seqs, _, width in decode_steps(max_num_seqs, max_width)}
        possible = {splits(r, w) for r in range(1, max_num_seqs + 1) for w in range(1, max_width + 1)}
        assert possible == met
    assert powers_of_two(20) == [1, 2, 4, 8, 16, 20] and powers_of_two(16) == [1, 2, 4, 8, 16]


def test_the_warm_up_changes_no_kv_and_needs_the_triton_backend(make_engine):
    """Would catch a warm-up that writes: its tokens would be found in the prefix cache of others."""
    assert warm_up(make_engine(attention_backend="torch")) == 0
    engine = make_engine(
        attention_backend="triton",
        enforce_eager=True,
        max_num_seqs=1,
        max_num_batched_tokens=8,
        max_model_len=4,
    )
    cache = engine.runner.kv_cache
    for tensor in (*cache.key, *cache.value):
        tensor.normal_()
    before = [tensor.clone() for tensor in (*cache.key, *cache.value)]
    assert warm_up(engine) == 2 + 1  # prefills of 2 and 5 tokens, and one kind of decode
    assert all(map(torch.equal, before, (*cache.key, *cache.value)))
