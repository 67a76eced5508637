"""Incremental detokenization against `tokenizer.decode` of everything; stop strings against brute force."""

import functools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from minivllm.detokenizer import IncrementalDetokenizer, StopChecker
from minivllm.weights.loader import load_tokenizer
from tests.helpers_tokenizer import llama2

CUT = "\ufffd"

TEXTS = {
    "plain": "The quick brown fox jumps over the lazy dog. " * 4,
    "emoji": "Hi 😀😀 family 👨‍👩‍👧‍👦, flags 🇫🇷🇯🇵, thumbs 👍🏽 done 🎉",
    "chinese": "你好,世界。大规模语言模型的高效内存管理。龘靐齉",
    "mixed": "Ünïcödé café — naïve; кириллица, עברית, العربية, ไทย, 日本語テキスト",
    "combining": "e\u0301 a\u0308\u0323 n\u0303 क\u094dष\u093f o\u0302\u0303",
    "code": "def f(x):\n\treturn {'a': [x ** 2 for _ in range(10)]}  # ünïcode\n\n\n    pass\r\n",
    "spaces": "  a   b\n\n\n c\t\t d     ",
    "replacement": f"a real {CUT} in the text {CUT}{CUT}{CUT}{CUT}{CUT} and after",
    "empty": "",
}


@functools.cache
def load_once(folder):
    """A tokenizer takes a moment to load, and hypothesis calls a test many times."""
    return load_tokenizer(folder)


@pytest.fixture
def byte_tokenizer(tiny_llama):
    """Token id = byte value: every character that is not ASCII is cut."""
    return load_once(tiny_llama)


@pytest.fixture(scope="module", params=["bpe", "unigram"])
def llama2_tokenizer(request):
    return llama2(request.param)


def detokenize(tokenizer, token_ids, prompt=(), skip_special_tokens=True):
    """The pieces in the order they are given out, the last one at the end."""
    detokenizer = IncrementalDetokenizer(tokenizer, list(prompt), skip_special_tokens)
    pieces = [detokenizer.append(token) for token in token_ids]
    pieces.append(detokenizer.flush())
    assert detokenizer.text == "".join(pieces)
    assert detokenizer.flush() == ""  # nothing comes twice
    return pieces


def assert_decodes(tokenizer, token_ids, prompt=(), skip_special_tokens=True):
    pieces = detokenize(tokenizer, token_ids, prompt, skip_special_tokens)
    assert "".join(pieces) == tokenizer.decode(token_ids, skip_special_tokens=skip_special_tokens)
    return pieces


@pytest.mark.parametrize("name", TEXTS)
def test_the_pieces_of_a_text_in_bytes_join_to_the_text(byte_tokenizer, name):
    """Would catch a character that comes as U+FFFD because its bytes were decoded apart."""
    token_ids = list(TEXTS[name].encode())
    pieces = assert_decodes(byte_tokenizer, token_ids, prompt=b"Hello")
    assert "".join(pieces) == TEXTS[name]
    if name != "replacement":
        assert not any(CUT in piece for piece in pieces)
    # The known wrong way, one token at a time, differs wherever a character is cut.
    one_by_one = "".join(byte_tokenizer.decode([token]) for token in token_ids)
    assert (one_by_one == TEXTS[name]) == TEXTS[name].isascii()


@pytest.mark.model
@pytest.mark.parametrize("name", TEXTS)
def test_the_pieces_of_a_real_text_join_to_the_text(smollm2, name):
    """Would catch spaces lost between tokens, and bytes of SmolLM2's tokens that are decoded apart."""
    tokenizer = load_once(smollm2)
    token_ids = tokenizer.encode(TEXTS[name], add_special_tokens=False)
    pieces = assert_decodes(tokenizer, token_ids, prompt=tokenizer.encode("Hello"))
    assert "".join(pieces) == TEXTS[name]


@pytest.mark.model
def test_special_tokens_are_skipped_or_kept_as_asked(smollm2):
    """Would catch `<|im_end|>` in an answer, and its loss where it was asked for."""
    tokenizer = load_once(smollm2)
    text = "<|im_start|>user\nHi 😀<|im_end|>\n<|im_start|><|im_end|><|im_end|> x"
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    assert "".join(assert_decodes(tokenizer, token_ids, skip_special_tokens=False)) == text
    assert "".join(assert_decodes(tokenizer, token_ids)) == "user\nHi 😀\n x"


@pytest.mark.model
@settings(max_examples=30, deadline=None)
@given(st.data())
def test_random_tokens_of_a_real_vocabulary_decode_like_the_whole(smollm2, data):
    """Would catch a window that moves on in the middle of a character; a real model wanders there, too."""
    tokenizer = load_once(smollm2)
    ids = st.lists(st.integers(0, len(tokenizer) - 1), max_size=50)
    assert_decodes(tokenizer, data.draw(ids), data.draw(ids))


# Bytes as they come from text, from noise, and from text that was cut into pieces.
BYTES = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=25).map(str.encode),
    st.lists(st.sampled_from(["é", "😀", "龘", "a", CUT]).map(str.encode).flatmap(lambda b: st.integers(0, len(b)).map(lambda n: b[:n])), max_size=30).map(b"".join),
)  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(prompt=BYTES, output=BYTES, specials=st.lists(st.integers(0, 59), max_size=3))
def test_any_bytes_decode_like_the_whole(tiny_llama, prompt, output, specials):
    """Would catch text that changes after it was given out, and the prompt coming back as output.

    `tokenizers.DecodeStream` does the latter if the prompt ends in a cut character.
    """
    token_ids = list(output)
    for position in specials:
        token_ids.insert(position, 257)
    tokenizer = load_once(tiny_llama)
    assert_decodes(tokenizer, token_ids, prompt)
    assert_decodes(tokenizer, token_ids, prompt, skip_special_tokens=False)


@pytest.mark.parametrize("prompt", ["", "Hello", "caf\u00e9", "龘"])
@pytest.mark.parametrize("num_cut", [1, 2, 3])
def test_a_character_that_is_cut_by_the_end_is_one_replacement_character(byte_tokenizer, prompt, num_cut):
    """Would catch the last bytes being lost, which Hugging Face shows as U+FFFD."""
    token_ids = [*b"ok ", *"😀".encode()[:num_cut]]
    pieces = assert_decodes(byte_tokenizer, token_ids, prompt.encode())
    assert pieces == ["o", "k", " ", *[""] * num_cut, CUT]


def test_a_prompt_cut_inside_a_character_does_not_come_back_as_output(byte_tokenizer):
    """Would catch DecodeStream's way: "caf" + half a character as prompt gives "café ok" as output."""
    pieces = assert_decodes(byte_tokenizer, [0xA9, *b" ok"], prompt=[*b"caf", 0xC3])
    assert "".join(pieces) == CUT + " ok"  # what decoding the output says, too


def test_the_leading_space_depends_on_the_prompt(llama2_tokenizer):
    """Would catch "theprompt" + "goes on" without a space: such decoders strip it from what they are given."""
    the, cat, s = llama2_tokenizer.convert_tokens_to_ids(["▁the", "▁cat", "s"])
    assert "".join(detokenize(llama2_tokenizer, [cat, s, the], prompt=[the])) == " cats the"
    assert "".join(detokenize(llama2_tokenizer, [s, the], prompt=[the, cat])) == "s the"
    assert "".join(detokenize(llama2_tokenizer, [cat] * 50, prompt=[the])) == " cat" * 50
    assert "".join(detokenize(llama2_tokenizer, [cat, the], prompt=[])) == "cat the"


def test_a_completion_that_continues_no_text_begins_as_the_decoder_begins(llama2_tokenizer):
    """Would catch " the" after a prompt of one special token, and "the" where the prompt is a single space."""
    space, the, start = llama2_tokenizer.convert_tokens_to_ids(["▁", "▁the", "<s>"])
    assert "".join(detokenize(llama2_tokenizer, [the, the], prompt=[start])) == "the the"
    assert "".join(assert_decodes(llama2_tokenizer, [the, the], prompt=[])) == "the the"
    assert "".join(detokenize(llama2_tokenizer, [the, the], prompt=[space])) == " the the"
    assert "".join(detokenize(llama2_tokenizer, [space, the], prompt=[start])) == " the"
    kept = detokenize(llama2_tokenizer, [the, start, the], prompt=[start], skip_special_tokens=False)
    assert "".join(kept) == " the<s> the"


# Four bytes, three, two; joined by U+200D (three bytes); two letters that make one flag; a run without spaces.
CUT_TEXTS = ["the 😀 cat", "the 👨‍👩‍👧‍👦🇫🇷 é", "龘靐齉 the cat 世界", "😀😀👍🏽世", f"a{CUT}😀{CUT}"]


def num_pending_bytes(data):
    """How many bytes at the end of `data` are the beginning of a character; the rest are characters."""
    return next(
        n for n in range(4) if data[: len(data) - n].decode(errors="ignore").encode() == data[: len(data) - n]
    )


@pytest.mark.parametrize("text", CUT_TEXTS)
def test_an_end_anywhere_in_byte_tokens_costs_the_cut_character_only(llama2_tokenizer, text):
    """Would catch 😀 and half of the next one given out as 😀?????: Llama 2's decoder rewrites the run."""
    token_ids = llama2_tokenizer.encode(text, add_special_tokens=False)
    the = llama2_tokenizer.encode("the", add_special_tokens=False)
    assert llama2_tokenizer.decode(token_ids) == text
    rewritten = 0
    for end in range(len(token_ids) + 1):
        # The oracle decodes whole characters only; each byte token is one byte.
        bytes_so_far = bytes(token - 1 for token in token_ids[:end] if 1 <= token <= 256)
        num_pending = num_pending_bytes(bytes_so_far)
        whole = token_ids[: end - num_pending]
        want = llama2_tokenizer.decode(whole) + CUT * (num_pending > 0)
        assert "".join(detokenize(llama2_tokenizer, token_ids[:end])) == want
        in_a_text = llama2_tokenizer.decode(the + whole)[len("the") :] + CUT * (num_pending > 0)
        assert "".join(detokenize(llama2_tokenizer, token_ids[:end], prompt=the)) == in_a_text
        rewritten += llama2_tokenizer.decode(token_ids[:end]) != want
    assert rewritten > 0, "the decoder alone would have done"


@pytest.mark.model
@pytest.mark.parametrize("text", CUT_TEXTS)
def test_an_end_anywhere_is_decoded_as_the_tokenizer_decodes_it(smollm2, byte_tokenizer, text):
    """Would catch a cut character that is lost, or given out twice, in a byte-level vocabulary."""
    for tokenizer in (load_once(smollm2), byte_tokenizer):
        token_ids = tokenizer.encode(text, add_special_tokens=False)
        for end in range(len(token_ids) + 1):
            pieces = assert_decodes(tokenizer, token_ids[:end], prompt=tokenizer.encode("a"))
            assert pieces[-1] in ("", CUT)
            assert not any(piece.endswith(CUT) for piece in pieces[:-1]) or CUT in text


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(alphabet="athe. é😀龘\u200d🇫\n\t" + CUT, max_size=20),
    kind=st.sampled_from(["bpe", "unigram"]),
)
def test_any_whole_text_of_byte_tokens_comes_back(text, kind):
    """Would catch a byte token beside a character of the vocabulary, or U+FFFD itself, read as something else."""
    tokenizer = llama2(kind)
    token_ids = tokenizer.encode(text, add_special_tokens=False)
    assert "".join(detokenize(tokenizer, token_ids)) == tokenizer.decode(token_ids)


def test_words_without_marked_spaces_are_joined_as_the_decoder_joins_them():
    """Would catch a rule that fits only vocabularies which write their spaces, as BERT's does not."""
    vocab = {"[UNK]": 0, "cat": 1, "##s": 2, "the": 3, "##é": 4}
    backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]"))
    backend.decoder = decoders.WordPiece(cleanup=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert "".join(assert_decodes(tokenizer, [3, 1, 2, 1, 4, 4])) == "the cats catéé"
    assert "".join(detokenize(tokenizer, [2, 3, 1, 2], prompt=[1])) == "s the cats"


class CountingTokenizer:
    """Adds up the tokens it is asked to decode. It has no backend, as a tokenizer written in Python."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer
        self.added_tokens_decoder = tokenizer.added_tokens_decoder
        self.convert_ids_to_tokens = tokenizer.convert_ids_to_tokens
        self.num_decoded = 0

    def decode(self, token_ids, **options):
        self.num_decoded += len(token_ids)
        return self.tokenizer.decode(token_ids, **options)


@pytest.mark.parametrize(
    "unit",
    [b"a", "é".encode(), "😀".encode(), b"\x80", b"\xf0", b"\x80a"],
    ids=["a", "é", "emoji", "80", "f0", "80a"],
)
def test_each_token_costs_the_same_and_the_prompt_nothing(byte_tokenizer, unit):
    """Would catch decoding everything again for each token, also where no character ever becomes whole."""

    def work(length):
        tokenizer = CountingTokenizer(byte_tokenizer)
        detokenize(tokenizer, (unit * length)[:length], prompt=unit * 1000)
        return tokenizer.num_decoded

    assert [work(length) for length in (0, 1, 200, 400)] == [0, 3, 600, 1200]


def test_a_space_before_a_full_stop_stays():
    """Would catch the text depending on `clean_up_tokenization_spaces`: a piece given out cannot be tidied."""
    tokenizer = llama2("unigram", clean_up_tokenization_spaces=True)
    token_ids = tokenizer.encode("the cat .", add_special_tokens=False)
    assert tokenizer.decode(token_ids) == "the cat."
    assert "".join(detokenize(tokenizer, token_ids)) == "the cat ."


# -- stop strings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stops", "include", "pieces", "expected"),
    [
        (("b",), False, ["abc"], ("b", 1)),
        (("b",), True, ["abc"], ("b", 2)),
        (("bc",), False, ["ab", "cd"], ("bc", 1)),  # across two pieces
        (("bcd",), True, ["ab", "c", "de"], ("bcd", 4)),
        (("c", "b"), False, ["abc"], ("b", 1)),  # the one that begins first, not the one listed first
        (("ab", "a"), False, ["xab"], ("a", 1)),  # both begin here: the one that is complete first
        (("aa",), False, ["a", "aa"], ("aa", 0)),
        (("x",), False, ["abc"], None),
        ((), False, ["abc"], None),
        (("abc",), False, ["ab", "", "xabc"], ("abc", 3)),
        (("é\n",), False, ["caf", "é", "\n"], ("é\n", 3)),
    ],
)
def test_a_stop_string_is_found_where_it_begins(stops, include, pieces, expected):
    """Would catch a stop string across tokens being missed, and a cut in the wrong place."""
    checker, text, found = StopChecker(stops, include), "", None
    for piece in pieces:
        assert found is None, "found too early"
        text += piece
        found = checker.check(text, len(piece))
    assert found == expected


PIECES = st.lists(st.text(alphabet="ab", max_size=4), max_size=12)
STOPS = st.lists(st.text(alphabet="ab", min_size=1, max_size=4), min_size=1, max_size=3).map(tuple)


def first_stop(text, old_length, stops):
    """Brute force: of the stop strings that end after `old_length`, the first to begin, then the shortest."""
    ends = [
        (start, len(stop), stop)
        for start in range(len(text))
        for stop in stops
        if text.startswith(stop, start) and start + len(stop) > old_length
    ]
    return min(ends, default=None)


@settings(max_examples=150, deadline=None)
@given(pieces=PIECES, stops=STOPS, include=st.booleans())
def test_streaming_never_shows_a_character_that_is_cut_later(pieces, stops, include):
    """Would catch too few characters held back: half a stop string on the screen cannot be taken back."""
    checker, text, shown = StopChecker(stops, include), "", ""
    for piece in pieces:
        old_length, text = len(text), text + piece
        found, expected = checker.check(text, len(piece)), first_stop(text, old_length, stops)
        assert (found is None) == (expected is None)
        if found is not None:
            stop, cut = found
            start, length, expected_stop = expected
            assert (stop, cut) == (expected_stop, start + length if include else start)
            assert text[:cut].startswith(shown)
            return
        shown = text[: max(len(shown), len(text) - checker.num_held_back)]
        assert len(text) - len(shown) <= max(map(len, stops)) - 1  # and no more than that is held back


def test_holding_back_one_character_less_would_show_too_much():
    """Would catch the test above being unable to fail: here is the text that breaks an off-by-one."""
    checker = StopChecker(("abc",), include_in_output=False)
    assert checker.num_held_back == 2
    shown = "xab"[: 3 - (checker.num_held_back - 1)]
    _, cut = checker.check("xabc", 1)
    assert not "xabc"[:cut].startswith(shown)
    assert StopChecker(("abc", "z"), include_in_output=True).num_held_back == 0
    assert StopChecker((), include_in_output=False).num_held_back == 0


class CountingText(str):
    """Adds up the characters that `find` has to look at."""

    num_searched = 0

    def find(self, sub, start=0):
        CountingText.num_searched += len(self) - start
        return super().find(sub, start)


def test_each_character_is_searched_a_bounded_number_of_times():
    """Would catch the whole text being searched again after every token."""
    checker = StopChecker(("stop", "x"), include_in_output=False)
    CountingText.num_searched = 0
    for length in range(1, 1001):
        assert checker.check(CountingText("a" * length), 1) is None
    assert 1000 <= CountingText.num_searched <= 1000 * (4 + 1)
