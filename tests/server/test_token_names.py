"""Names and bytes of tokens that cut a character, in each kind of vocabulary."""

from types import SimpleNamespace

import pytest

from minivllm.server.token_names import TokenNames

# Token, what it decodes to alone, its bytes, its name.
TOKENS = [
    ("ĠParis", " Paris", b" Paris", " Paris"),  # byte-level
    ("ð", "\ufffd", b"\xf0", r"bytes:\xf0"),
    ("ĠðŁĺ", " \ufffd", b" \xf0\x9f\x98", r"bytes: \xf0\x9f\x98"),
    ("ï¿½", "\ufffd", "\ufffd".encode(), "\ufffd"),  # U+FFFD itself
    ("<0xF0>", "\ufffd", b"\xf0", r"bytes:\xf0"),  # byte fallback
    ("<0x41>", "A", b"A", "A"),
    ("é", "é", "é".encode(), "é"),  # whole, though a byte-level vocabulary would mean byte E9
]


@pytest.mark.parametrize("token, text, raw, name", TOKENS, ids=[token for token, *_ in TOKENS])
def test_a_token_has_its_own_bytes_and_a_name_of_its_own(token, text, raw, name):
    """Would catch bytes of U+FFFD for a cut character, and bytes E9 for an "é" that is whole."""
    names = TokenNames(SimpleNamespace(get_vocab=lambda: {token: 7}))
    assert names.bytes_of(7, text) == raw
    assert names.name(7, text) == name
