"""Config, weights, tokenizer and random models, against transformers reading the same folder."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from minivllm import LLM, SamplingParams
from minivllm.backends.attention_kernels import make_attention_backend
from minivllm.weights.loader import (
    iterate_weights,
    load_model,
    load_model_config,
    load_tokenizer,
    random_llama,
)

LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 2.0}
TRAINED = {"original_max_position_embeddings": 64}
SMALLEST = {
    "model_type": "llama",
    "vocab_size": 40,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
}


def write_config(folder, generation=None, **keys):
    """Write a config.json of the smallest keys plus `keys` into `folder`."""
    (folder / "config.json").write_text(json.dumps(SMALLEST | keys))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    return folder


def load_tiny(folder):
    """The folder's model in float32 on the CPU, with the plain backend."""
    attention = make_attention_backend("torch", load_model_config(folder), 4, torch.float32, "cpu")
    return load_model(folder, attention, torch.float32, "cpu")


def edit_weights(folder, edit):
    """Rewrite model.safetensors after `edit` changed the dict of tensors in place."""
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    return folder


# ---------------------------------------------------------------- config.json


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-5, "tie_word_embeddings": True},
        {"num_key_value_heads": None, "head_dim": None, "attention_bias": True, "mlp_bias": True},
        {"rope_theta": 5e5, "rope_scaling": None},
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "llama3", **LLAMA3, **TRAINED}},
        {"rope_scaling": {"rope_type": "llama3", **LLAMA3}, "max_position_embeddings": 77},
        {"rope_parameters": {"rope_theta": 2e4, "rope_type": "default"}},
        {"rope_parameters": {"rope_theta": 2e4, "rope_type": "linear", "factor": 8.0}},
        {"rope_parameters": {"rope_theta": 2e4, "rope_type": "llama3", **LLAMA3, **TRAINED}},
        {"architectures": ["LlamaForCausalLM"], "eos_token_id": [3, 4]},
    ],
)  # fmt: skip
def test_config_means_what_transformers_takes_it_to_mean(tmp_path, keys):
    """Catches a key read under one style only (rope_theta lost: fluent nonsense), and a wrong default."""
    from transformers import AutoConfig

    folder = write_config(tmp_path, **keys)
    theirs, ours = AutoConfig.from_pretrained(folder), load_model_config(folder)
    for key in (
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "max_position_embeddings", "rms_norm_eps", "attention_bias",
        "mlp_bias", "tie_word_embeddings",
    ):  # fmt: skip
        assert getattr(ours, key) == getattr(theirs, key), key
    assert ours.rope.rope_type == theirs.rope_parameters["rope_type"]
    for key, value in theirs.rope_parameters.items():
        if key not in ("type", "rope_type"):
            assert getattr(ours.rope, key) == value, key
    eos = theirs.eos_token_id
    assert ours.eos_token_ids == (tuple(eos) if isinstance(eos, list) else (eos,))


@pytest.mark.parametrize(
    ("eos", "generation", "expected"),
    [
        (5, None, (5,)),
        (None, None, ()),
        (5, {"eos_token_id": [5, 6]}, (5, 6)),
        (5, {"eos_token_id": 7}, (7,)),
        (5, {"temperature": 0.6}, (5,)),
        (5, {"eos_token_id": None}, (5,)),
        (5, {"eos_token_id": []}, ()),
        (-1, None, ()),
        ([5, -1, 6], None, (5, 6)),
    ],
)
def test_eos_ids_of_generation_config_win(tmp_path, eos, generation, expected):
    """Catches a chat model that does not stop at its end-of-turn token and talks on as the user."""
    folder = write_config(tmp_path, generation, eos_token_id=eos)
    assert load_model_config(folder).eos_token_ids == expected


@pytest.mark.parametrize("eos", ["5", True, [None], [5, "6"], 5.0, {"a": 5}, [[5]]])
@pytest.mark.parametrize("file", ["config.json", "generation_config.json"])
def test_an_eos_id_that_is_no_number_is_refused_by_name(tmp_path, eos, file):
    """Would catch `true` taken for token 1, and a string that breaks each request in the middle of a step."""
    keys, generation = ({"eos_token_id": eos}, None) if file == "config.json" else ({}, {"eos_token_id": eos})
    with pytest.raises(ValueError, match=f"/{file}: eos_token_id must be an int or a list of ints, got"):
        load_model_config(write_config(tmp_path, generation, **keys))


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        (
            {"architectures": ["MixtralForCausalLM"]},
            "config.json: the architecture MixtralForCausalLM is not supported; known: LlamaForCausalLM",
        ),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"model_type": "gemma"}, "got architectures = [] and model_type = 'gemma'"),
        (
            {"architectures": ["LlamaForCausalLM"], "model_type": "mistral"},
            "LlamaForCausalLM does not go with model_type = 'mistral'",
        ),
        ({"architectures": ["LlamaForCausalLM", "OtherForCausalLM"]}, "expected one of the architectures"),
        ({"architectures": "LlamaForCausalLM"}, "expected one of the architectures"),
        ({"hidden_act": "gelu"}, 'hidden_act = "gelu" changes what the model computes'),
        ({"pretraining_tp": 2}, "pretraining_tp = 2"),
        ({"quantization_config": {"quant_method": "gptq"}}, 'quantization_config = {"quant_method": "gptq"}'),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5"),
        ({"rope_parameters": {"rope_theta": 1.0, "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        (
            {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
            "rope scaling type 'dynamic' is not supported",
        ),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "rope scaling type 'yarn' is not supported"),
        ({"rope_scaling": {"rope_type": "linear"}}, "rope scaling type 'linear' needs factor"),
        ({"rope_scaling": {"rope_type": "llama3", "factor": 2.0}}, "'llama3' needs low_freq_factor"),
        ({"rope_parameters": {"full": {"rope_theta": 1.0}, "sliding": {}}}, "one set of rope settings"),
        ({"num_key_value_heads": 3}, "must be a multiple of num_key_value_heads"),
    ],
)
def test_what_would_change_the_maths_is_refused_by_name(tmp_path, keys, text):
    """Catches a model that loads without complaint and then gives wrong text."""
    with pytest.raises(ValueError, match=re.escape(text)):
        load_model_config(write_config(tmp_path, **keys))


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "config.json is missing"),
        ('{"model_type": "llama", ', "config.json is not valid JSON"),
        ("[]", "must hold a JSON object, got a list"),
        ('{"model_type": "llama"}', "vocab_size is missing"),
    ],
)
def test_a_broken_config_is_an_error_that_names_the_file(tmp_path, content, text):
    """Catches a bare KeyError or JSONDecodeError, which says nothing about which file to fetch again."""
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ValueError, match=text):
        load_model_config(tmp_path)


# ---------------------------------------------------------------- weights


def test_shards_hold_the_same_weights_as_one_file(tmp_path):
    """Catches an index that is ignored: only the first file's tensors would be read."""
    whole = dict(iterate_weights(random_llama(tmp_path / "whole")))
    sharded = dict(iterate_weights(random_llama(tmp_path / "sharded", num_shards=3)))
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) == 3
    assert whole.keys() == sharded.keys()
    assert all(torch.equal(whole[name], sharded[name]) for name in whole)
    other = dict(iterate_weights(random_llama(tmp_path / "other", seed=1)))
    assert not any(torch.equal(whole[name], other[name]) for name in whole)


def test_a_missing_shard_is_named(tmp_path):
    """Catches an interrupted download that is loaded with a part of its layers uninitialised."""
    folder = random_llama(tmp_path, num_shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(ValueError, match=r"lacks the weight file model-00002-of-00003\.safetensors"):
        next(iterate_weights(folder))


def test_a_truncated_weight_file_is_named(tmp_path):
    """Catches a half-copied file whose header is whole."""
    file = random_llama(tmp_path) / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(ValueError, match=r"model\.safetensors cannot be read"):
        next(iterate_weights(tmp_path))


def test_an_index_without_files_is_refused(tmp_path):
    """Catches an empty weight_map: a model of no weights at all."""
    (tmp_path / "model.safetensors.index.json").write_text("{}")
    with pytest.raises(ValueError, match=r'index\.json has no "weight_map"'):
        next(iterate_weights(tmp_path))


@pytest.mark.parametrize(
    "name",
    ["../x.safetensors", "/tmp/x.safetensors", "a/../../x.safetensors", "a/x.safetensors", "..\\x.safetensors",
     "C:x.safetensors", "x.bin", "", ".", "\0.safetensors", None, 5, ["x.safetensors"]],
)  # fmt: skip
def test_an_index_names_files_of_its_own_folder_only(tmp_path, name):
    """Would catch weights read in silence from anywhere on the disk because a download says so."""
    folder = random_llama(tmp_path / "model", num_shards=2)
    random_llama(tmp_path / "other")
    (tmp_path / "other" / "model.safetensors").rename(tmp_path / "x.safetensors")
    index = folder / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lm_head.weight"] = name
    index.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"index\.json names the weight file .*, expected the plain name"):
        load_tiny(folder)


@pytest.mark.parametrize("weight_map", [None, [], ["model.safetensors"], {}, "model.safetensors", 5])
def test_a_weight_map_that_is_no_map_is_refused(tmp_path, weight_map):
    """Would catch "list has no attribute values"."""
    folder = random_llama(tmp_path, num_shards=2)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(ValueError, match=r'index\.json has no "weight_map"'):
        load_tiny(folder)


def test_links_out_of_the_folder_are_followed(tmp_path):
    """Would catch the hub's cache refused: there each file of a snapshot is a link to a store beside it."""
    folder, store = random_llama(tmp_path / "snapshot", num_shards=2), tmp_path / "blobs"
    store.mkdir()
    for path in list(folder.iterdir()):
        path.rename(store / path.name)
        path.symlink_to(f"../blobs/{path.name}")
    load_tiny(folder)


@pytest.mark.parametrize(
    "index", ['{"weight_map": {"lm_head.weight": "model-00001-of-00009.safetensors"}}', "{"]
)
def test_a_whole_file_wins_over_a_stale_index(tmp_path, index):
    """Would catch the refusal of a model that was saved again in one file. transformers takes that one too."""
    from transformers import AutoModelForCausalLM

    folder = random_llama(tmp_path)
    (folder / "model.safetensors.index.json").write_text(index)
    theirs = AutoModelForCausalLM.from_pretrained(folder)
    assert torch.equal(load_tiny(folder).model.embed_tokens, theirs.model.embed_tokens.weight)


def test_one_tensor_in_two_shards_is_refused(tmp_path):
    """Would catch shards of two checkpoints mixed in one folder: the last one read would win."""
    folder = random_llama(tmp_path, num_shards=2)
    first, second = sorted(folder.glob("*.safetensors"))
    weights = load_file(second)
    save_file(weights | {"model.embed_tokens.weight": load_file(first)["model.embed_tokens.weight"]}, second)
    with pytest.raises(
        ValueError, match=r"model\.embed_tokens\.weight is stored twice: in .*00001-of.*00002-of"
    ):
        load_tiny(folder)


def test_rotary_buffers_of_old_checkpoints_are_left_out(tmp_path):
    """Catches an "unexpected weight" error for every Llama that was saved before 2023-07."""
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    folder = edit_weights(random_llama(tmp_path), lambda weights: weights.update({name: torch.ones(8)}))
    assert name in load_file(folder / "model.safetensors")
    assert name not in dict(iterate_weights(folder))


@pytest.mark.parametrize("stored", ["embedding", "both", "lm_head"])
def test_a_tied_model_loads_under_either_name_of_its_embedding(tmp_path, stored):
    """Catches a tied checkpoint refused (or its embedding left empty) for the name it was saved under."""

    def edit(weights):
        if stored != "embedding":
            weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
        if stored == "lm_head":
            del weights["model.embed_tokens.weight"]

    folder = random_llama(tmp_path, tie_word_embeddings=True)
    expected = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    model = load_tiny(edit_weights(folder, edit))
    assert model.config.tie_word_embeddings
    assert torch.equal(model.model.embed_tokens, expected)


def test_a_tied_config_over_two_different_matrices_is_refused(tmp_path):
    """Catches a fine-tuned model whose own output matrix is dropped in silence."""

    def edit(weights):
        weights["lm_head.weight"] = weights["model.embed_tokens.weight"] + 1

    folder = edit_weights(random_llama(tmp_path, tie_word_embeddings=True), edit)
    with pytest.raises(ValueError, match=r"lm_head\.weight differs from model\.embed_tokens\.weight"):
        load_tiny(folder)


def test_a_model_of_one_lost_weight_is_refused(tmp_path):
    """Catches a layer that keeps what was in memory before."""
    folder = edit_weights(random_llama(tmp_path), lambda weights: weights.pop("model.norm.weight"))
    with pytest.raises(ValueError, match=r"missing model\.norm\.weight; unexpected none"):
        load_tiny(folder)


def test_weights_are_converted_to_the_asked_dtype(tmp_path):
    """Catches a model that runs in the dtype of its file instead of the user's."""
    folder = random_llama(tmp_path)
    attention = make_attention_backend("torch", load_model_config(folder), 4, torch.bfloat16, "cpu")
    model = load_model(folder, attention, torch.bfloat16, "cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


# ---------------------------------------------------------------- random models and tokenizers


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"tie_word_embeddings": True, "num_shards": 2},
        {"num_key_value_heads": 1, "attention_bias": True, "mlp_bias": True},
        {"head_dim": 8, "rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    ],
)
def test_transformers_reads_a_random_llama_whole(tmp_path, options):
    """Catches a name or shape that transformers would fill with its own random weights (it only warns)."""
    from transformers import AutoModelForCausalLM

    folder = random_llama(tmp_path, **options)
    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    theirs = model.state_dict()
    ours = dict(iterate_weights(folder))
    assert set(theirs) - set(ours) == ({"lm_head.weight"} if options.get("tie_word_embeddings") else set())
    assert all(torch.equal(theirs[name], weight) for name, weight in ours.items())


def distinct_greedy_tokens(model):
    """How many different tokens there are in 48 greedy ones after a prompt of three."""
    prompt = torch.tensor([[10, 20, 30]])
    out = model.generate(prompt, max_new_tokens=48, do_sample=False, eos_token_id=None, pad_token_id=0)
    return len(set(out[0, 3:].tolist()))


@pytest.mark.parametrize("tied", [False, True])
def test_greedy_text_of_a_random_llama_wanders(tmp_path, tied):
    """Catches test models that repeat one token after every past: they would hide a wrong block table.

    The control is a tied Llama with transformers' own initial weights, which does just that.
    """
    from transformers import AutoModelForCausalLM

    folder = random_llama(tmp_path, tie_word_embeddings=tied)
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert distinct_greedy_tokens(model) >= 15
    torch.manual_seed(0)
    model.config.tie_word_embeddings = True
    control = AutoModelForCausalLM.from_config(model.config)
    assert distinct_greedy_tokens(control) <= 3


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"num_heads": 4}, TypeError, "unknown config key num_heads"),
        ({"num_shards": 0}, ValueError, "num_shards must be at least 1"),
        ({"byte_tokenizer": True, "vocab_size": 100}, ValueError, "needs vocab_size of at least 258"),
    ],
)
def test_random_llama_refuses_what_it_cannot_do_before_it_writes(tmp_path, options, error, text):
    """Catches a misspelt option that is ignored: the test would run another model than it says."""
    with pytest.raises(error, match=text):
        random_llama(tmp_path / "model", **options)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize("text", ["hello world", "  a\n\tb ", "naïve 日本語 🙂", "<s>x</s>"])
def test_ids_of_the_byte_tokenizer_are_the_bytes(tiny_llama, text):
    """Catches a byte table with one entry shifted, and special tokens that are split into letters."""
    tokenizer = load_tokenizer(tiny_llama)
    ids = tokenizer(text)["input_ids"]
    expected = list(text.encode()) if "<s>" not in text else [256, ord("x"), 257]
    assert ids == expected
    assert tokenizer.decode(ids) == text


def test_tokenizer_knows_its_chat_template_and_eos(tiny_llama):
    """Catches a tokenizer_config.json that is not read: no chat template, and generation never ends."""
    tokenizer = load_tokenizer(tiny_llama)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (256, 257)
    messages = [{"role": "user", "content": "hi"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<s>user: hi</s><s>assistant: "


def test_tokenizer_is_the_one_that_auto_tokenizer_chooses(tiny_llama):
    """Catches the short way in `load_tokenizer` drifting from transformers' own choice."""
    from transformers import AutoTokenizer

    ours, theirs = load_tokenizer(tiny_llama), AutoTokenizer.from_pretrained(tiny_llama)
    assert type(ours) is type(theirs)
    assert ours.backend_tokenizer.to_str() == theirs.backend_tokenizer.to_str()
    assert ours.special_tokens_map == theirs.special_tokens_map
    assert ours.chat_template == theirs.chat_template


def test_a_tokenizer_of_a_named_class_goes_through_auto_tokenizer(tiny_llama, tmp_path):
    """Catches the short way taken for tokenizers whose class adds something (Llama 2 adds a bos)."""
    from transformers import AutoTokenizer

    settings = json.loads((tiny_llama / "tokenizer_config.json").read_text())
    (tmp_path / "tokenizer.json").write_bytes((tiny_llama / "tokenizer.json").read_bytes())
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps(settings | {"tokenizer_class": "GPT2Tokenizer"})
    )
    ours, theirs = load_tokenizer(tmp_path), AutoTokenizer.from_pretrained(tmp_path)
    assert type(ours) is type(theirs)
    assert type(ours) is not type(load_tokenizer(tiny_llama))
    assert ours("ab c")["input_ids"] == theirs("ab c")["input_ids"]


@pytest.mark.parametrize(
    "tokenizer_class", [None, "MyTokenizer", "LlamaTokenizer", "PreTrainedTokenizerFast"]
)
@pytest.mark.parametrize(
    "auto_map", [{"AutoTokenizer": ["evil.MyTokenizer", None]}, ["evil.MyTokenizer", None]]
)
def test_code_in_a_model_folder_is_never_run(tiny_llama, tmp_path, monkeypatch, auto_map, tokenizer_class):
    """Would catch transformers' question on the terminal, whose answer "y" runs what came with the model."""
    monkeypatch.setattr("builtins.input", lambda prompt="": "y")
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass MyTokenizer: pass\n")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    path.write_text(json.dumps(settings | {"tokenizer_class": tokenizer_class, "auto_map": auto_map}))
    with pytest.raises(ValueError, match=r"tokenizer_config\.json names code of its own .* never run"):
        load_tokenizer(folder)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("auto_class", ["AutoConfig", "AutoTokenizer", "AutoModelForCausalLM"])
@pytest.mark.parametrize("model_type", ["llama", "mine"])
def test_code_that_config_json_names_is_not_run_either(
    tiny_llama, tmp_path, monkeypatch, auto_class, model_type
):
    """Would catch AutoTokenizer following `auto_map` of config.json, which it reads to choose its class."""
    monkeypatch.setattr("builtins.input", lambda prompt="": "y")
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Mine: pass\n")
    config = json.loads((folder / "config.json").read_text())
    config |= {"auto_map": {auto_class: "evil.Mine"}, "model_type": model_type}
    (folder / "config.json").write_text(json.dumps(config))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    del settings["tokenizer_class"]
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    assert load_tokenizer(folder).eos_token_id == 257
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(("skip_tokenizer_init", "reason"), [(False, "stop"), (True, "length")])
def test_generation_ends_at_a_token_that_only_the_tokenizer_names(
    tiny_llama, tmp_path, skip_tokenizer_init, reason
):
    """Would catch a ChatML fine-tune that talks on past <|im_end|>. Without a tokenizer none can know it."""
    folder = shutil.copytree(tiny_llama, tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": 2}))
    llm = LLM(folder, num_blocks=8, skip_tokenizer_init=skip_tokenizer_init)
    params = SamplingParams(temperature=0, max_tokens=5, logit_bias={257: 100.0}, detokenize=False)
    (output,) = llm.generate([{"prompt_token_ids": [104, 105]}], params, use_tqdm=False)
    assert output.outputs[0].finish_reason == reason
    assert output.outputs[0].stop_reason is None
    assert output.outputs[0].token_ids == [257] * (1 if reason == "stop" else 5)


def test_a_folder_without_tokenizer_says_what_to_do(tmp_path):
    """Catches transformers' own text, which suggests to install sentencepiece."""
    with pytest.raises(ValueError, match=r"has no tokenizer .* skip_tokenizer_init=True"):
        load_tokenizer(random_llama(tmp_path))


def test_importing_the_loader_imports_no_transformers():
    """Catches a top-level import that costs every start, and every test run, seconds."""
    code = (
        "import sys, minivllm.weights.loader\n"
        "slow = {'transformers', 'huggingface_hub', 'gguf'} & set(sys.modules)\n"
        "assert not slow, slow"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
