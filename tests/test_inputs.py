"""The gate: forms of prompts and messages that are taken, and those that are refused with a reason."""

import numpy as np
import pytest
import torch

from minivllm import LLM, SamplingParams
from minivllm.inputs import bad_word_forms
from minivllm.prompts import as_list, render_chat
from minivllm.weights.loader import load_tokenizer
from tests.helpers_tokenizer import llama2

GREEDY = SamplingParams(temperature=0, max_tokens=4, ignore_eos=True)


@pytest.fixture(scope="module")
def llm(tiny_llama):
    return LLM(str(tiny_llama), num_blocks=64, block_size=4, max_model_len=120)


def tokens(outputs):
    return [output.outputs[0].token_ids for output in outputs]


@pytest.mark.parametrize(
    "prompts",
    [
        [5, 6, 7],
        [[5, 6, 7]],
        ([5, 6, 7],),
        [(5, 6, 7)],
        np.array([5, 6, 7]).tolist(),
        [np.array([5, 6, 7])],
        [torch.tensor([5, 6, 7])],
        [[np.int64(5), np.int32(6), 7]],
        [np.int64(5), np.int64(6), np.int64(7)],
        [[torch.tensor(5), 6, 7]],
        {"prompt_token_ids": np.array([5, 6, 7], dtype=np.int32)},
    ],
    ids=repr,
)
def test_ids_are_taken_in_every_form_that_holds_ints(llm, prompts):
    """Would catch numpy's and torch's integers refused inside a list, and a list of lists taken for one prompt."""
    want = llm.generate({"prompt_token_ids": [5, 6, 7]}, GREEDY, use_tqdm=False)
    got = llm.generate(prompts, GREEDY, use_tqdm=False)
    assert tokens(got) == tokens(want)
    assert got[0].prompt_token_ids == [5, 6, 7] and {type(token) for token in got[0].prompt_token_ids} == {
        int
    }


@pytest.mark.parametrize("token", [True, 1.0, "1", None, np.float32(1), np.bool_(True), torch.tensor(1.0)])
def test_what_is_no_int_is_no_token_id(llm, token):
    """Would catch True taken for token 1, and a float cut to an int."""
    with pytest.raises(TypeError, match="must contain only integers"):
        llm.generate({"prompt_token_ids": [5, token]}, GREEDY, use_tqdm=False)


def test_several_lists_of_ids_are_several_prompts():
    """Would catch the lists joined, or the first one alone."""
    assert as_list([[1, 2], [3]]) == [[1, 2], [3]]
    assert as_list([1, 2]) == [[1, 2]]
    assert as_list(["a", [1]]) == ["a", [1]]


@pytest.mark.parametrize("prompt", ["\ud800", "a\udfffb", {"prompt": "x\ud83d"}])
def test_a_lone_surrogate_is_refused_with_its_place(llm, prompt):
    """Would catch the TypeError of `tokenizers`, which says that a string is no string."""
    with pytest.raises(ValueError, match="is a lone surrogate"):
        llm.generate(prompt, GREEDY, use_tqdm=False)


@pytest.mark.parametrize(
    "call",
    [
        lambda llm: llm.generate([""]),
        lambda llm: llm.generate(["fine", {"prompt_token_ids": []}]),
        lambda llm: llm.generate(["x"] * 3, [SamplingParams()] * 2),
        lambda llm: llm.generate([["a"]]),
    ],
)
def test_a_refused_call_shows_no_progress_bar(llm, call, capsys):
    """Would catch a bar that is opened before the check and stays on the screen."""
    with pytest.raises((ValueError, TypeError)):
        call(llm)
    assert capsys.readouterr().err == ""


# -- chat -------------------------------------------------------------------------------------------

TEMPLATE = "{% for m in messages %}[{{ m['role'] }}{{ m.get('name', '') }}] {{ m['content'] }}\n{% endfor %}"


def test_parts_of_text_are_joined_and_other_keys_reach_the_template(llm):
    """Would catch content parts refused or printed as Python lists, and keys that a template reads dropped."""
    message = {"role": "user", "name": "-Ada", "content": [{"type": "text", "text": t} for t in ("a", "b")]}
    prompt = render_chat(llm.get_tokenizer(), [message], TEMPLATE)
    assert prompt["prompt"] == "[user-Ada] a\nb\n"
    assert prompt["prompt_token_ids"] == llm.get_tokenizer().encode(
        prompt["prompt"], add_special_tokens=False
    )
    (output,) = llm.chat([message], GREEDY, use_tqdm=False, chat_template=TEMPLATE)
    assert output.prompt == prompt["prompt"]


@pytest.mark.parametrize("kind", ["image_url", "input_audio", None])
def test_parts_that_are_not_text_are_refused_by_name(llm, kind):
    """Would catch a picture that is silently left out of the prompt."""
    messages = [{"role": "user", "content": [{"type": kind, "text": "x"}]}]
    with pytest.raises(ValueError, match=f"got a part of type {kind!r}"):
        llm.chat(messages, GREEDY, use_tqdm=False, chat_template=TEMPLATE)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ messages[0]['content' }}", "TemplateSyntaxError"),
        ("{{ raise_exception('only one turn') }}", "only one turn"),
        ("{{ messages[5].content }}", "UndefinedError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
    ],
)
def test_a_broken_template_is_a_value_error_with_its_own_words(llm, template, reason):
    """Would catch an exception of jinja2 that does not say what was being done."""
    with pytest.raises(ValueError, match=f"the chat template cannot render these messages.*{reason}"):
        llm.chat([{"role": "user", "content": "hi"}], GREEDY, use_tqdm=False, chat_template=template)


# -- bad words --------------------------------------------------------------------------------------

WORDS = [
    "Einstein",
    "cat",
    "Paris",
    "physics",
    "New York",
    "7",
    "hello",
    "é",
    "don't",
    "CPU",
    "ing",
    "Zürich",
]


@pytest.mark.model
@pytest.mark.parametrize("word", WORDS)
def test_a_bad_word_cannot_be_completed_at_the_start_after_a_space_or_on_a_new_line(smollm2, word):
    """Would catch " Einstein", which vLLM's rule allows: it has another number of tokens than "Einstein"."""
    tokenizer = load_tokenizer(smollm2)
    forms = bad_word_forms(tokenizer, [word], len(tokenizer))
    for before in ("", " ", "\n", "The ", "(a)\n", "a, b "):
        ids = tokenizer.encode(before + word, add_special_tokens=False)
        assert any(tuple(ids[-len(form) :]) == form for form in forms), f"{before + word!r} is allowed"
    # Negative control: other words stay allowed.
    ids = tokenizer.encode("The weather is fine", add_special_tokens=False)
    assert not any(tuple(ids[i : i + len(f)]) == f for f in forms for i in range(len(ids)))


def test_a_tokenizer_that_puts_a_space_before_every_text_has_a_form_for_the_start_of_a_line():
    """Would catch Llama 2's "▁the" forbidden alone: on a new line there is no space."""
    tokenizer = llama2("bpe")
    forms = bad_word_forms(tokenizer, ["the"], 10**6)
    for text in ("the", "cat the", "cat\nthe"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert any(tuple(ids[-len(form) :]) == form for form in forms), text


@pytest.mark.model
def test_the_engine_does_not_write_a_bad_word(smollm2):
    """Would catch forms that are made and then not looked at: without bad_words the model writes "Paris"."""
    llm = LLM(str(smollm2), num_blocks=64, max_model_len=256)
    params = [SamplingParams(temperature=0, max_tokens=12, bad_words=words) for words in ([], ["Paris"])]
    free, barred = llm.generate(["The capital of France is"] * 2, params, use_tqdm=False)
    assert "Paris" in free.outputs[0].text
    assert "Paris" not in barred.outputs[0].text


@pytest.mark.model
def test_the_forms_that_the_docstring_shows_are_smollm2s(smollm2):
    """Would catch examples of another tokenizer, and a line break that cannot be forbidden: two line breaks
    are one token, so nothing is left of the second.
    """
    tokenizer = load_tokenizer(smollm2)
    forms = bad_word_forms(tokenizer, ["cat", "Einstein", "7"], 49_152)
    assert forms == ((9786,), (2644,), (53, 13817), (16211,), (39,), (216, 39))
    assert all(str(list(form)) in bad_word_forms.__doc__ for form in forms)
    assert bad_word_forms(tokenizer, ["\n"], 49_152) == ((198,), (3717,))
