"""run-batch on a real engine: the command from file to file, and several machines' worker on one."""

import json
import os
import subprocess
import sys
from pathlib import Path

from minivllm import LLM, SamplingParams
from minivllm.bench.servers import free_port
from minivllm.cli import main
from tests.distributed.conftest import SHAPE

ROOT = Path(__file__).parents[2]
ENGINE = ["--num-blocks", "64", "--block-size", "4", "--max-model-len", "100"]
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


def test_the_command_answers_a_file_with_the_texts_of_generate(tiny_llama, tmp_path, capsys):
    """Would catch parameters that are dropped on the way, a wrong line that ends the run, a second answer."""
    prompts = [f"line {number}" for number in range(6)]
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    lines = []
    for number, prompt in enumerate(prompts):
        body = {"prompt": prompt, "max_tokens": 6, "temperature": 0, "ignore_eos": True}
        body |= {"top_p": 7.0} if number == 3 else {}
        lines.append({"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": body})
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    command = ["run-batch", "-i", str(source), "-o", str(out), "--model", str(tiny_llama), *ENGINE]
    assert main(command) == 0
    assert "6 lines answered, 1 of them with an error, 0 answered before" in capsys.readouterr().out
    results = {line["custom_id"]: line for line in map(json.loads, out.read_text().splitlines())}
    llm = LLM(tiny_llama, num_blocks=64, block_size=4, max_model_len=100)
    expected = llm.generate(prompts, GREEDY, use_tqdm=False)
    for number, output in enumerate(expected):
        result = results[str(number)]
        if number == 3:
            assert (
                result["response"]["status_code"] == 400 and "top_p must be in" in result["error"]["message"]
            )
            continue
        body = result["response"]["body"]
        assert body["choices"][0]["text"] == output.outputs[0].text
        assert body["usage"]["completion_tokens"] == 6

    assert main(command) == 1 and "--resume goes on with it" in capsys.readouterr().err
    assert main([*command, "--resume"]) == 0
    assert "0 lines answered, 0 of them with an error, 6 answered before" in capsys.readouterr().out
    assert len(out.read_text().splitlines()) == 6


def test_without_ray_the_command_says_what_to_install(tiny_llama, tmp_path, capsys, monkeypatch):
    """Would catch a traceback about a module. Where Ray is installed, it is hidden."""
    monkeypatch.setattr("minivllm.batch.ray_replicas.find_spec", lambda name: None)
    source = tmp_path / "in.jsonl"
    source.write_text("")
    command = ["run-batch", "-i", str(source), "-o", str(tmp_path / "out"), "--model", str(tiny_llama)]
    assert main([*command, "--num-replicas", "2"]) == 1
    assert "pip install 'minivllm[ray]'" in capsys.readouterr().err
    assert main([*command, "--num-replicas", "0"]) == 1
    assert "--num-replicas must be at least 1, got 0" in capsys.readouterr().err


def test_two_machines_give_the_text_of_one(tmp_path):
    """Would catch a rank that is started twice or nowhere. Both "machines" are this one: two commands."""
    from minivllm.weights.random_model import random_llama

    folder = random_llama(tmp_path / "model", byte_tokenizer=True, **SHAPE)
    nodes = ["--tensor-parallel-size", "2", "--nnodes", "2", "--master-port", str(free_port())]
    command = [sys.executable, "-m", "minivllm"]
    worker = subprocess.Popen(
        [*command, "worker", *nodes, "--node-rank", "1"], stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    more = ["--temperature", "0", "--max-tokens", "6", "--model", str(folder), *ENGINE]
    run = subprocess.run(
        [*command, "generate", "line 1", *more, *nodes], capture_output=True, text=True, cwd=ROOT, timeout=300
    )
    assert run.returncode == 0, run.stderr
    text = LLM(folder, num_blocks=64, block_size=4, max_model_len=100).generate(
        "line 1", SamplingParams(temperature=0, max_tokens=6), use_tqdm=False
    )[0].outputs[0].text  # fmt: skip
    assert f"Generated text: {text!r}" in run.stdout
    _, errors = worker.communicate(timeout=60)
    assert worker.returncode == 0, errors


def test_a_worker_command_that_makes_no_sense_is_refused(capsys):
    """Would catch a worker that waits for ever for an engine which it should be itself."""
    assert main(["worker", "--tensor-parallel-size", "2", "--nnodes", "2", "--master-port", "1"]) == 1
    assert "--node-rank 0 is the machine of the engine" in capsys.readouterr().err
    assert main(["worker", "--tensor-parallel-size", "3", "--nnodes", "2", "--node-rank", "1"]) == 1
    assert "must be a multiple of nnodes" in capsys.readouterr().err
