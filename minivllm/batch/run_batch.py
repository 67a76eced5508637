"""OpenAI's batch format: requests in one file, answers in another, a line each::

    in.jsonl    {"custom_id": "a", "method": "POST", "url": "/v1/completions", "body": {"prompt": "Hi"}}
    out.jsonl   {"id": "batch_req_1_5d41402a", "custom_id": "a",
                 "response": {"status_code": 200, "body": {...}}, "error": null}

Every line gets an answer: a line which is not a request gets an error, and so does a request that the engine
refuses. Answers are written as they finish, so their order is another one; `custom_id` tells which is whose.

A run may be killed at any moment. With `resume` the next one reads what is there, cuts off a half-written
last line and answers the lines that have no answer yet. A line is known by its number and a hash of its text
(the `id` above), so a line that was changed meanwhile is a new one.

Only `limit` requests are under way at once. So a file of a million lines is read as fast as it is answered,
and never lies in memory.

vLLM V1: `vllm/entrypoints/openai/run_batch.py`.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

URLS = ("/v1/chat/completions", "/v1/completions")

Answer = Callable[[str, dict[str, Any]], Awaitable[tuple[int, dict[str, Any]]]]
"""(url, body) -> (HTTP status, body): a replica, wherever it is."""


@dataclass(frozen=True)
class Line:
    """One line of the input; `id` is also that of its answer."""

    id: str
    text: str

    def parse(self) -> dict[str, Any]:
        """The request.

        Raises:
            ValueError: the line is not a request; the text says what was expected.
        """
        try:
            request = json.loads(self.text)
        except RecursionError:
            raise ValueError("expected JSON which is not nested thousands of times.") from None
        if not isinstance(request, dict) or not isinstance(request.get("custom_id"), str):
            raise ValueError("expected an object with a string as custom_id.")
        if request.get("method") != "POST" or request.get("url") not in URLS:
            raise ValueError(f'expected "method": "POST" and one of these as url: {", ".join(URLS)}.')
        if not isinstance(request.get("body"), dict) or request["body"].get("stream"):
            raise ValueError("expected an object as body, without stream: answers are written whole.")
        return request


@dataclass
class Progress:
    """What has been done in this run."""

    num_answered: int = 0
    num_failed: int = 0
    num_prompt_tokens: int = 0
    num_output_tokens: int = 0

    def count(self, result: dict[str, Any]) -> None:
        """Add one line's answer."""
        self.num_answered += 1
        self.num_failed += result["error"] is not None
        usage = ((result["response"] or {}).get("body") or {}).get("usage") or {}
        self.num_prompt_tokens += usage.get("prompt_tokens", 0)
        self.num_output_tokens += usage.get("completion_tokens", 0)


def read_lines(lines: Iterable[str], answered: set[str]) -> Iterator[Line]:
    """The lines which are not blank and not in `answered`, numbered from 1."""
    for number, text in enumerate(lines, start=1):
        name = f"batch_req_{number}_{hashlib.sha256(text.strip().encode()).hexdigest()[:8]}"
        if text.strip() and name not in answered:
            yield Line(name, text)


def read_answered(path: Path) -> set[str]:
    """The ids in an output file. A last line without its end is cut off: it was being written at a kill.

    Raises:
        ValueError: the file holds something else than answers; it is left as it is.
    """
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    try:
        answered = {json.loads(line)["id"] for line in whole.splitlines()}
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"{path} was not written by run-batch: name another file.") from None
    if len(whole) < len(content):
        with path.open("r+b") as file:
            file.truncate(len(whole))
    return answered


def open_output(path: Path, resume: bool) -> tuple[TextIO, set[str]]:
    """The output file, to be added to, and the ids of the lines answered in it.

    Raises:
        ValueError: it exists and `resume` is not set, or it holds something else.
    """
    if path.exists() and path.stat().st_size and not resume:
        raise ValueError(f"{path} exists. --resume goes on with it; otherwise remove it or name another.")
    answered = read_answered(path) if path.exists() else set()
    return path.open("a", encoding="utf-8"), answered


async def answer_line(line: Line, answer: Answer) -> dict[str, Any]:
    """The line of the output: a response, or why there is none."""
    custom_id, response, error = None, None, None
    try:
        request = line.parse()
        custom_id = request["custom_id"]
        status, body = await answer(request["url"], request["body"])
        response = {"status_code": status, "request_id": line.id, "body": body}
        if status != 200:
            error = {"code": str(status), "message": (body.get("error") or {}).get("message", str(body))}
    except ValueError as wrong:
        error = {"code": "invalid_line", "message": str(wrong)}
    return {"id": line.id, "custom_id": custom_id, "response": response, "error": error}


async def run_batch(
    lines: Iterable[Line],
    answer: Answer,
    output: TextIO,
    limit: int,
    on_progress: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Answer all lines, `limit` at once, and write each answer as soon as it is there.

    Raises:
        ExceptionGroup: the replicas are gone. What was answered is in `output`; a later run may go on.
    """
    progress, seats = Progress(), asyncio.Semaphore(limit)

    async def one(line: Line) -> None:
        try:
            result = await answer_line(line, answer)
        finally:
            seats.release()
        # One write: what a kill leaves is a whole line or the beginning of one. In ASCII: JSON can name half
        # of a surrogate pair, for which UTF-8 has no bytes.
        output.write(json.dumps(result) + "\n")
        output.flush()
        progress.count(result)
        on_progress(progress)

    async with asyncio.TaskGroup() as group:
        for line in lines:
            await seats.acquire()
            group.create_task(one(line))
    return progress
