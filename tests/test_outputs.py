"""What a request gets back, through the whole engine: log-probabilities, stop strings, streams, aborts.

Numbers are checked against Hugging Face on a tiny random Llama. Texts are scripted: a sampler that ignores the
logits writes what the test wants to see, so that every cut, stop and hold-back is known beforehand.
"""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

from minivllm import LLM, RequestOutputKind, SamplingParams
from minivllm.outputs import SequenceOutput
from minivllm.weights.random_model import byte_symbols, random_llama

EOS = 257
KINDS = list(RequestOutputKind)
CUMULATIVE, DELTA, FINAL_ONLY = KINDS
PROMPTS = [
    list(b"The sky is"),
    list(b"a"),
    list(b"abcdefghijklmnopq"),
    list(b"12345678"),
    list(b"The sky was"),
]


@pytest.fixture(scope="module")
def hugging_face(tiny_llama):
    return AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32).eval()


def run(engine, prompts, params, prefix=""):
    """All outputs of each request, in the order they came. One prompt: its list alone."""
    single = isinstance(params, SamplingParams) and not isinstance(prompts[0], list)
    prompts = [prompts] if single else prompts
    for index, prompt in enumerate(prompts):
        each = params[index] if isinstance(params, list) else params
        engine.add_request(f"{prefix}{index}", {"prompt_token_ids": list(prompt)}, each)
    outputs = {f"{prefix}{index}": [] for index in range(len(prompts))}
    while engine.has_unfinished_requests():
        for output in engine.step():
            outputs[output.request_id].append(output)
    return outputs[f"{prefix}0"] if single else list(outputs.values())


# -- log-probabilities ------------------------------------------------------------------------------

# Each way through the scheduler may lose, repeat or shift an entry.
WAYS = {
    "plain": {},
    "chunked": {"max_num_batched_tokens": 7, "max_num_seqs": 5},
    "recompute": {"num_blocks": 11, "enable_prefix_caching": False},
    "recompute, cached": {"num_blocks": 11},
    "recompute, chunked": {"num_blocks": 11, "max_num_batched_tokens": 6, "max_num_seqs": 5},
    "swap": {"num_blocks": 11, "preemption_mode": "swap", "swap_space_bytes": 1 << 20},
}


def hf_logprobs(model, token_ids):
    """(T - 1, V): what the model says about tokens 1, 2, ... of the text."""
    with torch.inference_mode():
        return model(torch.tensor([token_ids])).logits[0, :-1].log_softmax(dim=-1)


def assert_logprobs(entries, token_ids, expected, k):
    """One dictionary per token: the token itself and the k likeliest, with values, ranks and words."""
    assert len(entries) == len(token_ids) == len(expected)
    for entry, token, logprobs in zip(entries, token_ids, expected, strict=True):
        likeliest = logprobs.topk(k).indices.tolist()
        assert set(entry) == {token, *likeliest}
        assert len(entry) in (k, k + 1)
        for other, logprob in entry.items():
            assert logprob.logprob == pytest.approx(logprobs[other].item(), abs=1e-4)
            assert logprob.rank == (logprobs > logprobs[other]).sum().item() + 1
            if other < 128:
                assert logprob.decoded_token == chr(other)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_logprobs_are_hugging_faces_however_the_request_was_scheduled(
    make_engine, hugging_face, way, temperature
):
    """Would catch entries doubled by a preemption, shifted by a chunk, or taken after the temperature."""
    engine = make_engine(**WAYS[way])
    params = SamplingParams(
        temperature=temperature, seed=7, max_tokens=12, ignore_eos=True, logprobs=4, prompt_logprobs=3
    )
    for _ in range(2):  # the second time the prompts are in the prefix cache
        for prompt, outputs in zip(PROMPTS, run(engine, PROMPTS, params), strict=True):
            output, completion = outputs[-1], outputs[-1].outputs[0]
            expected = hf_logprobs(hugging_face, prompt + completion.token_ids)
            start = len(prompt) - 1
            assert_logprobs(completion.logprobs, completion.token_ids, expected[start:], k=4)
            assert output.prompt_logprobs[0] is None
            assert_logprobs(output.prompt_logprobs[1:], prompt[1:], expected[:start], k=3)
            own = [
                entry[token].logprob
                for entry, token in zip(completion.logprobs, completion.token_ids, strict=True)
            ]
            assert completion.cumulative_logprob == pytest.approx(sum(own), abs=1e-5)
            # Negative controls: one position off, and zeros.
            for wrong in (expected[start:].roll(1, 0), torch.zeros_like(expected[start:])):
                with pytest.raises(AssertionError):
                    assert_logprobs(completion.logprobs, completion.token_ids, wrong, k=4)
    assert (engine.stats().num_preemptions > 0) == ("num_blocks" in WAYS[way])


def test_prompt_logprobs_do_not_come_from_the_prefix_cache(make_engine, hugging_face):
    """Would catch a cached prefix, whose logits are not computed, leaving a hole in the list."""
    engine = make_engine()
    prompt = list(b"a prompt of several blocks")
    cached = run(engine, [prompt, prompt], SamplingParams(temperature=0, max_tokens=2), "a")
    (output,) = run(engine, [prompt], SamplingParams(temperature=0, max_tokens=2), "b")[0][-1:]
    assert output.num_cached_tokens == 24
    assert output.prompt_logprobs is None
    params = SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=0)
    (output,) = run(engine, [prompt], params, "c")[0][-1:]
    assert output.num_cached_tokens == 0
    assert len(output.prompt_logprobs) == len(prompt)
    assert [len(entry) for entry in output.prompt_logprobs[1:]] == [1] * (len(prompt) - 1)
    assert output.outputs[0].token_ids == cached[0][-1].outputs[0].token_ids


def test_logprobs_of_the_whole_vocabulary_and_of_none(make_engine):
    """Would catch -1 read as a count, 0 read as "not asked", and None that still costs a list."""
    engine = make_engine(max_logprobs=258)
    wishes = {-1: 258, 0: 1, 2: 2, None: None}
    params = [
        SamplingParams(temperature=0, max_tokens=3, ignore_eos=True, logprobs=k, prompt_logprobs=k)
        for k in wishes
    ]
    for (k, size), outputs in zip(wishes.items(), run(engine, [list(b"sky")] * 4, params), strict=True):
        output, completion = outputs[-1], outputs[-1].outputs[0]
        if k is None:
            assert completion.logprobs is completion.cumulative_logprob is output.prompt_logprobs is None
            continue
        assert [len(entry) for entry in completion.logprobs] == [
            size
        ] * 3  # greedy: the token is the likeliest
        ranks = [
            entry[token].rank for entry, token in zip(completion.logprobs, completion.token_ids, strict=True)
        ]
        assert ranks == [1] * 3
        assert all(len(entry) in (size, size + 1) for entry in output.prompt_logprobs[1:])
        if k == -1:
            ranks = sorted(logprob.rank for logprob in completion.logprobs[0].values())
            assert ranks == list(range(1, 259))
            total = sum(torch.tensor([x.logprob for x in completion.logprobs[0].values()]).exp())
            assert total == pytest.approx(1.0, abs=1e-4)


def test_every_completion_of_n_has_its_own_logprobs(make_engine, hugging_face):
    """Would catch forks that share one list of log-probabilities, or start without the first entry."""
    engine = make_engine()
    params = SamplingParams(n=3, seed=5, max_tokens=6, ignore_eos=True, logprobs=2)
    prompt = list(b"abcdefg")
    for completion in run(engine, [prompt], params)[0][-1].outputs:
        expected = hf_logprobs(hugging_face, prompt + completion.token_ids)[len(prompt) - 1 :]
        assert_logprobs(completion.logprobs, completion.token_ids, expected, k=2)


# -- choosing: restrictions and seeds ---------------------------------------------------------------


def text_of(outputs):
    return outputs[-1].outputs[0].text


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_bad_words_of_several_tokens_never_appear(make_engine, temperature):
    """Would catch only the first token being looked at, and words that are joined across steps."""
    engine = make_engine(num_blocks=256)
    options = {
        "temperature": temperature,
        "allowed_token_ids": list(b"abc"),
        "max_tokens": 60,
        "ignore_eos": True,
    }
    params = [
        SamplingParams(seed=seed, bad_words=words, **options)
        for words in (None, ["ab", "ccc", "ba"])
        for seed in range(3)
    ]
    texts = [text_of(outputs) for outputs in run(engine, [list(b"sky")] * 6, params)]
    assert all(set(text) <= set("abc") and len(text) == 60 for text in texts)
    words = ("ab", "ccc", "ba")
    assert any(word in text for text in texts[:3] for word in words)
    assert not any(word in text for text in texts[3:] for word in words)


@pytest.mark.parametrize(
    ("options", "num_tokens", "finish_reason", "stop_reason"),
    [
        ({}, 1, "stop", None),
        ({"min_tokens": 1}, 2, "stop", None),
        ({"min_tokens": 5}, 6, "stop", None),
        ({"min_tokens": 8, "max_tokens": 8}, 8, "length", None),
        ({"min_tokens": 5, "stop_token_ids": [65]}, 6, "stop", None),
        ({"ignore_eos": True}, 8, "length", None),
        ({"ignore_eos": True, "stop_token_ids": [EOS]}, 1, "stop", EOS),
        ({"ignore_eos": True, "stop_token_ids": [EOS], "min_tokens": 3}, 4, "stop", EOS),
        ({"logit_bias": {65: 200.0}, "stop_token_ids": [65, 66]}, 1, "stop", 65),
        ({"logit_bias": {65: 200.0}, "stop_token_ids": [65], "min_tokens": 2}, 3, "stop", 65),
        ({"logit_bias": {65: 200.0}, "stop_token_ids": [66]}, 8, "length", None),
        ({"max_tokens": 1, "min_tokens": 1}, 1, "length", None),
    ],
    ids=str,
)
def test_when_a_token_ends_the_text_and_what_is_reported(
    make_engine, options, num_tokens, finish_reason, stop_reason
):
    """Would catch an end one token off min_tokens, and a stop_reason for the end of sequence."""
    options = {"temperature": 0, "max_tokens": 8, "logit_bias": {EOS: 100.0}} | options
    (outputs,) = run(make_engine(), [list(b"sky")], SamplingParams(**options))
    completion = outputs[-1].outputs[0]
    assert len(completion.token_ids) == num_tokens
    assert completion.finish_reason == finish_reason
    assert completion.stop_reason == stop_reason
    if finish_reason == "stop":
        assert completion.token_ids[-1] == (EOS if stop_reason is None else stop_reason)
        if options.get("min_tokens"):
            assert not {EOS, *options.get("stop_token_ids", [])} & set(completion.token_ids[:-1])


SEEDED = [
    SamplingParams(seed=11, max_tokens=14, ignore_eos=True),
    SamplingParams(seed=11, max_tokens=14, ignore_eos=True, top_p=0.9),
    SamplingParams(seed=11, max_tokens=14, ignore_eos=True, top_k=20, temperature=1.3, presence_penalty=0.5),
]
MATES = [
    [SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)] * 3,
    [SamplingParams(top_p=0.5, seed=1, max_tokens=9), SamplingParams(top_k=3, logprobs=5, n=2, max_tokens=9)],
    [SamplingParams(min_p=0.1, repetition_penalty=1.2, max_tokens=20, ignore_eos=True)] * 4,
]


@pytest.mark.parametrize("way", WAYS)
def test_a_seeded_request_gives_the_same_tokens_whatever_runs_beside_it(make_engine, way):
    """Would catch a generator shared by the batch, advanced by a preemption, or a row drawn another way."""
    prompt = list(b"The sky is")
    quiet, crowded = make_engine(), make_engine(**WAYS[way])
    alone = [run(quiet, [prompt], params)[0][-1].outputs[0].token_ids for params in SEEDED]
    assert len({tuple(tokens) for tokens in alone}) == 3
    for mates in MATES:
        outputs = run(crowded, [*PROMPTS[: len(mates)], prompt, prompt, prompt], [*mates, *SEEDED])
        assert [each[-1].outputs[0].token_ids for each in outputs[len(mates) :]] == alone
    assert (crowded.stats().num_preemptions > 0) == ("num_blocks" in WAYS[way])
    other_seed = SamplingParams(seed=12, max_tokens=14, ignore_eos=True)
    assert run(quiet, [prompt], other_seed)[0][-1].outputs[0].token_ids != alone[0]


def test_requests_without_a_seed_differ_and_follow_the_engines_seed(make_engine):
    """Would catch ten equal "random" completions, and an engine seed that does nothing."""
    params = SamplingParams(max_tokens=10, ignore_eos=True)

    def texts(seed):
        outputs = run(make_engine(seed=seed), [list(b"sky")] * 3, params)
        return [tuple(each[-1].outputs[0].token_ids) for each in outputs]

    assert len(set(texts(0))) == 3
    assert texts(0) == texts(0)
    assert texts(0) != texts(1)


# -- scripted texts ---------------------------------------------------------------------------------

WORDS = ["The", " sky", " is", " blue", " ST", "OP", " here", "<stop>", "!?", "END", " caf"]


@pytest.fixture(scope="module")
def wordy_llama(tmp_path_factory):
    """A tiny Llama whose tokenizer knows WORDS as single tokens, from id 258 on, beside the bytes."""
    folder = random_llama(tmp_path_factory.mktemp("models") / "wordy", byte_tokenizer=True, vocab_size=300)
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    vocab, symbols = tokenizer["model"]["vocab"], byte_symbols()
    vocab |= {"<s>": 256, "</s>": EOS}  # or they would get the next free ids
    for index, word in enumerate(WORDS):
        vocab["".join(symbols[byte] for byte in word.encode())] = 258 + index
    path.write_text(json.dumps(tokenizer), encoding="utf-8")
    return folder


def ids(*pieces):
    """Token ids of words, of single bytes (ints), and byte by byte of any other text."""
    token_ids = []
    for piece in pieces:
        if isinstance(piece, int):
            token_ids.append(piece)
        elif piece in WORDS:
            token_ids.append(258 + WORDS.index(piece))
        else:
            token_ids += piece.encode()
    return token_ids


class Script:
    """A sampler that writes the same text for every request and ignores the model."""

    def __init__(self, token_ids):
        self.token_ids = token_ids

    def __call__(self, logits, rows):
        return [
            SequenceOutput(((self.token_ids[row.sampling.num_output_tokens],),) * row.num_samples)
            for row in rows
        ]


@pytest.fixture
def write(make_engine, wordy_llama):
    """Generate a scripted text; returns all outputs of the request."""

    def write(token_ids, kind=CUMULATIVE, prompt=b"The", **options):
        engine = make_engine(wordy_llama, parts={"sampler": Script(token_ids)})
        params = SamplingParams(**({"max_tokens": len(token_ids)} | options), output_kind=kind)
        return run(engine, [list(prompt)], params)[0]

    return write


SKY = ids("The", " sky", " is", " blue", " ST", "OP", " here", "!?", EOS)

# name: (token ids, parameters, text, finish_reason, stop_reason, number of tokens)
STOPS = {
    "eos": (SKY, {}, "The sky is blue STOP here!?", "stop", None, 9),
    "length": (SKY, {"max_tokens": 4}, "The sky is blue", "length", None, 4),
    "one token": (SKY, {"stop": " blue"}, "The sky is", "stop", " blue", 4),
    "inside a token": (SKY, {"stop": ["lu"]}, "The sky is b", "stop", "lu", 4),
    "across tokens": (SKY, {"stop": "STOP"}, "The sky is blue ", "stop", "STOP", 6),
    "across three": (SKY, {"stop": "e STOP h"}, "The sky is blu", "stop", "e STOP h", 7),
    "earliest of several": (SKY, {"stop": ["here", "OP", "is"]}, "The sky ", "stop", "is", 3),
    "never there": (SKY, {"stop": ["xyz", "STOPPED"]}, "The sky is blue STOP here!?", "stop", None, 9),
    "kept": (SKY, {"stop": "STOP", "include_stop_str_in_output": True},
             "The sky is blue STOP", "stop", "STOP", 6),
    "kept, inside a token": (SKY, {"stop": "lu", "include_stop_str_in_output": True},
                             "The sky is blu", "stop", "lu", 4),
    "at once": (SKY, {"stop": "The"}, "", "stop", "The", 1),
    "with the last token allowed": (SKY, {"stop": "STOP", "max_tokens": 6},
                                    "The sky is blue ", "stop", "STOP", 6),
    "one token too late": (SKY, {"stop": "STOP", "max_tokens": 5}, "The sky is blue ST", "length", None, 5),
    "min_tokens": (ids("END", " sky", "END", " is"), {"stop": "END", "min_tokens": 1},
                   "END sky", "stop", "END", 3),
    "min_tokens reached by it": (ids("The", "END", " sky", "END"), {"stop": "END", "min_tokens": 2},
                                 "TheEND sky", "stop", "END", 4),
    "min_tokens in its middle": (ids("The", " ST", "OP", " is"), {"stop": "STOP", "min_tokens": 2},
                                 "The ", "stop", "STOP", 3),
    "stop token": (SKY, {"stop_token_ids": ids(" blue")}, "The sky is", "stop", 261, 4),
    "stop token kept": (SKY, {"stop_token_ids": ids(" blue"), "include_stop_str_in_output": True},
                        "The sky is blue", "stop", 261, 4),
    "eos kept in ids only": (SKY, {"include_stop_str_in_output": True},
                             "The sky is blue STOP here!?", "stop", None, 9),
    "eos kept in text": (SKY, {"include_stop_str_in_output": True, "skip_special_tokens": False},
                         "The sky is blue STOP here!?</s>", "stop", None, 9),
    "ignored eos is text": (ids("The", EOS, " sky"), {"ignore_eos": True, "skip_special_tokens": False},
                            "The</s> sky", "length", None, 3),
    "ignored eos is skipped": (ids("The", EOS, " sky"), {"ignore_eos": True}, "The sky", "length", None, 3),
    "emoji in four tokens": (ids("The", "😀", " is"), {}, "The😀 is", "length", None, 6),
    "stop after an emoji": (ids("The", "😀", " is"), {"stop": "😀 i"}, "The", "stop", "😀 i", 6),
    "stop is an emoji": (ids("The", "😀😀", " is"), {"stop": "😀😀"}, "The", "stop", "😀😀", 9),
    "cut character": (ids(" caf", 0xC3), {}, " caf\ufffd", "length", None, 2),
    "cut character, eos": (ids(" caf", 0xC3, EOS), {}, " caf\ufffd", "stop", None, 3),
    "cut character is a stop": (ids(" caf", 0xC3), {"stop": "f\ufffd"}, " ca", "stop", "f\ufffd", 2),
    "no detokenization": (SKY, {"detokenize": False}, "", "stop", None, 9),
}  # fmt: skip


@pytest.mark.parametrize("name", STOPS)
def test_the_text_ends_where_it_should_and_streams_to_the_same(write, name):
    """Would catch a cut in the wrong place, a stop string shown in part, deltas that do not join."""
    token_ids, options, text, finish_reason, stop_reason, num_tokens = STOPS[name]
    (final,) = write(token_ids, FINAL_ONLY, **options)
    completion = final.outputs[0]
    assert final.finished
    assert completion.text == text
    assert (completion.finish_reason, completion.stop_reason) == (finish_reason, stop_reason)
    assert completion.token_ids == token_ids[:num_tokens]

    outputs = write(token_ids, CUMULATIVE, **options)
    assert len(outputs) == num_tokens
    assert outputs[-1].outputs == final.outputs
    for step, output in enumerate(outputs[:-1], start=1):
        assert not output.finished
        assert output.outputs[0].finish_reason is None
        assert text.startswith(output.outputs[0].text), "a character was shown that is not in the text"
        assert output.outputs[0].token_ids == token_ids[:step]
        assert not output.outputs[0].text.endswith("\ufffd")

    deltas = [output.outputs[0] for output in write(token_ids, DELTA, **options)]
    assert "".join(delta.text for delta in deltas) == text
    assert sum((delta.token_ids for delta in deltas), []) == completion.token_ids  # noqa: RUF017
    assert [delta.finish_reason for delta in deltas] == [None] * (num_tokens - 1) + [finish_reason]


def test_text_is_held_back_only_as_long_as_it_may_be_a_stop_string(write):
    """Would catch a stream that shows nothing until the end, or shows the first half of a stop string."""
    shown = [output.outputs[0].text for output in write(SKY, stop=["OP hello"])]
    full = "The sky is blue STOP here!?"
    lengths = [3, 7, 10, 15, 18, 20, 25, 27]
    assert shown[:-1] == [full[: max(0, length - 7)] for length in lengths]
    assert shown[-1] == full
    kept = [output.outputs[0].text for output in write(SKY, stop=["xyz"], include_stop_str_in_output=True)]
    assert kept[:-1] == [full[:length] for length in lengths]


def test_an_unfinished_character_is_never_streamed(write):
    """Would catch U+FFFD flickering on the screen before the emoji is complete."""
    deltas = [output.outputs[0].text for output in write(ids("The", "😀", " is", "é"), DELTA)]
    assert deltas == ["The", "", "", "", "😀", " is", "", "é"]


def test_a_stop_string_ends_one_completion_of_several(make_engine, wordy_llama):
    """Would catch a stop string that ends the whole request, or the wrong one of its completions."""

    def sampler(logits, rows):
        lines = [ids("The", " sky", " is", " blue"), ids("The", "END", " is", " blue")]
        outputs = []
        for row in rows:
            position = row.sampling.num_output_tokens
            if row.num_samples == 2:
                outputs.append(SequenceOutput(((lines[0][0],), (lines[1][0],))))
            else:
                outputs.append(SequenceOutput(((lines[row.sampling.seed - 100][position],),)))
        return outputs

    for kind in KINDS:
        engine = make_engine(wordy_llama, parts={"sampler": sampler})
        params = SamplingParams(n=2, seed=100, max_tokens=4, stop="END", output_kind=kind)
        outputs = run(engine, [list(b"abcde")], params)[0]
        texts = {0: "", 1: ""}
        reasons = {}
        for output in outputs:
            for completion in output.outputs:
                so_far = texts[completion.index] if kind is DELTA else ""
                texts[completion.index] = so_far + completion.text
                reasons[completion.index] = completion.finish_reason
        assert texts == {0: "The sky is blue", 1: "The"}
        assert reasons == {0: "length", 1: "stop"}
        assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
        assert len(outputs) == (1 if kind is FINAL_ONLY else 4)


def test_deltas_of_everything_join_to_the_final_output(make_engine):
    """Would catch log-probabilities repeated in every delta, or prompt_logprobs handed out twice."""
    params = {
        kind: SamplingParams(
            n=2, seed=3, max_tokens=7, ignore_eos=True, logprobs=2, prompt_logprobs=1, output_kind=kind
        )
        for kind in KINDS
    }
    prompt = list(b"The sky is")
    outputs = {kind: run(make_engine(), [prompt], params[kind])[0] for kind in KINDS}
    (final,) = outputs[FINAL_ONLY]
    last = outputs[CUMULATIVE][-1]
    assert (last.outputs, last.prompt_logprobs) == (final.outputs, final.prompt_logprobs)

    joined = {index: ("", [], []) for index in range(2)}
    prompt_logprobs = []
    for output in outputs[DELTA]:
        prompt_logprobs += output.prompt_logprobs
        for completion in output.outputs:
            text, token_ids, logprobs = joined[completion.index]
            joined[completion.index] = (
                text + completion.text,
                token_ids + completion.token_ids,
                logprobs + completion.logprobs,
            )
    assert prompt_logprobs == final.prompt_logprobs
    assert len(prompt_logprobs) == len(prompt)
    for completion in final.outputs:
        assert joined[completion.index] == (completion.text, completion.token_ids, completion.logprobs)
    # The whole prompt is not turned into dictionaries again at every step.
    first, second = outputs[CUMULATIVE][:2]
    assert first.prompt_logprobs[1] is second.prompt_logprobs[1]


def test_stream_joins_to_what_generate_returns(wordy_llama):
    """Would catch `LLM.stream` and `LLM.generate` telling different texts."""
    llm = LLM(str(wordy_llama), num_blocks=64, block_size=4, max_model_len=128)
    params = SamplingParams(seed=4, max_tokens=40, ignore_eos=True, stop=["q", "zz"])
    prompts = ["The sky", "is", "blue"]
    finals = llm.generate(prompts, params, use_tqdm=False)
    texts, reasons = {}, {}
    for output in llm.stream(prompts, params):
        completion = output.outputs[0]
        texts[output.request_id] = texts.get(output.request_id, "") + completion.text
        reasons[output.request_id] = (completion.finish_reason, completion.stop_reason)
    assert list(texts.values()) == [final.outputs[0].text for final in finals]
    assert list(reasons.values()) == [
        (final.outputs[0].finish_reason, final.outputs[0].stop_reason) for final in finals
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_an_aborted_request_reports_what_it_had_written(make_engine, wordy_llama, kind):
    """Would catch held-back text being lost, and a neighbour that is disturbed."""
    engine = make_engine(wordy_llama, parts={"sampler": Script(SKY)})
    params = SamplingParams(max_tokens=9, stop="STOP right here", output_kind=kind)
    for name in ("aborted", "other"):
        engine.add_request(name, {"prompt_token_ids": list(b"The")}, params)
    for _ in range(5):
        engine.step()
    output = engine.abort_request("aborted")
    completion = output.outputs[0]
    assert output.finished
    assert completion.text == "The sky is blue ST"
    assert completion.token_ids == SKY[:5]
    assert (completion.finish_reason, completion.stop_reason) == ("abort", None)
    assert engine.abort_request("aborted") is None
    last = None
    while engine.has_unfinished_requests():
        for output in engine.step():
            assert output.request_id == "other"
            last = output
    assert last.outputs[0].finish_reason == "stop"
    if kind is not DELTA:
        assert last.outputs[0].text == "The sky is blue STOP here!?"


def test_an_abort_before_the_first_step_reports_an_empty_text(make_engine):
    """Would catch an abort of a waiting request that fails because nothing was ever decoded."""
    engine = make_engine()
    engine.add_request("0", "sky", SamplingParams(n=2, logprobs=1, prompt_logprobs=1))
    output = engine.abort_request("0")
    assert [completion.text for completion in output.outputs] == [""]
    assert output.outputs[0].logprobs == []
    assert output.prompt_logprobs == [None]
    assert output.metrics.first_token_time is None


def test_outputs_keep_no_reference_to_what_still_grows(make_engine):
    """Would catch an output whose tokens change after it was handed out."""
    engine = make_engine()
    engine.add_request("0", "sky", SamplingParams(temperature=0, max_tokens=4, ignore_eos=True, logprobs=1))
    (first,) = engine.step()
    tokens, logprobs = list(first.outputs[0].token_ids), list(first.outputs[0].logprobs)
    prompt = list(first.prompt_token_ids)
    while engine.has_unfinished_requests():
        engine.step()
    assert (first.outputs[0].token_ids, first.outputs[0].logprobs) == (tokens, logprobs)
    assert first.prompt_token_ids == prompt
    assert not first.finished
