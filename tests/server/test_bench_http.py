"""The load generator and the soak, against the server of these tests; and arbitrary bodies, none of which is a 500."""

import asyncio
import json
import random

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivllm import SamplingParams
from minivllm.bench import http, soak
from minivllm.bench.servers import Server
from minivllm.bench.workloads import BenchRequest, with_arrivals
from minivllm.server.protocol import ChatRequest, CompletionRequest, DetokenizeRequest, TokenizeRequest
from tests.server.conftest import is_empty


def test_the_load_generator_counts_every_token_at_its_time(server):
    """Would catch a chunk that counts as one token whatever it holds, and arrivals that are not waited for."""
    requests = [BenchRequest(tuple(range(i, i + 5)), 6 + i) for i in range(4)]
    served, seconds = http.send_all(server.url, "tiny", with_arrivals(requests, 20.0))
    assert [len(each.tokens) for each in served] == [6, 7, 8, 9]
    for each in served:
        assert list(each.tokens) == sorted(each.tokens) and each.tokens[0] > each.arrival
    assert max(each.tokens[-1] for each in served) <= seconds


def test_the_load_generator_fails_where_the_server_refuses(server):
    """Negative control: would catch a rate that is computed from error answers."""
    with pytest.raises(RuntimeError, match=r"answered .*400 Bad Request"):
        http.send_all(server.url, "tiny", [BenchRequest(tuple(range(300)), 5)])


@pytest.mark.parametrize("kind", sorted(set(soak.KINDS) - {"crowd"}))
def test_each_client_of_the_soak_leaves_an_empty_server(server, llm, kind):
    """Would catch a client of the soak that does not do what it says, and what it leaves behind in the server."""
    rng = random.Random(3)
    bodies = [soak.make_body(rng) for _ in range(4)]
    expected = {}
    for body in bodies:
        body["max_tokens"] = min(body["max_tokens"], 30)  # with n = 3, more would not fit into 64 blocks of 4
        params = SamplingParams(**{name: value for name, value in body.items() if name != "prompt"})
        (output,) = llm.generate([body["prompt"]], params, use_tqdm=False)
        expected[json.dumps(body)] = "|".join(each.text for each in output.outputs)
    run = soak.Soak(Server("tiny", server.url), expected)

    async def main():
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            await asyncio.gather(*(soak.KINDS[kind][0](run, client, rng) for _ in range(5)))

    asyncio.run(main())
    assert run.failures == []
    server.wait(is_empty)


def test_the_soak_notices_a_wrong_text(server):
    """Negative control: would catch a soak that reports "nothing failed" whatever the server says."""
    body = {"prompt": "a", "max_tokens": 3, "temperature": 0}
    run = soak.Soak(Server("tiny", server.url), {json.dumps(body): "wrong"})

    async def main():
        async with httpx.AsyncClient(base_url=server.url, timeout=30) as client:
            for kind in ("whole", "stream"):
                await soak.KINDS[kind][0](run, client, random.Random(0))

    asyncio.run(main())
    assert [text.partition(":")[0] for text in run.failures] == ["whole", "stream"]


def test_the_slope_of_memory_is_that_of_the_last_two_thirds():
    """Would catch a leak that is averaged away, and a start that counts as one."""
    points = [(t, 10**9 if t < 20 else 10**9 + 1024 * t) for t in range(0, 60, 2)]
    assert soak.slope(points) == pytest.approx(60, rel=0.01)


# -- any body ---------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**12), 10**12)
    | st.floats()
    | st.text("a\ud800é{", max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("ab1", max_size=3), inner, max_size=2)
    ),
    max_leaves=5,
)
# A body that would pass, so that what is drawn beside it is looked at.
GOOD = {
    "/v1/completions": (CompletionRequest, {"prompt": "a", "max_tokens": 2}),
    "/v1/chat/completions": (ChatRequest, {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2}),
    "/tokenize": (TokenizeRequest, {"prompt": "a"}),
    "/detokenize": (DetokenizeRequest, {"tokens": [97]}),
}


@st.composite
def bodies(draw):
    """A path, and a body with some fields of that route replaced by anything."""
    path = draw(st.sampled_from(sorted(GOOD)))
    model, good = GOOD[path]
    names = st.sampled_from([*sorted(model.model_fields), "unknown"])
    near = JSON | st.sampled_from([0, 1, 2, -1, 0.5, 1.0, True, False, "a", ["a"], [1], {"1": 1.0}])
    return path, good | draw(st.dictionaries(names, near, max_size=3))


@settings(max_examples=60)
@given(bodies())
def test_no_body_whatever_is_a_500(shared, drawn):
    """Would catch a value that passes all checks and fails in the engine, or in the JSON of the answer."""
    path, body = drawn
    headers = {"Content-Type": "application/json"}
    answer = httpx.post(shared.url + path, content=json.dumps(body), headers=headers, timeout=30)
    assert answer.status_code in (200, 400, 404), (answer.status_code, answer.text, body)
    if answer.status_code != 200:
        assert answer.json()["error"]["message"]
    elif body.get("stream"):
        assert answer.text.endswith("data: [DONE]\n\n"), answer.text
    assert not shared.engine.errored
