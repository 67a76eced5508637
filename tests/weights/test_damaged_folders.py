"""Every file of a good model folder, damaged in many ways: an error names the file and says what to do.

A folder comes over a network, through an unzip, past an editor. `open_folder` does what `LLM` does with one.
It may accept a damage (most keys of the files are not used), or raise a ValueError or an OSError; a KeyError
from the inside, a MemoryError or a question on the terminal are what these tests look for.
"""

import json
import shutil
import struct

import pytest
import torch
from safetensors.torch import load_file, save_file

from minivllm.backends.attention_kernels import make_attention_backend
from minivllm.weights.download import resolve_model
from minivllm.weights.generation_config import default_sampling_params
from minivllm.weights.loader import load_model, load_model_config, load_tokenizer
from minivllm.weights.random_model import random_llama

INDEX = "model.safetensors.index.json"
# What replaces the value of a key. The numbers: out of range, not finite, absurd; null is often allowed.
WRONG = [None, "x", "7", True, [], [None], [[]], {}, {"a": {}}, -1, 0, 1.5, 10**12, 10**400, float("nan"),
         float("inf"), -1e-5]  # fmt: skip


def open_folder(folder):
    """What `LLM(folder)` reads: config, weights, tokenizer, sampling defaults; a text goes there and back."""
    folder = resolve_model(str(folder))
    config = load_model_config(folder)
    attention = make_attention_backend("torch", config, 4, torch.float32, "cpu")
    model = load_model(folder, attention, torch.float32, "cpu")
    default_sampling_params(folder)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer("ab")["input_ids"]).strip() == "ab"
    if isinstance(tokenizer.chat_template, str):
        tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], tokenize=False)
    return model


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A folder with every file that is read: two shards and their index, tokenizer, generation config."""
    folder = random_llama(tmp_path_factory.mktemp("good") / "model", byte_tokenizer=True, num_shards=2)
    config = json.loads((folder / "config.json").read_text())
    llama3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0}
    config |= {"rope_scaling": llama3 | {"original_max_position_embeddings": 64}}
    (folder / "config.json").write_text(json.dumps(config))
    generation = {"eos_token_id": [257], "temperature": 0.6, "top_k": 40, "top_p": 0.9, "min_p": 0.1}
    generation |= {"bos_token_id": 256, "repetition_penalty": 1.1, "max_new_tokens": 9, "do_sample": True}
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


@pytest.fixture
def damaged(good, tmp_path):
    """A copy of the good folder to be damaged."""
    return shutil.copytree(good, tmp_path / "model")


def refusal(folder, file=None):
    """The text of the error that the folder gives, checked to be useful; None if it opens."""
    try:
        open_folder(folder)
    except (ValueError, OSError) as error:
        text = str(error)
        assert str(folder) in text, f"names no path: {text}"
        assert file is None or file in text, f"does not name {file}: {text}"
        assert len(text) < 1000, f"too long to read: {text}"
        return text
    return None


def names_of(folder):
    """The files of the folder."""
    return sorted(path.name for path in folder.iterdir())


def test_the_good_folder_opens(good):
    """Would catch a test that is about a folder which nothing could open."""
    assert refusal(good) is None
    assert names_of(good) == [
        "config.json", "generation_config.json", "model-00001-of-00002.safetensors",
        "model-00002-of-00002.safetensors", INDEX, "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(path.read_bytes()[:-2]),
        lambda path: path.write_bytes(b"\xff\xfe" + path.read_bytes()),
        lambda path: path.write_bytes(b"[" * 100_000),
        lambda path: path.write_text("<html>404 Not Found</html>"),
        lambda path: path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 7\n"),
        lambda path: path.write_text("null"),
        lambda path: path.write_text("[1, 2]"),
        lambda path: path.write_text('"text"'),
    ],
    ids=[
        "empty",
        "half",
        "two-bytes-less",
        "bom",
        "nested",
        "html",
        "git-lfs-pointer",
        "null",
        "list",
        "string",
    ],
)
def test_a_file_with_other_content_is_refused_by_name(damaged, good, damage):
    """Would catch an error of json, safetensors or tokenizers which does not say which file it read."""
    for name in names_of(good):
        damage(damaged / name)
        assert refusal(damaged, name) is not None, name
        shutil.copy(good / name, damaged / name)


def test_a_folder_where_a_file_belongs_is_refused_by_name(damaged, good):
    """Would catch a bare IsADirectoryError (and its PermissionError on Windows)."""
    for name in names_of(good):
        (damaged / name).unlink()
        (damaged / name).mkdir()
        assert refusal(damaged, name) is not None, name
        (damaged / name).rmdir()
        shutil.copy(good / name, damaged / name)


def test_a_missing_file_is_named(damaged, good):
    """Would catch a KeyError for want of a tensor. Two files may be absent: they have defaults."""
    for name in names_of(good):
        (damaged / name).unlink()
        optional = name in ("generation_config.json", "tokenizer_config.json")
        assert (refusal(damaged) is None) == optional, name
        shutil.copy(good / name, damaged / name)


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json", INDEX])
def test_any_key_of_any_wrong_type_is_accepted_or_refused_by_name(damaged, name):
    """Would catch a KeyError, TypeError, MemoryError or OverflowError from the depth for one bad value."""
    good = json.loads((damaged / name).read_text())
    num_refused = 0
    for key in good:
        for value in WRONG:
            (damaged / name).write_text(json.dumps(good | {key: value}))
            num_refused += refusal(damaged, "tokenizer" if name.startswith("tokenizer") else name) is not None
    assert num_refused >= len(WRONG)


@pytest.mark.parametrize("key", ["rope_theta", "rope_type", "factor", "low_freq_factor", "high_freq_factor",
                                 "original_max_position_embeddings"])  # fmt: skip
def test_any_wrong_rope_setting_is_refused_by_name(damaged, key):
    """Would catch a theta or a factor of 0 or NaN, which gives NaN or one angle for all positions."""
    path = damaged / "config.json"
    good = json.loads(path.read_text())
    for value in WRONG:
        path.write_text(json.dumps(good | {"rope_scaling": good["rope_scaling"] | {key: value}}))
        text = refusal(damaged, "config.json")
        assert text is not None or value in (1.5, 10**12), (key, value)


@pytest.mark.parametrize("key", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                                 "num_attention_heads", "num_key_value_heads", "head_dim",
                                 "max_position_embeddings", "rms_norm_eps", "rope_theta",
                                 "attention_bias", "mlp_bias", "tie_word_embeddings"])  # fmt: skip
def test_a_number_that_the_model_uses_has_a_type_and_a_range(damaged, key):
    """Would catch `rms_norm_eps` of -1 or NaN, a size of True, a flag of 0: nonsense without an error."""
    path = damaged / "config.json"
    good = json.loads(path.read_text())
    for value in ("x", "7", [], {}, -1, 0, 10**400, float("nan"), float("inf"), [None]):
        path.write_text(json.dumps(good | {key: value}))
        with pytest.raises(ValueError, match=f"config.json.*{key}"):
            load_model_config(damaged)


@pytest.mark.parametrize("size", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                                  "head_dim", "max_position_embeddings"])  # fmt: skip
@pytest.mark.parametrize("absurd", [8_388_610, 2_000_000_000, 10**400])
def test_an_absurd_size_is_refused_before_memory_is_taken(damaged, size, absurd):
    """Would catch a process that is killed, or builds layers for hours, for one digit too many."""
    path = damaged / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {size: absurd}))
    assert refusal(damaged, "config.json") is not None


def edit_header(path, edit):
    """Rewrite the JSON header of a safetensors file: 8 bytes of length, the header, the values."""
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    edit(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + content[8 + length :])


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "F99"},
        {"dtype": "I8"},
        {"dtype": "BF16"},
        {"dtype": None},
        {"shape": [1]},
        {"shape": [-1, 64]},
        {"shape": [1 << 62, 1 << 62]},
        {"shape": "x"},
        {"shape": []},
        {"data_offsets": [0, 1 << 60]},
        {"data_offsets": [8, 0]},
        {"data_offsets": None},
    ],
    ids=str,
)
def test_a_damaged_weight_header_names_the_file(damaged, change):
    """Would catch a view of memory that is not the tensor's, and an error without a file name."""
    name = "model-00001-of-00002.safetensors"
    edit_header(damaged / name, lambda header: header["model.embed_tokens.weight"].update(change))
    assert refusal(damaged, name) is not None


@pytest.mark.parametrize("length", [0, 1, 1 << 40, (1 << 64) - 1])
def test_an_absurd_header_length_names_the_file(damaged, length):
    """Would catch an attempt to read a header of an exabyte."""
    path = damaged / "model-00002-of-00002.safetensors"
    path.write_bytes(struct.pack("<Q", length) + path.read_bytes()[8:])
    assert refusal(damaged, path.name) is not None


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_weight_that_is_not_finite_is_named(damaged, dtype, value):
    """Would catch a model whose every text is one token: all its logits are NaN."""
    path = damaged / "model-00002-of-00002.safetensors"
    weights = {name: weight.to(dtype) for name, weight in load_file(path).items()}
    save_file(weights, path)
    assert refusal(damaged) is None  # the control: the dtype alone is not refused
    name = sorted(weights)[-1]
    weights[name].view(-1)[-1] = value
    save_file(weights, path)
    assert f"{path}: the weight {name} is not finite" in refusal(damaged)


@pytest.mark.parametrize("dtype", [torch.int8, torch.int32, torch.uint8, torch.bool, torch.float8_e4m3fn])
def test_a_weight_that_is_no_plain_floating_point_is_named(damaged, dtype):
    """Would catch quantized weights, 127 times too large, taken for what they stand for."""
    path = damaged / "model-00001-of-00002.safetensors"
    weights = load_file(path)
    name = sorted(weights)[0]
    save_file(weights | {name: torch.ones(weights[name].shape).to(dtype)}, path)
    assert f"{path}: the weight {name} is stored as {dtype}" in refusal(damaged)


def test_a_wrong_shape_and_a_lost_weight_name_the_folder(damaged):
    """Would catch a message that leaves open which of several models on the disk is meant."""
    path = damaged / "model-00001-of-00002.safetensors"
    weights = load_file(path)
    save_file(weights | {"model.embed_tokens.weight": torch.ones(258, 63)}, path)
    assert "model.embed_tokens.weight has shape (258, 63)" in refusal(damaged)
    del weights["model.embed_tokens.weight"]
    save_file(weights, path)
    assert "missing model.embed_tokens.weight" in refusal(damaged)


def test_a_list_of_many_names_is_cut(damaged):
    """Would catch an error of 300 lines, which hides what it says."""
    for path in damaged.glob("*.safetensors"):
        save_file({f"module.{name}": weight for name, weight in load_file(path).items()}, path)
    text = refusal(damaged)
    assert "and 17 more; unexpected" in text and "lm_head.weight" in text
