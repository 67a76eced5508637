"""Bias, bans and penalties against Hugging Face's processors, or the definition written out in float64."""

import pytest
import torch
from transformers.generation.logits_process import (
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    PrefixConstrainedLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    SequenceBiasLogitsProcessor,
)

from minivllm.logits_processors import completing_tokens, process_logits
from tests.helpers_sampling import CountCalls
from tests.helpers_sampling import make_row as make_batch_row

V = 60
NEVER = float("-inf")
# Ragged on purpose: short and long, repeated tokens, tokens in the prompt only, in the output only, in both.
TEXTS = [
    ((1, 2, 3, 3, 3), (4, 4, 5, 1)),
    ((7,), (7, 7, 7, 7, 7, 7, 8)),
    (tuple(range(40)), (59,)),
    ((0, 59), ()),
    ((5, 6), tuple(range(20, 45)) * 2),
]


def make_row(*args, **kwargs):
    """What `process_logits` is given of a row."""
    return make_batch_row(*args, **kwargs).sampling


def random_logits(rows, seed=0):
    return torch.randn(rows, V, generator=torch.Generator().manual_seed(seed)) * 3


def ids(tokens):
    return torch.tensor([tokens], dtype=torch.int64)


def assert_same(actual, expected):
    """The same tokens are forbidden, and the other logits agree to float32 noise."""
    assert torch.equal(actual.isneginf(), expected.isneginf())
    torch.testing.assert_close(actual, expected.float(), rtol=1e-6, atol=1e-6)


def penalized(logits, prompt, output, params, *, count_prompt=False):
    """vLLM's definition in float64: repetition first, over prompt and output; the others over the output."""
    result = logits.double().clone()
    for token in {*prompt, *output}:
        factor = params.repetition_penalty
        result[token] = result[token] / factor if result[token] > 0 else result[token] * factor
    counted = [*prompt, *output] if count_prompt else output
    for token in set(counted):
        result[token] -= params.frequency_penalty * list(counted).count(token)
        result[token] -= params.presence_penalty
    return result


@pytest.mark.parametrize("penalty", [1.3, 0.7, 2.0])
def test_repetition_penalty_is_hugging_faces_over_prompt_and_output(penalty):
    """Would catch the prompt being left out, negative logits divided, and padding that is penalized."""
    logits = random_logits(len(TEXTS))
    rows = [make_row(prompt=prompt, output=output, repetition_penalty=penalty) for prompt, output in TEXTS]
    actual = process_logits(logits, rows)
    processor = RepetitionPenaltyLogitsProcessor(penalty)
    expected = torch.cat(
        [processor(ids(prompt + output), logits[i : i + 1]) for i, (prompt, output) in enumerate(TEXTS)]
    )
    assert_same(actual, expected)

    output_only = torch.cat(
        [processor(ids(output or (0,)), logits[i : i + 1]) for i, (_, output) in enumerate(TEXTS)]
    )
    for wrong in (output_only, torch.zeros_like(logits), logits):
        with pytest.raises(AssertionError):
            assert_same(wrong, expected)


@pytest.mark.parametrize(
    "options",
    [
        {"frequency_penalty": 0.7},
        {"frequency_penalty": -2.0},
        {"presence_penalty": 1.1},
        {"presence_penalty": -0.4, "frequency_penalty": 0.3},
        {"presence_penalty": 0.5, "frequency_penalty": 0.25, "repetition_penalty": 1.7},
    ],
    ids=str,
)
def test_penalties_are_vllms_definition(options):
    """Would catch counts from the prompt, presence subtracted twice, padding that counts, another order."""
    logits = random_logits(len(TEXTS))
    rows = [make_row(prompt=prompt, output=output, **options) for prompt, output in TEXTS]
    params = rows[0].params
    actual = process_logits(logits, rows)

    def expected(**how):
        rows = zip(logits, TEXTS, strict=True)
        return torch.stack([penalized(row, prompt, output, params, **how) for row, (prompt, output) in rows])

    assert_same(actual, expected())
    for wrong in (expected(count_prompt=True), logits, torch.zeros_like(logits)):
        with pytest.raises(AssertionError):
            assert_same(actual, wrong)


def test_every_row_gets_its_own_penalties():
    """Would catch a penalty that reaches a neighbour, or rows that are mixed up when only some have one."""
    wishes = [
        {},
        {"repetition_penalty": 1.5},
        {"presence_penalty": 0.5},
        {},
        {"frequency_penalty": 1.5, "repetition_penalty": 0.8},
    ]
    logits = random_logits(len(TEXTS))
    rows = [
        make_row(prompt=prompt, output=output, **options)
        for (prompt, output), options in zip(TEXTS, wishes, strict=True)
    ]
    actual = process_logits(logits, rows)
    for i, (prompt, output) in enumerate(TEXTS):
        assert_same(actual[i], penalized(logits[i], prompt, output, rows[i].params))
    assert torch.equal(actual[0], logits[0])
    assert torch.equal(actual[3], logits[3])
    assert not torch.equal(actual[1], logits[1])


def test_the_argument_is_left_as_it_was():
    """Would catch logprobs, which are taken from the raw logits, being changed by a penalty."""
    logits = random_logits(2)
    before = logits.clone()
    rows = [make_row(logit_bias={3: 5.0}, allowed_token_ids=[3, 4]), make_row(repetition_penalty=2.0)]
    assert not torch.equal(process_logits(logits, rows), before)
    assert torch.equal(logits, before)
    # If no row asks for anything, nothing is copied.
    assert process_logits(logits, [make_row(), make_row(temperature=0.0)]) is logits


def test_logit_bias_is_hugging_faces_sequence_bias():
    """Would catch a bias that replaces the logit, goes to another token, or to another row."""
    logits = random_logits(2)
    bias = {0: 5.0, 17: -2.5, 59: 100.0}
    actual = process_logits(logits, [make_row(logit_bias=bias), make_row()])
    processor = SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()])
    expected = processor(ids((1,)), logits[:1])
    assert_same(actual[:1], expected)
    assert torch.equal(actual[1], logits[1])
    shifted = SequenceBiasLogitsProcessor([[[token + 1 if token < 59 else 0], 5.0] for token in bias])
    with pytest.raises(AssertionError):
        assert_same(actual[:1], shifted(ids((1,)), logits[:1]))


def test_allowed_token_ids_are_hugging_faces_prefix_constraint():
    """Would catch an allowed token that loses its logit, and a forbidden one that keeps some."""
    logits = random_logits(2)
    allowed = [3, 17, 17, 59]
    actual = process_logits(logits, [make_row(allowed_token_ids=allowed), make_row()])
    processor = PrefixConstrainedLogitsProcessor(lambda batch, sent: sorted(set(allowed)), num_beams=1)
    assert_same(actual[:1], processor(ids((1,)), logits[:1]))
    assert torch.equal(actual[1], logits[1])
    with pytest.raises(AssertionError):
        assert_same(actual[:1], logits[:1])


BAD_WORDS = [[5], [7, 8], [9, 10, 11], [10, 11, 12], [7, 7]]


@pytest.mark.parametrize(
    "output", [(), (7,), (9,), (9, 10), (10, 11), (9, 10, 11), (1, 9, 10, 2), (7, 7, 7), (8, 7), (11, 10)]
)
def test_bad_words_are_hugging_faces(output):
    """Would catch all tokens of a word forbidden instead of its last, and prefixes that are matched wrongly.

    Hugging Face looks at prompt and output. vLLM, and we, look at the output only: so it gets the output.
    """
    logits = random_logits(1)
    row = make_row(prompt=(9, 10), output=output, bad_words=BAD_WORDS)
    actual = process_logits(logits, [row])
    # The processor wants at least one token; 0 is in no bad word.
    expected = NoBadWordsLogitsProcessor(BAD_WORDS)(ids((0, *output)), logits)
    assert_same(actual, expected)
    with pytest.raises(AssertionError):
        assert_same(actual, NoBadWordsLogitsProcessor([[6]])(ids((0, *output)), logits))


def test_a_bad_word_is_forbidden_with_its_last_token_only():
    """Would catch `completing_tokens` contradicting its own docstring, and words begun in the prompt."""
    assert completing_tokens([(5,), (1, 2, 3)], (9, 1, 2)) == {5, 3}
    assert completing_tokens([(5,), (1, 2, 3)], (1, 2, 9)) == {5}
    assert completing_tokens([(1, 2)], ()) == set()
    logits = random_logits(1)
    assert process_logits(logits, [make_row(prompt=(7,), output=(), bad_words=[[7, 8]])]).isfinite().all()


@pytest.mark.parametrize("others", [{}, {"logit_bias": {0: 0.0}}], ids=str)
@pytest.mark.parametrize("num_output", [0, 1, 2, 3, 4, 9])
def test_min_tokens_is_hugging_faces_min_new_tokens(num_output, others):
    """Would catch an end one token too early or too late, and stop ids that are not forbidden with eos."""
    logits = random_logits(1)
    prompt, output = (1, 2, 3), tuple(range(10, 10 + num_output))
    row = make_row(prompt=prompt, output=output, min_tokens=3, stop_token_ids=(58, 59, 4), **others)
    actual = process_logits(logits, [row])
    processor = MinNewTokensLengthLogitsProcessor(len(prompt), 3, [58, 59, 4])
    expected = processor(ids(prompt + output), logits)
    assert expected[0, 58].isneginf() == (num_output < 3)
    assert_same(actual, expected)
    wrong = MinNewTokensLengthLogitsProcessor(len(prompt), 4 if num_output == 3 else 3, [58, 59])
    with pytest.raises(AssertionError):
        assert_same(actual, wrong(ids(prompt + output), logits) if num_output <= 3 else logits * 2)


def hugging_face_in_order(logits, prompt, output, options, order):
    """The processors one after the other, in the order given."""
    text = ids(prompt + output)
    processors = {
        "allowed": PrefixConstrainedLogitsProcessor(lambda batch, sent: options["allowed_token_ids"], 1),
        "bad words": NoBadWordsLogitsProcessor([[3], [8, 9]]),
        "min_tokens": MinNewTokensLengthLogitsProcessor(len(prompt), options["min_tokens"], [2]),
        "bias": SequenceBiasLogitsProcessor(
            [[[token], value] for token, value in options["logit_bias"].items()]
        ),
        "repetition": RepetitionPenaltyLogitsProcessor(options["repetition_penalty"]),
    }
    for name in order:
        logits = processors[name](text, logits)
    return logits


def test_everything_at_once_is_applied_in_vllms_order():
    """Would catch a bias that brings a forbidden token back, and penalties that do not see the bias."""
    options = {
        "allowed_token_ids": [1, 2, 3, 4, 5, 8, 9, 10, 20],
        "min_tokens": 5,
        "logit_bias": {2: 50.0, 4: -9.0, 5: 9.0, 9: 50.0, 30: 50.0},
        "repetition_penalty": 1.5,
    }
    prompt, output = (4, 5, 6), (5, 20, 8)
    logits = random_logits(1)
    row = make_row(prompt=prompt, output=output, stop_token_ids=[2], bad_words=[[3], [8, 9]], **options)
    actual = process_logits(logits, [row])
    v1 = ["allowed", "bad words", "min_tokens", "bias", "repetition"]
    assert_same(actual, hugging_face_in_order(logits, prompt, output, options, v1))
    penalties_first = ["repetition", "allowed", "bad words", "min_tokens", "bias"]
    with pytest.raises(AssertionError):
        assert_same(actual, hugging_face_in_order(logits, prompt, output, options, penalties_first))
    # A bias on top of -inf changes nothing: tokens 2, 9 and 30 stay forbidden.
    assert actual[0, [2, 3, 9, 30]].isneginf().all()
    assert actual[0].isfinite().sum() == 6


def test_bad_words_and_min_tokens_give_way_before_nothing_is_left():
    """Would catch a row of -inf only: its softmax is NaN, and the step would fail for all requests."""
    logits = random_logits(1)
    only = make_row(allowed_token_ids=[7, 8], min_tokens=3, stop_token_ids=[7, 8])
    assert process_logits(logits, [only]).isfinite().nonzero()[:, 1].tolist() == [7, 8]
    one_left = make_row(allowed_token_ids=[7, 8, 9], min_tokens=3, stop_token_ids=[7], bad_words=[[9]])
    assert process_logits(logits, [one_left]).isfinite().nonzero()[:, 1].tolist() == [8]


@pytest.mark.parametrize(
    "options",
    [
        {"logit_bias": {1: 1e308, 2: -1e308}},
        {"repetition_penalty": 1e-300},
        {"repetition_penalty": 1e300},
        {"logit_bias": {1: 1e308}, "repetition_penalty": 1e-300},
    ],
    ids=str,
)
def test_wild_numbers_never_become_nan_or_infinity(options):
    """Would catch one request's 1e308 taking down the step, and with it all others."""
    logits = random_logits(1)
    logits[0, 3] = 0.0  # 0 times infinity would be NaN
    processed = process_logits(logits, [make_row(prompt=(1, 2, 3), output=(3, 1), **options)])
    assert not processed.isnan().any()
    assert not (processed == torch.inf).any()
    assert not (processed / 0.01).softmax(dim=-1).isnan().any()


def test_penalties_take_as_many_torch_calls_for_many_rows_as_for_two():
    """Would catch a loop over the requests in the part that every request of a busy server may go through."""

    def num_ops(num_rows):
        rows = [
            make_row(prompt=(1, 2), output=range(3 + i), repetition_penalty=1.2, presence_penalty=0.1)
            for i in range(num_rows)
        ]
        logits = random_logits(num_rows)
        with CountCalls() as calls:
            process_logits(logits, rows)
        return len(calls.names)

    assert num_ops(2) == num_ops(40)
    assert num_ops(2) > 5  # the counter does count
