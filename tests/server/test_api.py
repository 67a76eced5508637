"""OpenAI's API, as its own client package sees it, with the offline engine as oracle."""

import ast
import asyncio
import codecs
import concurrent.futures
import json

import httpx
import openai
import pytest

from minivllm import SamplingParams

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

    And a usage with a completion token which the request did not ask for.
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
    """Would catch a field "prompt.str" which no request has, "invalid literal for int()", and 6_5 taken for 65."""
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
