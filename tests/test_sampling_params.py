"""Every field of `SamplingParams` and `BeamSearchParams`: default, boundaries, each bad value with its text.

The tables are the oracle: defaults and texts are those of vLLM (reference: its `sampling_params.py`); where
vLLM has no text, the type is checked and the text is our own.
"""

import dataclasses
import warnings

import pytest

from minivllm import BeamSearchParams, RequestOutputKind, SamplingParams
from minivllm.config import EngineConfig, ModelConfig
from minivllm.inputs import InputProcessor, Request

NAN, INF = float("nan"), float("inf")

DEFAULTS = {
    "n": 1,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 0,
    "min_p": 0.0,
    "seed": None,
    "stop": None,
    "stop_token_ids": None,
    "ignore_eos": False,
    "max_tokens": 16,
    "min_tokens": 0,
    "logprobs": None,
    "prompt_logprobs": None,
    "detokenize": True,
    "skip_special_tokens": True,
    "spaces_between_special_tokens": True,
    "include_stop_str_in_output": False,
    "output_kind": RequestOutputKind.CUMULATIVE,
    "logit_bias": None,
    "allowed_token_ids": None,
    "bad_words": None,
}

# Each boundary is good on this side; BAD holds its other side.
GOOD = {
    "n": [1, 2, 100],
    "presence_penalty": [-2.0, -2, 0, 2, 2.0],
    "frequency_penalty": [-2.0, 2.0],
    "repetition_penalty": [5e-324, 1, 10.0, 1e308],
    "temperature": [0, 0.0, 5e-324, 1e-6, 0.01, 2.5, 1e308],
    "top_p": [5e-324, 1e-9, 0.5, 1, 1.0],
    "top_k": [-1, 0, 1, 10**9],
    "min_p": [0, 0.0, 5e-324, 0.5, 1, 1.0],
    "seed": [None, -1, 0, -(2**63), 2**64 - 1],
    "stop": [None, [], "x", ["x", " "], ("x",)],
    "stop_token_ids": [None, [], [0], (1, 2), {3}],
    "ignore_eos": [True, False],
    "max_tokens": [1, None, 10**6],
    "min_tokens": [0, 16],
    "logprobs": [None, -1, 0, 1, 10**6],
    "prompt_logprobs": [None, -1, 0, 1],
    "detokenize": [True, False],
    "skip_special_tokens": [True, False],
    "spaces_between_special_tokens": [True],
    "include_stop_str_in_output": [True, False],
    "output_kind": list(RequestOutputKind),
    "logit_bias": [None, {}, {0: -100.0, 1: 100}],
    "allowed_token_ids": [None, [0], (0, 0)],
    "bad_words": [None, [], ["a", "two words"]],
}

NOT_A_NUMBER = [("0.5", "str"), (None, "NoneType"), (True, "bool"), ([1.0], "list")]
NOT_AN_INT = [("1", "str"), (1.0, "float"), (True, "bool")]
NOT_A_BOOL = [1, 0, "False", None]


def number_errors(name):
    return [
        (name, value, TypeError, f"{name} must be a number, but is of type {kind}.")
        for value, kind in NOT_A_NUMBER
    ]


def integer_errors(name):
    return [
        (name, value, TypeError, f"{name} must be an int, but is of type {kind}.")
        for value, kind in NOT_AN_INT
    ]


def bool_errors(name):
    return [(name, value, TypeError, f"{name} must be True or False, got {value!r}.") for value in NOT_A_BOOL]


def range_errors(name, text, values):
    return [(name, value, ValueError, f"{name} {text}, got {value}.") for value in values]


BAD = [
    *[("n", x, ValueError, f"n must be an int, but is of type {type(x)}") for x in ("1", 1.0, True, None)],
    *range_errors("n", "must be at least 1", [0, -1]),
    *[
        error
        for name in ("presence_penalty", "frequency_penalty")
        for error in (
            *number_errors(name),
            *range_errors(name, "must be in [-2, 2]", [-2.001, 2.001, NAN, INF, -INF]),
        )
    ],
    *number_errors("repetition_penalty"),
    *range_errors("repetition_penalty", "must be greater than zero", [0, 0.0, -1.0]),
    *range_errors("repetition_penalty", "must be a finite number", [NAN, INF]),
    *number_errors("temperature"),
    *range_errors("temperature", "must be non-negative", [-1e-9, -1]),
    *range_errors("temperature", "must be a finite number", [NAN, INF]),
    *number_errors("top_p"),
    *range_errors("top_p", "must be in (0, 1]", [0, 0.0, -0.1, 1.001, NAN]),
    *[("top_k", x, TypeError, f"top_k must be an integer, got {kind}") for x, kind in NOT_AN_INT],
    *range_errors("top_k", "must be 0 (disable), or at least 1", [-2, -100]),
    *number_errors("min_p"),
    *range_errors("min_p", "must be in [0, 1]", [-0.001, 1.001, NAN]),
    *integer_errors("seed"),
    *range_errors("seed", "must fit in 64 bits", [2**64, -(2**63) - 1]),
    ("stop", 5, TypeError, "stop must be a list of strings, but is of type int."),
    ("stop", {"a": 1}, TypeError, "stop must be a list of strings, but is of type dict."),
    ("stop", ["a", 5], TypeError, "stop must contain only strings, got ['a', 5]."),
    ("stop", "", ValueError, "stop cannot contain an empty string."),
    ("stop", ["a", ""], ValueError, "stop cannot contain an empty string."),
    *[
        error
        for name in ("stop_token_ids", "allowed_token_ids")
        for error in (
            (name, 5, TypeError, f"{name} must be a list of token ids, but is of type int."),
            (name, "12", TypeError, f"{name} must be a list of token ids, but is of type str."),
            (name, {1: 2}, TypeError, f"{name} must be a list of token ids, but is of type dict."),
            (name, iter([1]), TypeError, f"{name} must be a list of token ids, but is of type list_iterator."),
            (name, [1, "2"], ValueError, f"{name} must contain only integers, got [1, '2']."),
            (name, [1.0], ValueError, f"{name} must contain only integers, got [1.0]."),
            (name, [True], ValueError, f"{name} must contain only integers, got [True]."),
            (name, [3, -1], ValueError, f"{name} must contain only non-negative token ids, got [3, -1]."),
        )
    ],
    ("allowed_token_ids", [], ValueError, "allowed_token_ids is not None and empty!"),
    *bool_errors("ignore_eos"),
    *integer_errors("max_tokens"),
    *range_errors("max_tokens", "must be at least 1", [0, -1]),
    *integer_errors("min_tokens"),
    ("min_tokens", None, TypeError, "min_tokens must be an int, but is of type NoneType."),
    *range_errors("min_tokens", "must be greater than or equal to 0", [-1]),
    ("min_tokens", 17, ValueError, "min_tokens must be less than or equal to max_tokens=16, got 17."),
    *[
        error
        for name in ("logprobs", "prompt_logprobs")
        for error in (
            *integer_errors(name),
            *range_errors(name, "must be non-negative or -1", [-2]),
        )
    ],
    *[
        error
        for name in (
            "detokenize",
            "skip_special_tokens",
            "spaces_between_special_tokens",
            "include_stop_str_in_output",
        )
        for error in bool_errors(name)
    ],
    (
        "spaces_between_special_tokens",
        False,
        ValueError,
        "spaces_between_special_tokens cannot be False: the tokenizers of Llama models put no spaces there anyway.",
    ),
    ("output_kind", "delta", TypeError, "output_kind must be a RequestOutputKind, got 'delta'."),
    ("logit_bias", [1], TypeError, "logit_bias must be a dict of token id to bias, got list."),
    ("logit_bias", {"1": 1.0}, ValueError, "logit_bias must contain only integers, got {'1': 1.0}."),
    ("logit_bias", {-1: 1.0}, ValueError,
     "logit_bias must contain only non-negative token ids, got {-1: 1.0}."),
    ("logit_bias", {1: "2"}, TypeError, "logit_bias must hold only numbers, got {1: '2'}."),
    ("logit_bias", {1: NAN}, ValueError, "logit_bias must hold only finite numbers, got {1: nan}."),
    ("logit_bias", {1: INF}, ValueError, "logit_bias must hold only finite numbers, got {1: inf}."),
    ("bad_words", "word", TypeError, "bad_words must be a list of strings, but is of type str."),
    ("bad_words", [7], TypeError, "bad_words must contain only strings, got [7]."),
    ("bad_words", ["a", ""], ValueError,
     "bad_words cannot contain an empty string. Got bad_words=['a', '']"),
]  # fmt: skip


def test_the_fields_and_defaults_are_vllms():
    """Would catch a renamed, reordered or missing field, or another default."""
    fields = dataclasses.fields(SamplingParams)
    assert {field.name: field.default for field in fields} == DEFAULTS
    assert [field.name for field in fields] == list(DEFAULTS)
    assert set(GOOD) == set(DEFAULTS) == {name for name, *_ in BAD}  # no field was forgotten below


@pytest.mark.parametrize(("name", "value"), [(name, value) for name in GOOD for value in GOOD[name]])
def test_a_boundary_value_is_accepted_and_kept(name, value):
    """Would catch `<` where `<=` is meant, and a field that is rewritten behind the user's back."""
    assert getattr(SamplingParams(**{name: value}), name) == value


@pytest.mark.parametrize(("name", "value", "error", "text"), BAD)
def test_a_bad_value_is_refused_with_its_text(name, value, error, text):
    """Would catch a value that slips through, the wrong exception, or a text that is not vLLM's."""
    with pytest.raises(error) as caught:
        SamplingParams(**{name: value})
    assert type(caught.value) is error
    assert str(caught.value) == text


def test_stop_strings_need_detokenization():
    """Would catch stop strings that are silently never found."""
    text = "stop strings are only supported when detokenize is True. Set detokenize=True to use stop."
    with pytest.raises(ValueError) as caught:
        SamplingParams(stop="x", detokenize=False)
    assert str(caught.value) == text
    assert SamplingParams(stop=[], detokenize=False).stop_strings == ()


@pytest.mark.parametrize("temperature", [0, 0.0, 9e-6])
def test_greedy_cannot_give_several_completions(temperature):
    """Would catch n equal completions being computed n times."""
    with pytest.raises(ValueError) as caught:
        SamplingParams(temperature=temperature, n=2)
    assert str(caught.value) == "n must be 1 when using greedy sampling, got 2."
    assert SamplingParams(temperature=0.01, n=2).n == 2


def test_what_the_engine_reads_from_the_fields():
    """Would catch a sentinel (-1, None, a bare string) that reaches the engine as itself."""
    assert SamplingParams(seed=-1).explicit_seed is None
    assert SamplingParams(seed=0).explicit_seed == 0
    assert SamplingParams().stop_strings == ()
    assert SamplingParams(stop="ab").stop_strings == ("ab",)
    assert SamplingParams(stop=["ab", "c"]).stop_strings == ("ab", "c")
    assert SamplingParams(temperature=9e-6).is_greedy
    assert not SamplingParams(temperature=0.01).is_greedy
    assert SamplingParams(temperature=0.7).effective_temperature == 0.7
    assert SamplingParams(temperature=1e300).effective_temperature == 1e6  # -inf / inf would be NaN
    for name, off in (("presence_penalty", 0), ("frequency_penalty", 0), ("repetition_penalty", 1)):
        assert SamplingParams(**{name: 0.5}).has_penalties
        assert not SamplingParams(**{name: off}).has_penalties


def test_a_tiny_temperature_is_lifted_with_vllms_warning():
    """Would catch logits divided by 1e-4: the exponential overflows."""
    with pytest.warns(UserWarning) as caught:
        params = SamplingParams(temperature=0.001)
    assert str(caught[0].message) == (
        "temperature 0.001 is less than 0.01, which may cause numerical errors nan or inf in tensors. "
        "We have maxed it out to 0.01."
    )
    assert caught[0].filename == __file__  # the line of the user, not one of ours
    assert params.effective_temperature == 0.01
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert (
            dataclasses.replace(params, output_kind=RequestOutputKind.DELTA).temperature == 0.01
        )  # warned once already
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for temperature in (0.0, 0.01, 1.0):
            SamplingParams(temperature=temperature)


def test_params_are_frozen_and_copied_with_replace():
    """Would catch one request's parameters changing because another shares the object."""
    params = SamplingParams(top_p=0.5)
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.top_p = 0.9
    assert dataclasses.replace(params, top_k=3) == SamplingParams(top_p=0.5, top_k=3)
    with pytest.raises(ValueError, match="top_k must be"):
        dataclasses.replace(params, top_k=-7)


def test_a_list_that_the_user_changes_later_changes_no_request():
    """Would catch requests which wait and all get the list that was filled for the last of them; and an id
    added behind the check, which was an index error in the middle of a step.
    """
    given = {"allowed_token_ids": [65], "stop_token_ids": [7], "stop": ["a"], "bad_words": ["b"]}
    bias = {5: 1.0}
    params = SamplingParams(logit_bias=bias, **given)
    expected = dataclasses.replace(params)
    for values in given.values():
        values.append("c" if isinstance(values[0], str) else 10**6)
    bias[10**6] = 1.0
    assert params == expected
    assert params.allowed_token_ids == [65] and params.logit_bias == {5: 1.0}


BEAM_BAD = [
    *integer_errors("beam_width"),
    *range_errors("beam_width", "must be at least 1", [0, -3]),
    *integer_errors("max_tokens"),
    *range_errors("max_tokens", "must be at least 1", [0]),
    *bool_errors("ignore_eos"),
    *number_errors("temperature"),
    ("temperature", 0.7, ValueError, "temperature must be 0 when using beam search."),
    *number_errors("length_penalty"),
    *range_errors("length_penalty", "must be a finite number", [NAN, INF, 10**400]),
    *range_errors("length_penalty", "must be in [-16, 16]", [16.5, -1e308]),
    *bool_errors("include_stop_str_in_output"),
    *[
        ("early_stopping", x, ValueError, f'early_stopping must be True, False or "never", got {x!r}.')
        for x in (1, 0, "always", None)
    ],
]


def test_the_fields_and_defaults_of_beam_search_are_vllms():
    """Would catch a renamed field; early_stopping is Hugging Face's, vLLM dropped it with its engine's beams."""
    fields = dataclasses.fields(BeamSearchParams)
    defaults = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
    assert [field.name for field in fields][:2] == ["beam_width", "max_tokens"]
    assert defaults == {
        "ignore_eos": False,
        "temperature": 0.0,
        "length_penalty": 1.0,
        "include_stop_str_in_output": False,
        "early_stopping": False,
    }
    assert {field.name for field in fields} == {name for name, *_ in BEAM_BAD}
    good = {"beam_width": 1, "max_tokens": 1, "length_penalty": -1.5, "early_stopping": "never"}
    assert dataclasses.asdict(BeamSearchParams(**good)) == defaults | good


@pytest.mark.parametrize(("name", "value", "error", "text"), BEAM_BAD)
def test_a_bad_beam_search_value_is_refused_with_its_text(name, value, error, text):
    """Would catch a bad width or penalty that only fails in the middle of a search."""
    with pytest.raises(error) as caught:
        BeamSearchParams(**({"beam_width": 2, "max_tokens": 4} | {name: value}))
    assert type(caught.value) is error
    assert str(caught.value) == text


class Words:
    """A tokenizer of four words; a space before a word makes another token of it, as in GPT-2's."""

    def __init__(self):
        self.vocab = {"cat": 1, " cat": 2, "dog": 3, " two": 4, "new": 10, " new": 11, " \n": 8}

    def encode(self, text, add_special_tokens=True):
        assert not add_special_tokens
        if text.startswith("\n"):
            return [6, *self.encode(text[1:], add_special_tokens)]
        return [self.vocab[text]] if text in self.vocab else [5] * len(text.strip())


@pytest.fixture
def processor():
    sizes = dict.fromkeys(("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads"), 2)
    config = ModelConfig(vocab_size=10, num_key_value_heads=2, head_dim=2, eos_token_ids=(9,), **sizes)
    return InputProcessor(EngineConfig("m", max_logprobs=5), config, Words(), max_model_len=8)


@pytest.mark.parametrize(
    ("params", "text"),
    [
        (SamplingParams(logprobs=6), "Requested sample logprobs of 6, which is greater than max allowed: 5"),
        (SamplingParams(logprobs=-1), "Requested sample logprobs of 10, which is greater than max allowed: 5"),
        (SamplingParams(prompt_logprobs=6), "Requested prompt logprobs of 6, which is greater than max allowed: 5"),
        (SamplingParams(allowed_token_ids=[1, 10]), "allowed_token_ids contains out-of-vocab token id!"),
        (SamplingParams(logit_bias={3: 1.0, 12: 0.0, 10: 1.0}),
         "token_id(s) [12, 10] in logit_bias contain out-of-vocab token ids. Vocabulary size: 10"),
        (SamplingParams(stop_token_ids=[10]),
         "token_id(s) [10] in stop_token_ids contain out-of-vocab token ids. Vocabulary size: 10"),
        (SamplingParams(bad_words=["cat", "  "]), "bad_words entries must tokenize to at least one token."),
        (SamplingParams(bad_words=["cat", "new"]),
         "The model vocabulary size is 10, but the following tokens were specified as bad: [10, 11]."),
    ],
)  # fmt: skip
def test_what_needs_the_vocabulary_is_checked_when_the_request_is_added(processor, params, text):
    """Would catch an index error in the middle of a step, with other requests lost, for one bad id."""
    with pytest.raises(ValueError) as caught:
        processor.make_group("0", Request({"prompt_token_ids": [1]}, params), 0)
    assert str(caught.value) == text
    at_the_limit = SamplingParams(logprobs=5, prompt_logprobs=5, logit_bias={9: 1}, allowed_token_ids=[9])
    assert (
        processor.make_group("0", Request({"prompt_token_ids": [9]}, at_the_limit), 0).params is at_the_limit
    )


def test_bad_words_are_known_at_the_start_of_a_text_after_a_space_and_at_the_start_of_a_line(processor):
    """Would catch a form that is left out because it has another number of tokens, as in vLLM's rule."""

    def ids(*words):
        request = Request({"prompt_token_ids": [1]}, SamplingParams(bad_words=list(words)))
        return processor.make_group("0", request, 0).bad_words_token_ids

    assert ids("cat") == ((1,), (2,))
    assert ids(" cat") == ((1,), (2,))  # leading spaces are dropped, then all forms are made
    assert ids("two") == ((5, 5, 5), (4,))  # "two" is three tokens, " two" is one
    assert ids("dog", "cat") == ((3,), (5, 5, 5), (1,), (2,))
    assert ids("\n") == ((6,), (8,))  # a line break is a word as well


@pytest.mark.parametrize(("length", "fits"), [(7, True), (8, False), (9, False)])
def test_a_prompt_leaves_room_for_one_token(processor, length, fits):
    """Would catch a prompt of max_model_len tokens that generates one more than the model allows."""
    prompt = {"prompt_token_ids": [1] * length}
    if fits:
        assert processor.make_group("0", Request(prompt, SamplingParams()), 0).max_num_tokens == 8
        return
    more = "plus the number of requested output tokens (at least 1) " if length == 8 else ""
    with pytest.raises(ValueError) as caught:
        processor.make_group("0", Request(prompt, SamplingParams()), 0)
    assert str(caught.value).startswith(
        f"The decoder prompt (length {length}) {more}is longer than the maximum model length of 8. "
    )


@pytest.mark.parametrize("name", ["temperature", "repetition_penalty", "logit_bias"])
def test_a_number_that_no_float_can_hold_is_refused(name):
    """Would catch Python's OverflowError, which no caller expects of a wrong value."""
    value = {3: 10**400} if name == "logit_bias" else 10**400
    with pytest.raises(ValueError, match=f"{name}.* finite number.*, got .*1000"):
        SamplingParams(**{name: value})


def test_an_end_of_sequence_id_that_the_model_lacks_is_left_out(processor):
    """Would catch min_tokens forbidding an id beyond the logits: an index error in the middle of a step."""
    config = dataclasses.replace(processor.model_config, eos_token_ids=(9, 12))
    wider = InputProcessor(EngineConfig("m", max_logprobs=5), config, Words(), max_model_len=8)
    group = wider.make_group("0", Request({"prompt_token_ids": [1]}, SamplingParams(min_tokens=2)), 0)
    assert group.eos_token_ids == group.stop_token_ids == {9}


def test_of_several_end_of_sequence_ids_the_tokenizers_has_no_stop_reason(processor):
    """Would catch Llama 3's other ends reported as None, where vLLM names the id. Without a tokenizer's id,
    none of them is named.
    """
    config = dataclasses.replace(processor.model_config, eos_token_ids=(3, 9))

    def group(eos_token_id, **options):
        words = Words()
        words.eos_token_id = eos_token_id
        each = InputProcessor(EngineConfig("m"), config, words, max_model_len=8)
        return each.make_group("0", Request({"prompt_token_ids": [1]}, SamplingParams(**options)), 0)

    assert (group(9).eos_token_ids, group(9).stop_token_ids) == ({9}, {3, 9})
    assert (group(None).eos_token_ids, group(None).stop_token_ids) == ({3, 9}, {3, 9})
    assert (group(9, ignore_eos=True).eos_token_ids, group(9, ignore_eos=True).stop_token_ids) == (
        set(),
        set(),
    )


def test_max_logprobs_of_minus_one_is_the_whole_vocabulary(processor):
    """Would catch vLLM's "no limit" refused, or taken for a limit below every request."""
    config = EngineConfig("m", max_logprobs=-1)
    wide = InputProcessor(config, processor.model_config, Words(), max_model_len=8)
    for count in (10, -1):
        params = SamplingParams(logprobs=count)
        assert wide.make_group("0", Request({"prompt_token_ids": [1]}, params), 0).params is params
    with pytest.raises(ValueError, match="of 11, which is greater than max allowed: 10"):
        wide.make_group("0", Request({"prompt_token_ids": [1]}, SamplingParams(logprobs=11)), 0)
