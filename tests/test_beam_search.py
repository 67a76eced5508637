"""Beam search against Hugging Face's, in float32, and what it costs in blocks."""

from itertools import pairwise

import pytest
import torch
from transformers import AutoModelForCausalLM

from minivllm.sampling_params import BeamSearchParams
from minivllm.weights.random_model import random_llama
from tests.helpers import add, make_scheduler, step
from tests.test_engine import prompts_of

EOS = 257  # of the tiny models
PROMPTS = prompts_of([5, 8, 13], seed=9)


@pytest.fixture(scope="module")
def sharp_llama(tmp_path_factory):
    """A model that ends its texts now and then, so that hypotheses finish at different lengths.

    The row of the end-of-sequence token in the output projection is the sum of three other rows.
    """
    from safetensors.torch import load_file, save_file

    folder = random_llama(tmp_path_factory.mktemp("models") / "sharp", seed=2, byte_tokenizer=True)
    weights = load_file(folder / "model.safetensors")
    head = weights["lm_head.weight"]
    head[EOS] = 0.9 * (head[10] + head[20] + head[30])
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def hugging_face(sharp_llama):
    return AutoModelForCausalLM.from_pretrained(sharp_llama, dtype=torch.float32).eval()


def hf_beams(model, prompt, width, max_tokens, **options):
    """(token ids after the prompt, score) of each hypothesis, best first."""
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = model.generate(
            ids, attention_mask=torch.ones_like(ids), num_beams=width, num_return_sequences=width,
            max_new_tokens=max_tokens, do_sample=False, pad_token_id=0, return_dict_in_generate=True,
            output_scores=True, **({"eos_token_id": EOS} | options),
        )  # fmt: skip
    texts = []
    for row in out.sequences[:, len(prompt) :].tolist():
        end = row.index(EOS) + 1 if EOS in row and options.get("eos_token_id", EOS) == EOS else len(row)
        texts.append(row[:end])
    return texts, out.sequences_scores.tolist()


def our_beams(engine, prompts, params):
    for index, prompt in enumerate(prompts):
        engine.add_request(str(index), {"prompt_token_ids": prompt}, params)
    results = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            results[output.request_id] = output
        engine.scheduler.kv.check_invariants()
    return [results[str(index)] for index in range(len(prompts))]


def assert_same_hypotheses(output, texts, scores, length_penalty=1.0):
    """Equal texts with equal scores; where two scores tie within float noise, the order may differ."""
    ours = [c.token_ids for c in output.outputs]
    our_scores = [c.cumulative_logprob / len(c.token_ids) ** length_penalty for c in output.outputs]
    assert our_scores == pytest.approx(scores, abs=2e-4, rel=2e-6)  # theirs are float32 sums
    assert our_scores == sorted(our_scores, reverse=True)
    if ours != texts:
        gaps = [abs(a - b) for a, b in pairwise(scores)]
        assert min(gaps, default=1.0) < 1e-4, f"{ours} != {texts}"
        assert sorted(ours) == sorted(texts)


@pytest.mark.parametrize("width", [1, 2, 3, 5, 8])
def test_beams_equal_hugging_faces(make_engine, sharp_llama, hugging_face, width):
    """Would catch wrong ranking, a wrong parent, or KV that belongs to another beam."""
    engine = make_engine(sharp_llama, num_blocks=128)
    outputs = our_beams(engine, PROMPTS, BeamSearchParams(width, max_tokens=16))
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        if width == 1:  # Hugging Face calls one beam greedy search, and has no scores for it
            ids = torch.tensor([prompt])
            with torch.inference_mode():
                text = hugging_face.generate(ids, attention_mask=torch.ones_like(ids), do_sample=False,
                                             max_new_tokens=16, eos_token_id=EOS, pad_token_id=0)  # fmt: skip
            assert output.outputs[0].token_ids == text[0, len(prompt) :].tolist()
        else:
            assert_same_hypotheses(output, *hf_beams(hugging_face, prompt, width, 16))
        assert len(output.outputs) == width
        assert [completion.index for completion in output.outputs] == list(range(width))
    if width > 1:
        assert engine.stats().num_copied_blocks > 0


@pytest.mark.parametrize("early_stopping", [True, False, "never"])
@pytest.mark.parametrize("length_penalty", [0.0, 1.0, 2.5, -1.0])
def test_length_penalty_and_early_stopping_equal_hugging_faces(
    make_engine, sharp_llama, hugging_face, early_stopping, length_penalty
):
    """Would catch another length in the score (with the prompt, off by one) or another stopping rule."""
    params = BeamSearchParams(3, 20, length_penalty=length_penalty, early_stopping=early_stopping)
    outputs = our_beams(make_engine(sharp_llama, num_blocks=128), PROMPTS, params)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        texts, scores = hf_beams(
            hugging_face, prompt, 3, 20, length_penalty=length_penalty, early_stopping=early_stopping
        )
        assert_same_hypotheses(output, texts, scores, length_penalty)


def test_some_hypotheses_end_early_and_some_do_not(make_engine, sharp_llama):
    """Negative control: the comparisons above see both kinds of finish."""
    outputs = our_beams(make_engine(sharp_llama, num_blocks=128), PROMPTS, BeamSearchParams(4, 16))
    reasons = {c.finish_reason for output in outputs for c in output.outputs}
    assert reasons == {"stop", "length"}


def test_ignore_eos_runs_to_max_tokens(make_engine, sharp_llama, hugging_face):
    """Would catch an end-of-sequence token that still ends a hypothesis."""
    params = BeamSearchParams(3, 12, ignore_eos=True)
    outputs = our_beams(make_engine(sharp_llama, num_blocks=128), PROMPTS, params)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        assert_same_hypotheses(output, *hf_beams(hugging_face, prompt, 3, 12, eos_token_id=None))
        assert {c.finish_reason for c in output.outputs} == {"length"}


@pytest.mark.parametrize("options", [
    {"num_blocks": 20}, {"num_blocks": 20, "enable_prefix_caching": False},
    {"num_blocks": 20, "preemption_mode": "swap", "swap_space_bytes": 1 << 20},
    {"num_blocks": 40, "max_num_batched_tokens": 6, "max_num_seqs": 6},
], ids=["recompute", "no-cache", "swap", "chunked"])  # fmt: skip
def test_preemption_and_chunking_do_not_change_the_beams(make_engine, sharp_llama, options):
    """Would catch beams that get out of step with each other, or come back with another beam's tokens."""
    params = BeamSearchParams(3, 16)
    want = our_beams(make_engine(sharp_llama, num_blocks=128), PROMPTS, params)
    engine = make_engine(sharp_llama, **options)
    got = our_beams(engine, PROMPTS, params)
    assert [[c.token_ids for c in o.outputs] for o in got] == [[c.token_ids for c in o.outputs] for o in want]
    assert options["num_blocks"] == 40 or engine.stats().num_preemptions > 0


def test_each_token_of_each_beam_is_counted_as_generated(make_engine, sharp_llama):
    """Would catch a throughput of 0 tokens per second while beams grow."""
    engine = make_engine(sharp_llama, num_blocks=128)
    our_beams(engine, PROMPTS[:1], BeamSearchParams(3, 12, ignore_eos=True))
    # The first step has one beam, which offers candidates for three; each later one extends all three.
    assert engine.scheduler.stats.num_generated_tokens == 1 + 3 * 11


def test_width_w_never_holds_more_than_w_tables():
    """Would catch beams that are replaced but not freed."""
    scheduler = make_scheduler(num_blocks=64)
    group = add(scheduler, "beams", 9, beam_width=4, max_tokens=20)
    while scheduler.has_unfinished:
        step(scheduler)
        assert len(scheduler.kv.block_tables) <= 4
    assert len(group.seqs) == 4
    assert scheduler.kv.pool.num_used == 0
    assert scheduler.stats.num_copied_blocks > 0
