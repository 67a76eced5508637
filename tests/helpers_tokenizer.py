"""A tokenizer with byte fallback, small enough to be built in a test: what Llama 2's does, on 300 tokens."""

import functools

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

BYTE_TOKENS = [f"<0x{byte:02X}>" for byte in range(256)]
LETTERS = ["▁", *"abcdefghijklmnopqrstuvwxyz.", "é", "\ufffd"]
MERGES = [("▁", "t"), ("▁t", "h"), ("▁th", "e"), ("▁", "c"), ("▁c", "a"), ("▁ca", "t"), ("▁", "▁")]


@functools.cache
def llama2(kind, **options):
    """As Llama 2 encodes and decodes: "▁" is a space, put in front of a text and stripped from it again.

    What is not in the vocabulary becomes byte tokens. `kind`: "bpe" (Llama 2 itself) or "unigram".
    """
    pieces = ["<unk>", *BYTE_TOKENS, *LETTERS, *(left + right for left, right in MERGES)]
    if kind == "bpe":
        vocab = {piece: i for i, piece in enumerate(pieces)}
        model = models.BPE(vocab, MERGES, byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    else:
        scores = [(piece, float(len(piece)) if piece not in BYTE_TOKENS else 0.0) for piece in pieces]
        model = models.Unigram(scores, unk_id=0, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken("<s>", special=True)])
    options = {"clean_up_tokenization_spaces": False} | options
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, **options)
