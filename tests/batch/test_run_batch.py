"""A batch: every line answered once, whatever is in it and whenever the run is killed. No engine here."""

import asyncio
import io
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minivllm.batch.run_batch import Line, open_output, read_answered, read_lines, run_batch

ROOT = Path(__file__).parents[2]


def request(name, **body):
    return {"custom_id": name, "method": "POST", "url": "/v1/completions", "body": body}


async def echo(url, body):
    """An answer whose text is the prompt; a prompt "refused" gets 400, as the server does it."""
    await asyncio.sleep(body.get("seconds", 0))
    if body["prompt"] == "refused":
        return 400, {"error": {"message": "top_p must be in (0, 1], got 2.", "param": "top_p"}}
    return 200, {
        "choices": [{"text": body["prompt"]}],
        "usage": {"prompt_tokens": 2, "completion_tokens": 3},
    }


def answers(lines, answer=echo, limit=4):
    """The output's lines for these input lines, and the progress."""
    output = io.StringIO()
    progress = asyncio.run(run_batch(read_lines(lines, set()), answer, output, limit))
    return [json.loads(line) for line in output.getvalue().splitlines()], progress


def test_every_line_is_answered_or_told_what_is_wrong_with_it(tmp_path):
    """Would catch a bad line that ends the run, an answer under another line's name, a blank line counted, and
    an answer that cannot be written as UTF-8.
    """
    wrong = {
        "no JSON": "Expecting",
        "[" * 100_000: "nested",
        "[1]": "custom_id",
        json.dumps({"custom_id": 5}): "custom_id",
        json.dumps(request("get") | {"method": "GET"}): "POST",
        json.dumps(request("url") | {"url": "/v1/embeddings"}): "/v1/chat/completions",
        json.dumps(request("body") | {"body": "Hi"}): "object as body",
        json.dumps(request("stream", prompt="a", stream=True)): "without stream",
        json.dumps(request("refused", prompt="refused")): "top_p must be",
    }
    right = [json.dumps(request(name, prompt=f"for {name}")) for name in ("a", "b", "ü", "half \ud83d")]
    lines = [right[0], *wrong, "", "  ", *right[1:]]
    path = tmp_path / "out.jsonl"
    with path.open("w", encoding="utf-8") as output:
        progress = asyncio.run(run_batch(read_lines([f"{line}\n" for line in lines], set()), echo, output, 4))
    results = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    by_number = {int(result["id"].split("_")[2]): result for result in results}
    assert sorted(by_number) == [n for n, line in enumerate(lines, 1) if line.strip()]
    for number, line in enumerate(lines, 1):
        result = by_number.get(number)
        if line in wrong:
            assert wrong[line] in result["error"]["message"]
            assert (result["response"] is not None) == (result["custom_id"] == "refused")
        elif result is not None:
            assert result["error"] is None and result["response"]["status_code"] == 200
            text = result["response"]["body"]["choices"][0]["text"]
            assert text == f"for {result['custom_id']}" == json.loads(line)["body"]["prompt"]
    assert (progress.num_answered, progress.num_failed) == (len(results), len(wrong))
    assert (progress.num_prompt_tokens, progress.num_output_tokens) == (2 * 4, 3 * 4)


def test_no_more_lines_are_under_way_than_asked_for_and_the_file_is_read_as_they_finish():
    """Would catch a million lines in memory; that all seats are used is the negative control."""
    now, most, read = 0, 0, 0

    def lines():
        nonlocal read
        for number in range(50):
            read += 1
            assert read <= done + 5 + 1
            yield json.dumps(request(str(number), prompt=""))

    done = 0

    async def answer(url, body):
        nonlocal now, most, done
        now += 1
        most = max(most, now)
        await asyncio.sleep(0)
        now -= 1
        done += 1
        return await echo(url, body)

    results, _ = answers(lines(), answer, limit=5)
    assert len(results) == 50 and most == 5


def test_an_answer_is_on_disk_before_the_slowest_is_there(tmp_path):
    """Would catch answers that are kept until the end."""
    path = tmp_path / "out.jsonl"
    output, _ = open_output(path, resume=False)
    seen = []

    async def answer(url, body):
        if body["prompt"] == "slow":
            while path.read_text().count("\n") < 2:
                await asyncio.sleep(0.01)
            seen.append(path.read_text().count("\n"))
        return await echo(url, body)

    lines = [json.dumps(request(name, prompt=name)) for name in ("slow", "b", "c")]
    asyncio.run(run_batch(read_lines(lines, set()), answer, output, 3))
    assert seen == [2]
    assert [json.loads(line)["custom_id"] for line in path.read_text().splitlines()] == ["b", "c", "slow"]


def test_replicas_that_are_gone_end_the_run_and_keep_what_was_answered():
    """Would catch a run that goes on writing the same error for each of a million lines."""
    output = io.StringIO()

    async def answer(url, body):
        if body["prompt"] == "3":
            raise RuntimeError("the actor died")
        return await echo(url, body)

    lines = [json.dumps(request(str(n), prompt=str(n))) for n in range(9)]
    with pytest.raises(ExceptionGroup) as caught:
        asyncio.run(run_batch(read_lines(lines, set()), answer, output, 1))
    assert "the actor died" in str(caught.value.exceptions[0])
    assert [json.loads(line)["custom_id"] for line in output.getvalue().splitlines()] == ["0", "1", "2"]


SCRIPT = """
import asyncio, sys
from pathlib import Path
from minivllm.batch.run_batch import open_output, read_lines, run_batch
from tests.batch.test_run_batch import echo

output, answered = open_output(Path(sys.argv[2]), resume=True)
lines = Path(sys.argv[1]).read_text().splitlines()
asyncio.run(run_batch(read_lines(lines, answered), echo, output, 4))
"""


def test_a_killed_run_loses_nothing_and_repeats_nothing(tmp_path):
    """Would catch answers in a buffer at SIGKILL, and lines that the next run answers again."""
    source, out = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    names = [str(number) for number in range(60)]
    source.write_text("\n".join(json.dumps(request(name, prompt=name, seconds=0.02)) for name in names))
    command = [sys.executable, "-c", SCRIPT, source, out]
    process = subprocess.Popen(command, cwd=ROOT)
    while not out.exists() or out.read_text().count("\n") < 8:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    first = out.read_text()
    assert 8 <= first.count("\n") < 60, "it was really killed in the middle"
    subprocess.run(command, cwd=ROOT, check=True)
    assert out.read_text().startswith(first[: first.rfind("\n") + 1])
    assert sorted(json.loads(line)["custom_id"] for line in out.read_text().splitlines()) == sorted(names)


@pytest.mark.parametrize("torn", ['{"id": "batch_req_3', "{", '{"id": "x", "custom_id": "ü'])
def test_a_half_written_last_line_is_cut_off(tmp_path, torn):
    """Would catch the next answer written behind it, which makes both unreadable."""
    path = tmp_path / "out.jsonl"
    path.write_bytes(b'{"id": "a"}\n{"id": "b"}\n' + torn.encode()[:-1])
    output, answered = open_output(path, resume=True)
    output.close()
    assert answered == {"a", "b"} and path.read_text() == '{"id": "a"}\n{"id": "b"}\n'


def test_a_line_that_was_changed_is_a_new_one():
    """Would catch a resumed run that takes the answer to another question for this one's."""
    old, new = (json.dumps(request("a", prompt=prompt)) for prompt in ("old", "new"))
    (line,) = read_lines([old], set())
    assert isinstance(line, Line) and not list(read_lines([old + "\n"], {line.id}))
    assert [each.text for each in read_lines([new], {line.id})] == [new]


def test_an_output_is_not_overwritten_and_another_file_not_taken_for_one(tmp_path):
    """Would catch a night's answers lost to a repeated command, and notes that lose their last line."""
    path = tmp_path / "out.jsonl"
    path.write_text('{"id": "a"}\n')
    with pytest.raises(ValueError, match="--resume goes on with it"):
        open_output(path, resume=False)
    notes = tmp_path / "notes.txt"
    notes.write_text("first\nsecond")
    with pytest.raises(ValueError, match="was not written by run-batch"):
        read_answered(notes)
    assert notes.read_text() == "first\nsecond"
