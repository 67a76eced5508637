"""Settings: what each field may hold is checked when a config is made, by the field's annotation."""

from dataclasses import fields

import pytest

from minivllm.config import EngineConfig, ModelConfig, RopeConfig, few

SIZES = {
    "vocab_size": 40, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8,
}  # fmt: skip
GOOD = {EngineConfig: {"model": "m"}, ModelConfig: SIZES, RopeConfig: {}}
# For each kind of annotation: what no field of that kind takes.
BAD = {
    "int": ["1", 1.5, True, [], -1],
    "float": ["1", True, [], -1.0, 0, float("nan"), float("inf"), 10**400],
    "bool": ["False", 0, 1, [], None],
    "str": [5, "", [], True],
    "dict[str, Any]": ["{}", 5, [], True],
}
FIELDS = [(cls, field) for cls in GOOD for field in fields(cls)]


@pytest.mark.parametrize(("cls", "field"), FIELDS, ids=lambda value: getattr(value, "name", None))
def test_each_field_refuses_what_its_annotation_excludes(cls, field):
    """Would catch a new setting that is not checked: a wrong value would break a step, or bend every text."""
    kind, _, optional = field.type.partition(" | ")
    checked = {"RopeConfig": [], "tuple[int, ...]": []} | BAD
    if field.name == "watermark":  # the one float that may be 0
        checked["float"] = [value for value in BAD["float"] if value != 0]
    if field.name == "max_logprobs":  # the one int that may be -1: no limit
        checked["int"] = [value for value in BAD["int"] if value != -1]
    for value in [*checked[kind], *([] if optional else [None])]:
        if kind in BAD:
            with pytest.raises((TypeError, ValueError), match=field.name.replace("rope_type", "rope")):
                cls(**GOOD[cls] | {field.name: value})
    if optional:
        assert getattr(cls(**GOOD[cls] | {field.name: None}), field.name) is None


@pytest.mark.parametrize("cls", GOOD)
def test_the_defaults_pass_their_own_checks(cls):
    """Would catch a default that nothing but the default could be: negative control of the test above."""
    config = cls(**GOOD[cls])
    assert cls(**{field.name: getattr(config, field.name) for field in fields(cls)}) == config


@pytest.mark.parametrize("name", ["seed", "swap_space_bytes", "max_logprobs"])
def test_three_settings_may_be_zero_and_the_others_not(name):
    """Would catch `swap_space_bytes=0`, the default, refused; `block_size=0` is the control."""
    assert getattr(EngineConfig("m", **{name: 0}), name) == 0
    with pytest.raises(ValueError, match="block_size must be at least 1, got 0"):
        EngineConfig("m", block_size=0)


def test_llama3_needs_two_different_frequency_factors():
    """Would catch a division by zero: angles of NaN, and a model that answers with one token for ever."""
    for low, high in ((4.0, 4.0), (4.0, 1.0)):
        with pytest.raises(ValueError, match="high_freq_factor must be above low_freq_factor"):
            RopeConfig(rope_type="llama3", low_freq_factor=low, high_freq_factor=high)
        RopeConfig(rope_type="linear", low_freq_factor=low, high_freq_factor=high)  # not read there


def test_few_names_are_shown_and_many_are_counted():
    """Would catch an error of 300 lines."""
    assert few([]) == "none"
    assert few({"b", "a"}) == "a, b"
    assert few(set("abcd")) == "a, b, c, d"
    assert few([f"w{index}" for index in range(9)]) == "w0, w1, w2, w3 and 5 more"
