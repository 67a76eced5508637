"""What a client may do, and in what time: keys, origins, hosts, sizes, and all the ways to be slow."""

import asyncio
import concurrent.futures
import socket
import time

import httpx
import openai
import pytest

from minivllm.server.limits import Guard, Limits
from tests.server.conftest import is_empty
from tests.server.test_api import GREEDY


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
