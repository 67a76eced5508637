"""OpenAI's API, as its own client package sees it, with the offline engine as oracle."""

import ast
import asyncio
import codecs
import collections
import concurrent.futures
import json
import socket
import time

import httpx
import openai
import pytest

from minivllm import SamplingParams
from minivllm.server.limits import Guard, Limits
from minivllm.server.prometheus import _Snapshot
from tests.server.conftest import is_empty

GREEDY = {"model": "tiny", "temperature": 0, "max_tokens": 8, "extra_body": {"ignore_eos": True}}
OFFLINE = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)


def offline(llm, prompt, **changes):
    """The completions of the offline engine."""
    params = SamplingParams(**{"temperature": 0, "max_tokens": 8, "ignore_eos": True} | changes)
    return llm.generate([prompt], params, use_tqdm=False)[0].outputs


def post(server, path, body, **options):
    """A request without a client's help."""
    return httpx.post(server.url + path, json=body, timeout=30, **options)


def sse(text):
    """The data of each event, comments left out."""
    return [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]


# -- completions ------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("form", ["string", "strings", "ids", "lists of ids"])
def test_every_form_of_prompt_gets_the_offline_text(server, llm, form, stream):
    """Would catch prompts that are answered in another order, or only the first of them."""
    texts = ["Hello", "Good day to you"] if form.endswith("s") and form != "ids" else ["Hello"]
    ids = [list(text.encode()) for text in texts]
    prompt = {"string": texts[0], "strings": texts, "ids": ids[0], "lists of ids": ids}[form]
    answer = server.client().completions.create(prompt=prompt, stream=stream, **GREEDY)
    got = [""] * len(texts)
    for chunk in answer if stream else [answer]:
        for choice in chunk.choices:
            got[choice.index] += choice.text
    # Ids are taken as they are; text gets the tokenizer's special tokens.
    wanted = (
        texts
        if isinstance(prompt, str) or isinstance(prompt[0], str)
        else [{"prompt_token_ids": each} for each in ids]
    )
    assert got == [offline(llm, each)[0].text for each in wanted]


def test_n_seed_and_penalties_are_those_of_the_offline_engine(server, llm):
    """Would catch a parameter that is dropped on its way, and choices of n that are numbered wrongly."""
    changes = {"temperature": 1.0, "n": 3, "seed": 7, "top_p": 0.9, "presence_penalty": 0.5}
    more = {"top_k": 20, "min_p": 0.01, "repetition_penalty": 1.1, "ignore_eos": True, "min_tokens": 2}
    answer = server.client().completions.create(
        model="tiny", prompt="Sample", max_tokens=8, extra_body=more, **changes
    )
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    wanted = [each.text for each in offline(llm, "Sample", **changes | more)]
    assert [choice.text for choice in answer.choices] == wanted
    assert len(set(wanted)) == 3


def test_two_prompts_with_n_are_numbered_through(server, llm):
    """Would catch choice 1 of the second prompt with the number of the first prompt's."""
    changes = {"temperature": 1.0, "n": 2, "seed": 3}
    answer = server.client().completions.create(
        model="tiny", prompt=["ab", "cd"], max_tokens=8, extra_body={"ignore_eos": True}, **changes
    )
    wanted = [each.text for prompt in ("ab", "cd") for each in offline(llm, prompt, **changes)]
    assert [choice.text for choice in answer.choices] == wanted


def test_logit_bias_forbids_and_forces(server):
    """Would catch keys that stay strings: JSON has no other."""
    answer = server.client().completions.create(prompt="x", logit_bias={"65": 100}, **GREEDY)
    assert answer.choices[0].text == "A" * 8


def test_priority_decides_who_goes_first(start):
    """Would catch a field that every server refuses, because no option makes one which looks at it."""
    with start("--scheduling-policy", "priority", "--max-num-seqs", "1") as server:
        server.ask(lambda engine: server.engine._set_paused(True))
        finished = []

        def ask(priority):
            body = {"prompt": "a", "max_tokens": 2, "priority": priority}
            assert post(server, "/v1/completions", body).status_code == 200

        class Watch:
            def record(self, plan, updated, scheduler, now):
                finished.extend(group.priority for group, _ in updated if group.is_finished)

        server.engine.engine.trace.observers += (Watch(),)
        with concurrent.futures.ThreadPoolExecutor() as pool:
            answers = [pool.submit(ask, priority) for priority in (2, 3, 1)]
            server.wait(lambda engine: len(engine.scheduler.groups) == 3)
            server.ask(lambda engine: server.engine._set_paused(False))
            for answer in answers:
                answer.result(60)
        assert finished == [1, 2, 3]


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs_are_those_of_the_offline_engine(server, llm, stream):
    """Would catch logprobs of another position, and offsets that start again in each chunk."""
    answer = server.client().completions.create(prompt="Hello", logprobs=2, stream=stream, **GREEDY)
    parts = [choice.logprobs for chunk in (answer if stream else [answer]) for choice in chunk.choices]
    chosen = [value for part in parts for value in part.token_logprobs]
    (wanted,) = offline(llm, "Hello", logprobs=2)
    assert chosen == pytest.approx(
        [next(iter(entry.values())).logprob for entry in wanted.logprobs], abs=1e-4
    )
    assert chosen != pytest.approx([0.0] * 8, abs=1e-4)
    tokens = [token for part in parts for token in part.tokens]
    offsets = [offset for part in parts for offset in part.text_offset]
    before = [b"".join(map(bytes_of, tokens[:i])) for i in range(8)]
    assert offsets == [len(codecs.getincrementaldecoder("utf-8")("replace").decode(each)) for each in before]
    assert all(2 <= len(top) <= 3 for part in parts for top in part.top_logprobs)


def bytes_of(token):
    """What a token's name stands for."""
    return ast.literal_eval(f'b"{token[6:]}"') if token.startswith("bytes:") else token.encode()


@pytest.mark.parametrize("stream", [False, True])
def test_a_character_of_several_tokens_keeps_its_bytes_and_its_place(server, script, stream):
    """Would catch tokens that are all called U+FFFD: one hides the others, and each counts as a character."""
    script("a😀é!")
    body = {"prompt": "ab", "max_tokens": 8, "temperature": 0, "logprobs": 3, "stream": stream}
    if stream:
        data = sse(post(server, "/v1/completions", body).text)[:-1]
    else:
        data = [post(server, "/v1/completions", body).text]
    choices = [json.loads(each)["choices"][0] for each in data]
    assert "".join(choice["text"] for choice in choices) == "a😀é!"
    logprobs = [choice["logprobs"] for choice in choices]
    assert [name for each in logprobs for name in each["tokens"]] == [
        "a", r"bytes:\xf0", r"bytes:\x9f", r"bytes:\x98", r"bytes:\x80", r"bytes:\xc3", r"bytes:\xa9", "!",
    ]  # fmt: skip
    assert [offset for each in logprobs for offset in each["text_offset"]] == [0, 1, 1, 1, 1, 2, 2, 3]
    assert all(len(top) == 3 for each in logprobs for top in each["top_logprobs"])


def test_a_chats_bytes_are_those_of_its_tokens(server, script):
    """Would catch the bytes of U+FFFD: a client that joins them, as it has to, gets question marks."""
    script("a😀é!")
    body = {"messages": MESSAGES, "max_tokens": 8, "temperature": 0, "logprobs": True, "top_logprobs": 3}
    content = post(server, "/v1/chat/completions", body).json()["choices"][0]["logprobs"]["content"]
    assert bytes(byte for each in content for byte in each["bytes"]).decode() == "a😀é!"
    assert content[1]["token"] == r"bytes:\xf0"
    tops = [each["token"] for each in content[1]["top_logprobs"]]
    assert tops == [r"bytes:\xf0", r"bytes:\xfd", r"bytes:\xfe"]


def test_an_echoed_prompt_may_begin_with_a_character_of_several_tokens(server):
    """Would catch a first token, the one without a logprob, that is named and counted in another way."""
    body = {"prompt": "😀b", "echo": True, "logprobs": 1, "max_tokens": 0}
    choice = post(server, "/v1/completions", body).json()["choices"][0]
    names = [r"bytes:\xf0", r"bytes:\x9f", r"bytes:\x98", r"bytes:\x80", "b"]
    assert choice["text"] == "😀b" and choice["logprobs"]["tokens"] == names
    assert choice["logprobs"]["text_offset"] == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("max_tokens", [0, 1])
def test_echo_with_logprobs_scores_the_prompt_as_lm_eval_asks(server, llm, max_tokens):
    """Would catch scores that are shifted by one: lm-eval's `local-completions` would rank answers wrongly.

    And a completion token in the usage that nobody asked for.
    """
    body = {"prompt": [72, 101, 108], "echo": True, "logprobs": 1, "max_tokens": max_tokens, "temperature": 0}
    answer = post(server, "/v1/completions", body).json()
    choice = answer["choices"][0]
    params = SamplingParams(temperature=0, max_tokens=1, prompt_logprobs=1)
    (output,) = llm.generate([[72, 101, 108]], params, use_tqdm=False)
    wanted = [output.prompt_logprobs[i][token].logprob for i, token in ((1, 101), (2, 108))]
    assert choice["logprobs"]["token_logprobs"][0] is None
    assert choice["logprobs"]["token_logprobs"][1:3] == pytest.approx(wanted, abs=1e-4)
    assert choice["logprobs"]["tokens"][:3] == ["H", "e", "l"]
    assert len(choice["logprobs"]["tokens"]) == 3 + max_tokens
    assert choice["text"].startswith("Hel") and len(choice["text"]) == 3 + max_tokens
    assert answer["usage"]["completion_tokens"] == max_tokens
    options = {"stream": True, "stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    events = [json.loads(each) for each in sse(post(server, "/v1/completions", body | options).text)[:-1]]
    assert [event["usage"]["completion_tokens"] for event in events] == [max_tokens] * 2


# -- chat -------------------------------------------------------------------------------------------

MESSAGES = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]


@pytest.mark.parametrize("stream", [False, True])
def test_chat_gets_the_offline_answer(server, llm, stream):
    """Would catch another template, a second round of special tokens, and a lost role."""
    answer = server.client().chat.completions.create(messages=MESSAGES, stream=stream, **GREEDY)
    (wanted,) = llm.chat(MESSAGES, OFFLINE, use_tqdm=False)
    if stream:
        chunks = list(answer)
        assert chunks[0].choices[0].delta.role == "assistant"
        text = "".join(choice.delta.content for chunk in chunks for choice in chunk.choices)
        assert chunks[-1].choices[0].finish_reason == "length"
        assert len({chunk.id for chunk in chunks}) == 1
    else:
        text = answer.choices[0].message.content
        assert answer.choices[0].message.role == "assistant"
        assert answer.usage.prompt_tokens == len(wanted.prompt_token_ids)
    assert text == wanted.outputs[0].text


def test_content_may_come_in_parts_and_a_message_be_continued(server, llm):
    """Would catch parts of text that are refused, and an answer that starts anew instead of going on."""
    messages = [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}]
    got = server.client().chat.completions.create(messages=messages, **GREEDY)
    (wanted,) = llm.chat([{"role": "user", "content": "a\nb"}], OFFLINE, use_tqdm=False)
    assert got.choices[0].message.content == wanted.outputs[0].text
    messages = [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "One, two"}]
    body = {"add_generation_prompt": False, "continue_final_message": True, "ignore_eos": True}
    got = server.client().chat.completions.create(messages=messages, **GREEDY | {"extra_body": body})
    (wanted,) = llm.chat(
        messages, OFFLINE, use_tqdm=False, add_generation_prompt=False, continue_final_message=True
    )
    assert got.choices[0].message.content == wanted.outputs[0].text


def test_chat_logprobs_have_tops_in_order(server):
    """Would catch a top list without the likeliest token, or in another order than by rank."""
    answer = server.client().chat.completions.create(
        messages=MESSAGES, logprobs=True, top_logprobs=3, **GREEDY
    )
    for position in answer.choices[0].logprobs.content:
        values = [each.logprob for each in position.top_logprobs]
        assert len(values) == 3 and values == sorted(values, reverse=True)
        assert position.logprob == values[0]  # greedy


def test_max_completion_tokens_is_the_newer_name_and_without_either_a_chat_runs_on(server):
    """Would catch the limit of 16 tokens, right for completions, on a chat; and a limit that is not taken."""
    client = server.client()
    body = {"extra_body": {"ignore_eos": True}}
    short = client.chat.completions.create(model="tiny", messages=MESSAGES, max_completion_tokens=3, **body)
    assert short.usage.completion_tokens == 3
    long = client.chat.completions.create(model="tiny", messages=MESSAGES, **body)
    assert long.usage.total_tokens == 200  # the model's length
    plain = client.completions.create(model="tiny", prompt="Hi", **body)
    assert plain.usage.completion_tokens == 16


def test_usage_tells_what_the_prefix_cache_gave(server):
    """Would catch cached_tokens that are always 0, or that count the output."""
    client, prompt = server.client(), "a long beginning which both requests share"
    server.ask(lambda engine: engine.reset_prefix_cache())
    first = client.completions.create(prompt=prompt, **GREEDY).usage
    second = client.completions.create(prompt=prompt, **GREEDY).usage
    assert first.prompt_tokens_details.cached_tokens == 0
    assert second.prompt_tokens_details.cached_tokens == (first.prompt_tokens - 1) // 4 * 4 > 0


# -- the other routes -------------------------------------------------------------------------------


def test_models_tokenize_detokenize_version(server):
    """Would catch routes that load testers and scripts ask before anything else."""
    (model,) = server.client().models.list().data
    assert model.id == "tiny" and model.max_model_len == 200
    tokens = post(server, "/tokenize", {"prompt": "Hé"}).json()
    assert tokens == {"tokens": list("Hé".encode()), "count": 3, "max_model_len": 200}
    assert post(server, "/detokenize", {"tokens": tokens["tokens"]}).json() == {"prompt": "Hé"}
    chat = post(server, "/tokenize", {"messages": [{"role": "user", "content": "Hi"}]}).json()
    assert chat["count"] > 2
    assert httpx.get(server.url + "/health").status_code == 200
    assert "version" in httpx.get(server.url + "/version").json()


def read_metrics(server):
    """The value of each name, added up over its labels: of a histogram read the `_count` and the `_sum`."""
    lines = httpx.get(server.url + "/metrics", timeout=30).text.splitlines()
    values = collections.Counter()
    for line in lines:
        if not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            values[name.partition("{")[0]] += float(value)
    return values


def test_metrics_have_vllms_names_and_count(server):
    """Would catch a dashboard that stays empty, and counters that do not move."""
    before = read_metrics(server)
    server.client().completions.create(prompt="count me", **GREEDY)
    after = read_metrics(server)
    for name, more in (
        ("vllm:prompt_tokens_total", 8),
        ("vllm:generation_tokens_total", 8),
        ("vllm:time_to_first_token_seconds_count", 1),
        ("vllm:inter_token_latency_seconds_count", 7),
        ("vllm:e2e_request_latency_seconds_count", 1),
        ("vllm:request_queue_time_seconds_count", 1),
        ("vllm:request_prefill_time_seconds_count", 1),
        ("vllm:request_decode_time_seconds_count", 1),
        ("vllm:request_time_per_output_token_seconds_count", 1),
        ("vllm:request_prompt_tokens_sum", 8),
        ("vllm:request_generation_tokens_sum", 8),
        ("vllm:request_success_total", 1),
    ):
        assert name in before, f"{name} is not shown from the start"
        assert after[name] - before[name] == more, name
    parts = ("request_queue", "request_prefill", "request_decode")
    parts = sum(after[f"vllm:{part}_time_seconds_sum"] for part in parts)
    assert parts == pytest.approx(after["vllm:e2e_request_latency_seconds_sum"])
    assert after["vllm:num_requests_running"] == after["vllm:kv_cache_usage_perc"] == 0
    assert {
        "vllm:num_requests_waiting",
        "vllm:num_preemptions_total",
        "vllm:prefix_cache_hits_total",
    } <= after.keys()


def test_prompt_tokens_are_counted_once_and_whole(server):
    """Would catch a counter that leaves out what the prefix cache gave: vLLM counts the prompts of its users."""
    server.ask(lambda engine: engine.reset_prefix_cache())
    before = read_metrics(server)
    body = GREEDY | {"prompt": "one prompt that is asked for twice", "n": 2, "temperature": 1}
    usages = [server.client().completions.create(**body).usage for _ in range(2)]
    after = read_metrics(server)
    rise = {name: after[name] - before[name] for name in after if "prompt_tokens_total" in name}
    assert rise["vllm:prompt_tokens_total"] == sum(usage.prompt_tokens for usage in usages)
    cached = usages[1].prompt_tokens_details.cached_tokens
    assert (
        rise["minivllm:computed_prompt_tokens_total"]
        == rise["vllm:prompt_tokens_total"] - cached
        > 0
        < cached
    )


@pytest.mark.parametrize("mode", ["recompute", "swap"])
def test_metrics_hold_in_a_starved_pool(start, mode):
    """Would catch a preempted prompt that is counted twice, and swapped requests that no gauge shows."""
    options = ["--num-blocks", "20", "--max-model-len", "80", "--no-enable-prefix-caching"]
    with start(*options, "--preemption-mode", mode, "--swap-space-bytes", "1000000") as server:
        lost = []

        class Watch:
            def record(self, plan, updated, scheduler, now):
                """After each step: is a request that is neither running nor done in the gauge?"""
                families = {each.name: each for each in _Snapshot(engine.stats(), "tiny").collect()}
                shown = sum(
                    families[f"vllm:num_requests_{kind}"].samples[0].value for kind in ("running", "waiting")
                )
                lost.append(len(scheduler.groups) - shown)

        engine = server.engine.engine
        engine.trace.observers += (Watch(),)
        prompts = [f"starved {number}" for number in range(6)]
        answer = server.client().completions.create(prompt=prompts, **GREEDY | {"max_tokens": 40})
        metrics = read_metrics(server)
        assert metrics["vllm:num_preemptions_total"] > 0
        assert metrics["vllm:prompt_tokens_total"] == answer.usage.prompt_tokens
        assert lost and not any(lost)


# -- errors -----------------------------------------------------------------------------------------

WRONG = [
    ({"prompt": "a", "tools": [{"type": "function"}]}, "tools"),
    ({"prompt": "a", "suffix": "b"}, "suffix"),
    ({"prompt": "a", "best_of": 2}, "best_of"),
    ({"prompt": "a", "response_format": {"type": "json_object"}}, "response_format"),
    ({"prompt": "a", "temprature": 0.5}, "temprature"),
    ({"prompt": "a", "temperature": -1}, "temperature"),
    ({"prompt": "a", "temperature": "hot"}, "temperature"),
    ({"prompt": "a", "max_tokens": 0}, "max_tokens"),
    ({"prompt": "a", "max_tokens": True}, "max_tokens"),
    ({"prompt": "a", "max_tokens": 201}, "max_tokens"),
    ({"prompt": "a", "top_p": 2}, "top_p"),
    ({"prompt": "a", "n": 0}, "n"),
    ({"prompt": "a", "logprobs": 99}, None),
    ({"prompt": "a", "stop": [""]}, "stop"),
    ({"prompt": "a", "stream_options": 1}, "stream_options"),
    ({"prompt": [1, 99_999]}, None),
    ({"prompt": ""}, "prompt"),
    ({"prompt": "x" * 199 + "yz"}, None),
    ({"prompt": "\ud800"}, None),
    ({}, "prompt"),
]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("body, param", WRONG, ids=[json.dumps(body)[:50] for body, _ in WRONG])
def test_what_is_wrong_gets_400_and_names_the_field(server, body, param, stream):
    """Would catch a field that is ignored in silence, and a stream which begins with 200 and ends in an error."""
    content = json.dumps(
        body | {"model": "tiny", "stream": stream}
    )  # escapes: httpx refuses a lone surrogate
    answer = httpx.post(
        f"{server.url}/v1/completions", content=content, headers={"Content-Type": "application/json"}
    )
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["type"] == "invalid_request_error" and error["message"]
    if param is not None:
        assert error["param"].split(".")[0] == param


@pytest.mark.parametrize(
    "content, kind, told",
    [
        ("{", "application/json", "the body must be JSON: Expecting property name"),
        ('{"prompt": "a"}', "text/plain", 'the header Content-Type must be "application/json", got \'text/plain\''),
        ('{"prompt": "a"}', None, 'the header Content-Type must be "application/json", got none'),
    ],
)  # fmt: skip
def test_a_body_that_is_not_json_is_told_so(server, content, kind, told):
    """Would catch "1: JSON decode error" about a field called "1", and a dictionary that is no dictionary."""
    headers = {"Content-Type": kind} if kind else {}
    error = httpx.post(f"{server.url}/v1/completions", content=content, headers=headers).json()["error"]
    assert error["message"].startswith(told) and error["param"] is None


@pytest.mark.parametrize(
    "more, param, told",
    [
        ({"prompt": [1, "a"]}, "prompt", "text, a list of token ids, or a list of either"),
        ({"stop": [1]}, "stop", "a string or a list of strings"),
        ({"logit_bias": {"1.5": 1}}, "logit_bias", "token ids as keys, such as \"65\", got '1.5'"),
        ({"logit_bias": {"6_5": 1}}, "logit_bias", "token ids as keys, such as \"65\", got '6_5'"),
        ({"max_tokens": 201}, "max_tokens", "max_tokens=201 cannot be greater than max_model_len=200"),
        ({"max_completion_tokens": 0}, "max_completion_tokens", "max_completion_tokens must be at least 1, got 0"),
        ({"max_completion_tokens": 201}, "max_completion_tokens",
         "max_completion_tokens=201 cannot be greater than max_model_len=200"),
    ],
)  # fmt: skip
def test_an_error_names_the_field_as_it_was_sent_and_what_it_may_hold(server, more, param, told):
    """Would catch a field "prompt.str" that nobody sent, "invalid literal for int()", and 6_5 taken for 65."""
    chat = "max_completion_tokens" in more
    body = {"messages": MESSAGES} if chat else {"prompt": "a"}
    answer = post(server, "/v1/chat/completions" if chat else "/v1/completions", body | more)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == param and told in error["message"]


def test_what_the_prompt_leaves_no_room_for_is_cut_off(server):
    """Would catch a refusal of a limit that only this prompt makes too large: vLLM takes it, as we say we do."""
    body = {"prompt": "a" * 50, "max_tokens": 200, "temperature": 0, "ignore_eos": True}
    answer = post(server, "/v1/completions", body).json()
    assert answer["usage"]["total_tokens"] == 200
    assert answer["choices"][0]["finish_reason"] == "length"


@pytest.mark.parametrize(
    "body, param",
    [
        ({"messages": []}, None),
        ({"messages": [{"role": "user"}]}, None),
        ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]}, None),
        ({"messages": MESSAGES, "tools": [{"type": "function"}]}, "tools"),
        ({"messages": MESSAGES, "chat_template": "{{ 1 }}"}, "chat_template"),
        ({"messages": MESSAGES, "top_logprobs": 2}, "top_logprobs"),
        ({"messages": [{"role": "assistant", "content": "a", "tool_calls": [{}]}]}, "messages.0.tool_calls"),
        ({"messages": MESSAGES, "add_generation_prompt": True, "continue_final_message": True},
         "continue_final_message"),
    ],
)  # fmt: skip
def test_a_wrong_chat_gets_400(server, body, param):
    """Would catch images that are dropped, and a template that a client can send."""
    answer = post(server, "/v1/chat/completions", body)
    assert answer.status_code == 400, answer.text
    assert param is None or answer.json()["error"]["param"] == param


@pytest.mark.parametrize(
    "path, body, param",
    [
        ("/tokenize", {"prompt": "a", "add_special_token": False}, "add_special_token"),
        ("/tokenize", {"prompt": "a", "return_token_strs": True}, "return_token_strs"),
        ("/tokenize", {"messages": MESSAGES, "chat_template": "{{ 1 }}"}, "chat_template"),
        ("/tokenize", {"messages": [{"role": "assistant", "content": "a", "tool_calls": [{}]}]},
         "messages.0.tool_calls"),
        ("/tokenize", {"messages": MESSAGES, "add_generation_prompt": True, "continue_final_message": True},
         "continue_final_message"),
        ("/tokenize", {"messages": MESSAGES, "add_special_tokens": True}, "add_special_tokens"),
        ("/tokenize", {}, "prompt"),
        ("/detokenize", {"tokens": [65], "skip_special_tokens": True}, "skip_special_tokens"),
        ("/v1/completions", {"prompt": "a", "stream": True, "stream_options": {"include_usge": True}},
         "stream_options.include_usge"),
    ],
)  # fmt: skip
def test_no_route_drops_a_field_in_silence(server, path, body, param):
    """Would catch a misspelt field which is ignored, so that tokens are counted, or usage awaited, in vain."""
    answer = post(server, path, body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_tokenize_makes_the_prompt_that_a_chat_makes(server):
    """Would catch tokens of another prompt than the chat's, as of a continued message whose turn is ended."""
    messages = [{"role": "user", "content": "Count"}, {"role": "assistant", "content": "One, two"}]
    counts = []
    for choice in ({}, {"add_generation_prompt": False}, {"continue_final_message": True}):
        counts.append(post(server, "/tokenize", {"messages": messages} | choice).json()["count"])
        chat = post(server, "/v1/chat/completions", {"messages": messages, "max_tokens": 1} | choice)
        assert chat.json()["usage"]["prompt_tokens"] == counts[-1]
    assert len(set(counts)) == 3


def test_stream_options_without_a_stream_are_refused(server):
    """Would catch a usage chunk that is waited for and never comes."""
    answer = post(server, "/v1/completions", {"prompt": "a", "stream_options": {"include_usage": True}})
    assert answer.status_code == 400 and answer.json()["error"]["param"] == "stream_options"


def test_what_says_nothing_or_changes_nothing_is_taken(server):
    """Would catch a refusal of the nulls and defaults that frameworks send with each request."""
    body = {"messages": MESSAGES, "max_tokens": 1, "tools": None, "stop": None, "user": "u", "tool_choice": "none",
            "response_format": {"type": "text"}, "metadata": {"a": "b"}, "logit_bias": {}, "n": None}  # fmt: skip
    assert post(server, "/v1/chat/completions", body).status_code == 200


def test_errors_become_the_clients_exceptions_and_tell_nothing_of_our_insides(server, script, monkeypatch):
    """Would catch a status that the client takes for another error, and a path or traceback in a body."""
    client = server.client()
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.completions.create(model="another", prompt="a")
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="tiny", prompt="a", top_p=7)
    assert caught.value.param == "top_p"

    def explode(plan):
        raise KeyError("/secret/path")

    monkeypatch.setattr(server.engine.engine.runner, "execute_model", explode)
    with pytest.raises(openai.InternalServerError) as caught:
        client.completions.create(model="tiny", prompt="a")
    assert "secret" not in caught.value.response.text and "Traceback" not in caught.value.response.text


@pytest.mark.parametrize("path, status", [("/nothing", 404), ("/v1/completions", 405)])
def test_unknown_paths_and_methods_get_an_error_body(server, path, status):
    """Would catch FastAPI's own error form, which OpenAI's clients do not read."""
    answer = httpx.get(server.url + path)
    assert answer.status_code == status and answer.json()["error"]["message"]


# -- clients ----------------------------------------------------------------------------------------


def test_async_clients_share_the_engine(server, llm):
    """Would catch answers that reach another client, under load and in a stream."""

    async def main():
        client = openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=60)

        async def one(i):
            stream = await client.completions.create(prompt=f"client {i}", stream=True, **GREEDY)
            return "".join([chunk.choices[0].text async for chunk in stream])

        return await asyncio.gather(*map(one, range(12)))

    assert asyncio.run(main()) == [offline(llm, f"client {i}")[0].text for i in range(12)]


# -- limits -----------------------------------------------------------------------------------------


def test_a_body_that_is_too_large_or_broken_is_refused(server):
    """Would catch a server that reads whatever it is sent into memory."""
    big = b'{"prompt": "' + b"a" * (5 * 2**20) + b'"}'
    for content, status in ((big, 413), (b"{", 400), (b"\xff\xfe", 400), (b"", 400), (b"[1]", 400)):
        headers = {"Content-Type": "application/json"}
        answer = httpx.post(f"{server.url}/v1/completions", content=content, headers=headers, timeout=30)
        assert answer.status_code == status and answer.json()["error"]["message"]


def test_pages_of_other_origins_are_refused(server):
    """Would catch a web page that stops the engine of a user who only looks at it."""
    for headers, status in (({"Origin": "http://evil.example"}, 403), ({"Origin": server.url}, 200)):
        assert httpx.post(f"{server.url}/page/resume", headers=headers).status_code == status
    answer = httpx.get(f"{server.url}/v1/models")
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "host, status",
    [
        ("evil.example", 403), ("evil.example:80", 403), ("localhost.evil.example", 403), ("192.0.2.1", 403),
        ("[2001:db8::1]", 403), ("[broken", 403), ("", 403), ("localhost", 200), ("LOCALHOST:1", 200), ("127.0.0.1", 200),
        ("[::1]:8000", 200), ("class.localhost", 200),
    ],
)  # fmt: skip
def test_a_page_whose_host_claims_to_be_this_machine_is_refused(server, host, status):
    """Would catch DNS rebinding: to the browser, evil.example calls its own host, which is ours by now."""
    headers = {"Host": host, "Origin": f"http://{host}"}
    answer = httpx.post(f"{server.url}/page/resume", headers=headers)
    assert answer.status_code == status, answer.text
    assert status == 200 or "Host" in answer.json()["error"]["message"]


def test_a_proxys_name_may_be_allowed(start):
    """Would catch a proxy on this machine, which hands on the name it is called by, and cannot get in."""
    with start("--allowed-origins", "https://ui.example") as server:
        for host, status in (("ui.example", 200), ("evil.example", 403)):
            assert httpx.get(f"{server.url}/version", headers={"Host": host}).status_code == status


def test_a_server_for_other_machines_may_have_any_name(start):
    """Would catch a server in a network that refuses all who call it by its name there."""
    with start("--host", "0.0.0.0") as server:
        assert httpx.get(f"{server.url}/version", headers={"Host": "gpu7.example"}).status_code == 200


@pytest.mark.parametrize(
    "value, status",
    [("Bearer right", 200), ("bearer right", 200), ("BEARER  right", 200), ("right", 401), ("Basic right", 401),
     ("Bearer", 401), ("Bearer wrong", 401), ("Bearerright", 401), ("", 401)],
)  # fmt: skip
def test_a_key_needs_its_scheme_in_any_case(value, status):
    """Would catch a client that writes "bearer", as it may, and is refused; and a bare key that is taken."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    sent = []

    async def send(message):
        sent.append(message)

    headers = [(b"host", b"localhost"), (b"authorization", value.encode())]
    guard = Guard(app, Limits(api_keys=("other", "right")))
    asyncio.run(guard({"type": "http", "path": "/v1/models", "headers": headers}, None, send))
    assert sent[0]["status"] == status


@pytest.mark.parametrize("page", [True, False])
def test_where_the_server_is_is_said_once_it_listens(start, capsys, page):
    """Would catch a URL with port 0, and the address of a page that is not there."""
    with start(*([] if page else ["--no-page"])) as server:
        said = capsys.readouterr().out
        assert f"The API: {server.url}/v1\n" in said
        assert (f"The pool to look at: {server.url}/ " in said) == page == ("pool" in said)


def test_too_many_requests_get_503_and_may_come_again(server, script, monkeypatch):
    """Would catch a queue without an end, and a refusal that leaves something behind."""
    monkeypatch.setattr(server.server.service, "max_unfinished", 2)
    script("x" * 200, seconds=0.05)  # 150 tokens take 7 seconds and more
    client = server.client()
    with client.completions.create(model="tiny", prompt="a", max_tokens=150, stream=True) as first:
        next(iter(first))
        with pytest.raises(openai.InternalServerError) as caught:
            client.completions.create(prompt=["b", "c"], **GREEDY)
        assert caught.value.status_code == 503 and caught.value.response.headers["retry-after"] == "1"
    server.wait(is_empty)
    assert len(client.completions.create(prompt=["b", "c"], **GREEDY).choices) == 2


def test_more_prompts_than_can_ever_be_queued_get_400(server, monkeypatch):
    """Would catch a client that is told to try again, for ever, by a server which has nothing to do."""
    monkeypatch.setattr(server.server.service, "max_unfinished", 2)
    with pytest.raises(openai.BadRequestError, match="at most 2 prompts in one request, got 3") as caught:
        server.client().completions.create(prompt=["a", "b", "c"], **GREEDY)
    assert caught.value.param == "prompt" and "retry-after" not in caught.value.response.headers
    assert server.client().completions.create(prompt=["a", "b"], **GREEDY).choices


def test_a_write_that_never_ends_is_given_up():
    """Would catch a client that holds a connection, and an answer, for ever by not reading."""

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": []})

    async def never(message):
        await asyncio.Event().wait()

    guard = Guard(app, Limits(write_seconds=0.02))
    with pytest.raises(TimeoutError):
        asyncio.run(guard({"type": "http", "path": "/", "headers": []}, None, never))


def test_slow_headers_and_slow_bodies_are_cut_off(start, monkeypatch):
    """Would catch connections that a client can hold for ever by sending nothing more."""
    with start("--timeout-keep-alive", "1", "--api-key", "right") as server:
        (guard,) = [each for each in server.server.config.app.user_middleware if each.cls.__name__ == "Guard"]
        object.__setattr__(guard.kwargs["limits"], "body_seconds", 0.3)
        host = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        with socket.create_connection(host, timeout=10) as slow:
            slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n")
            assert slow.recv(100) == b"", "a connection without complete headers stays open"
        with socket.create_connection(host, timeout=10) as slow:
            slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer right\r\n"
                         b"Content-Type: application/json\r\nContent-Length: 50\r\n\r\n{")  # fmt: skip
            assert b"408" in slow.recv(1000)
        # The same server: who may come in.
        for path in ("/v1/models", "/metrics", "/page/events", "/openapi.json"):
            for headers in ({}, {"Authorization": "Bearer wrong"}):
                assert httpx.get(server.url + path, headers=headers).status_code == 401, path
        assert httpx.get(server.url + "/health").status_code == httpx.get(server.url).status_code == 200
        with pytest.raises(openai.AuthenticationError):
            server.client().models.list()
        assert server.client(api_key="right").models.list().data
        with concurrent.futures.ThreadPoolExecutor() as pool:  # an upload that ends in the middle
            assert pool.submit(lambda: abandon(host)).result(10) is None
        assert server.client(api_key="right").completions.create(prompt="a", **GREEDY).choices
        assert server.is_empty()


def drip(client, seconds=30):
    """Send a byte now and then until the server answers; -> what it says, or b"" if it closes."""
    client.settimeout(0.05)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            client.sendall(b"x")
            return client.recv(1000)
        except TimeoutError:
            continue
        except ConnectionError:
            return b""
    raise AssertionError(f"a client that drips holds its connection for {seconds} seconds and more")


def test_a_body_that_drips_is_cut_off(start):
    """Would catch a time limit that begins anew with each byte of a body: it would never end."""
    with start() as server:
        (guard,) = [each for each in server.server.config.app.user_middleware if each.cls.__name__ == "Guard"]
        object.__setattr__(guard.kwargs["limits"], "body_seconds", 0.3)
        host = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        with socket.create_connection(host, timeout=10) as slow:
            slow.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\n"
                         b"Content-Type: application/json\r\nContent-Length: 100000\r\n\r\n{")  # fmt: skip
            assert b"408" in drip(slow)


@pytest.mark.parametrize("number", [1, 2])
def test_headers_that_drip_are_cut_off(start, number):
    """Would catch a timer that the first byte stops: from the second request on nothing else ran out."""
    with start("--timeout-keep-alive", "1") as server:
        host = ("127.0.0.1", int(server.url.rpartition(":")[2]))
        with socket.create_connection(host, timeout=10) as slow:
            if number == 2:
                slow.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert b"200 OK" in slow.recv(1000)
            slow.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
            assert drip(slow) == b""


def abandon(host):
    """Send half a body and go."""
    with socket.create_connection(host, timeout=10) as client:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer right\r\n"
                       b"Content-Type: application/json\r\nContent-Length: 500\r\n\r\n{")  # fmt: skip
