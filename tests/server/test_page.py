"""The page: what it is fed, and what a teacher sees and presses, in a real browser."""

import asyncio
import json
import re
import time

import httpx
import pytest

from minivllm import EngineConfig, LLMEngine, SamplingParams
from minivllm.server.async_llm import AsyncLLM
from minivllm.server.events import StepLog
from minivllm.server.page import Feed, page_html
from minivllm.viz.style import PALETTE
from tests.server.browser import chromium

GREEDY = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)


# -- what the page is fed ---------------------------------------------------------------------------


@pytest.fixture
def walk(tiny_llama):
    """`walk(prompts, **options)`: the frames of a paused engine, one after each step, until nothing is left."""

    def run(prompts, params=GREEDY, **options):
        log = StepLog()
        log.is_watched = True
        options = {"num_blocks": 16, "block_size": 4, "max_model_len": 60} | options
        engine = AsyncLLM(lambda: LLMEngine(EngineConfig(model=str(tiny_llama), **options), trace=log))

        async def main():
            async def read(number, prompt):
                return [o async for o in engine.generate(prompt, params, f"r{number}")]

            await engine.pause()
            tasks = [asyncio.create_task(read(*each)) for each in enumerate(prompts)]
            while engine.num_unfinished < len(prompts):
                await asyncio.sleep(0)
            frames = [await engine.call(log.frame)]
            while await engine.step():
                frames.append(await engine.call(log.frame))
                assert await engine.call(log.frame) == frames[-1]  # a second look sees the same
            await asyncio.gather(*tasks)
            return frames

        frames = asyncio.run(main())
        engine.shutdown()
        json.dumps(frames)
        return frames

    return run


def check(frame):
    """What must hold in every picture: block by block, against the requests."""
    ids = [block[0] for block in frame["blocks"]]
    assert len(ids) == len(set(ids)) and not set(ids) & set(frame["cached"])
    assert all(
        0 <= filled <= frame["block_size"] and holders >= 1 for _, filled, holders, _, _ in frame["blocks"]
    )
    running = {each["number"] for each in frame["requests"] if each["state"] == "running"}
    assert {number for block in frame["blocks"] for number in block[3]} <= running


def test_a_walk_shows_admission_waiting_preemption_and_the_end(walk):
    """Would catch a page that keeps silent about what the class is to see, or gives a wrong reason."""
    frames = walk(["first one, quite long", "second, the same", "third"])
    for frame in frames:
        check(frame)
    assert [each["state"] for each in frames[0]["requests"]] == ["waiting"] * 3
    assert frames[0]["blocks"] == []
    text = " ".join(line for frame in frames for line in [*frame["did"], *frame["why"]])
    assert "Request 1 is admitted: 21 tokens, blocks 0, 1, 2, 3, 4, 5." in text
    assert re.search(r"Request \d is preempted: no block was free, and it was admitted last", text)
    assert re.search(r"Request \d waits: after a preemption no request is admitted in the same step", text)
    assert re.search(r"Request \d waits: it needs \d+ blocks for its \d+ tokens, and fewer were free", text)
    assert all(f"Request {number} is finished; its blocks are free." in text for number in (1, 2, 3))
    assert frames[-1]["requests"] == [] and frames[-1]["preemptions"] > 0
    assert [frame["step"] for frame in frames] == list(range(len(frames)))


def test_cells_fill_token_by_token(walk):
    """Would catch a picture that jumps from block to block, or counts the token that is not computed yet."""
    frames = walk(["abcdef"], num_blocks=32)
    filled = [sum(block[1] for block in frame["blocks"]) for frame in frames[1:-1]]
    assert filled == list(range(6, 6 + len(filled))) and len(filled) == 29


def test_shared_and_copied_blocks_are_marked(walk):
    """Would catch two completions that look as if each had a prompt of its own."""
    frames = walk(["abcdef"], SamplingParams(n=2, temperature=1, seed=1, max_tokens=4, ignore_eos=True))
    assert any(block[2] == 2 for block in frames[1]["blocks"])
    assert any(block[4] == "copy" for block in frames[2]["blocks"])
    assert "is shared and about to be written: copied to" in " ".join(frames[2]["did"])


@pytest.mark.parametrize(
    "options, reason",
    [
        ({"max_num_seqs": 1}, "all 1 seats are taken"),
        ({"max_num_batched_tokens": 8, "max_num_seqs": 8}, "the budget of 8 tokens is spent"),
    ],
)
def test_the_reason_why_a_request_waits_is_the_one_that_holds(walk, options, reason):
    """Would catch "not enough blocks" where it was the seats or the budget."""
    frames = walk(["first one", "second one", "third"], num_blocks=64, **options)
    assert reason in frames[1]["why"][0] and "1 more wait" in frames[1]["why"][1]
    assert not any("fewer were free" in line for frame in frames for line in frame["why"])


def test_nothing_is_written_down_while_nobody_watches(tiny_llama, walk):
    """Would catch a page that costs every step, open or not."""
    log = StepLog()
    log.record(None, None, None, 0.0)  # would fail if it looked at anything
    assert not log._news


def test_two_slow_pages_see_the_same_newest_frame(tiny_llama):
    """Would catch frames that queue up for a slow page, and two tabs that disagree."""
    log = StepLog()
    config = EngineConfig(model=str(tiny_llama), num_blocks=16, block_size=4, max_model_len=60)
    engine = AsyncLLM(lambda: LLMEngine(config, trace=log))

    async def main():
        feed = Feed(engine, log)
        first, second = feed.frames(), feed.frames()
        await anext(first), await anext(second)
        async for _ in engine.generate("abc", GREEDY, "a"):
            await feed.look()
        frames = [await anext(first), await anext(second)]
        assert frames[0] == frames[1] and b'"step":30' in frames[0]
        await first.aclose()
        assert log.is_watched
        await second.aclose()
        assert not log.is_watched and feed._task is None

    asyncio.run(main())
    engine.shutdown()


def test_pictures_take_a_hundredth_of_the_time_at_most(tiny_llama):
    """Would catch a large pool whose pictures slow every step down, and ten looks a second at an idle engine."""
    log = StepLog()
    config = EngineConfig(model=str(tiny_llama), num_blocks=16, block_size=4, max_model_len=60)
    engine = AsyncLLM(lambda: LLMEngine(config, trace=log))
    feed = Feed(engine, log)
    log.frame = lambda engine: time.sleep(0.01) or {}
    asyncio.run(feed.look())
    assert feed.pause >= 1.0
    log.frame = lambda engine: {}
    asyncio.run(feed.look())
    assert feed.pause == 0.1
    engine.shutdown()


def test_the_page_is_one_piece_and_has_the_palette_of_the_figures():
    """Would catch a script from another host, and colours that drift away from those of the figures."""
    html = page_html()
    assert not re.search(r"https?://|src=|@import|url\(", html)
    assert all(colour in html for colour in PALETTE)
    assert "/* STYLE */" not in html and "/* SCRIPT */" not in html


def test_step_while_running_is_refused(server):
    """Would catch a Step that runs beside the engine's own steps."""
    answer = httpx.post(f"{server.url}/page/step")
    assert answer.status_code == 409 and "pause it" in answer.json()["error"]["message"]


# -- in a browser -----------------------------------------------------------------------------------

CLICK = "document.getElementById('{}').click()"
TEXT = "document.getElementById('{}').textContent"
HELD = "document.querySelectorAll('#grid .cell.held').length"


def click(tab, name):
    tab.run(CLICK.format(name))


@pytest.mark.browser
def test_chat_pause_and_step_in_a_browser(server, tmp_path):
    """Would catch script errors, a Step that is two, tabs that disagree, and a page only a mouse can use."""
    with chromium(tmp_path) as open_tab:
        one, other = open_tab(server.url), open_tab(server.url)
        for tab in (one, other):
            tab.wait("document.querySelectorAll('#grid .cell').length == 64")
        assert one.run(TEXT.format("state")) == "idle"

        # A chat streams to its end, and the blocks are free again.
        one.run("document.getElementById('limit').value = 40")
        one.run(
            "document.getElementById('text').value = 'Hi there'; document.getElementById('form').requestSubmit()"
        )
        one.wait("document.querySelector('.message.assistant').dataset.finished")
        one.wait(f"{HELD} == 0")

        # Pause holds the engine; three requests wait; both tabs say so.
        one.run("document.dispatchEvent(new KeyboardEvent('keydown', {key: 'p'}))")
        other.wait("document.body.classList.contains('paused')")
        click(one, "three")
        for tab in (one, other):
            tab.wait("document.querySelectorAll('#waiting .chip').length == 3")
        steps = server.ask(lambda engine: engine.scheduler.stats.num_steps)

        # Step is exactly one; cells change, in both tabs alike.
        for number in range(1, 4):
            (one if number % 2 else other).run("document.getElementById('step').click()")
            for tab in (one, other):
                tab.wait(f"{TEXT.format('steps')} == '{steps + number}'")
            assert server.ask(lambda engine: engine.scheduler.stats.num_steps) == steps + number
        script = "[...document.querySelectorAll('#grid .cell')].map((cell) => cell.title).join()"
        assert one.run(script) == other.run(script) and one.run(HELD) > 0
        assert "Request 2 computes position" in one.run("document.getElementById('did').innerText")

        # Chips, alternative text, no sideways scrolling.
        assert one.run("document.querySelectorAll('#running .chip').length") >= 1
        assert re.search(r"64 blocks: \d+ held", one.run("document.getElementById('grid').ariaLabel"))
        assert one.run("document.documentElement.scrollWidth <= innerWidth")
        click(one, "pause")
        one.wait("document.querySelectorAll('.message.assistant[data-finished]').length == 4", 60)


@pytest.mark.browser
def test_the_page_asks_for_no_more_tokens_than_a_small_pool_has_room_for(start, tmp_path):
    """Would catch a chat whose default limit is refused, with 400, as soon as a class starts with few blocks."""
    with start("--max-model-len", "60") as server, chromium(tmp_path) as open_tab:
        tab = open_tab(server.url)
        tab.wait("document.querySelectorAll('#grid .cell').length == 64")
        assert tab.run("document.getElementById('limit').value") == "200"
        tab.run(
            "document.getElementById('text').value = 'Hi'; document.getElementById('form').requestSubmit()"
        )
        tab.wait("document.querySelector('.message.assistant').dataset.finished")


@pytest.mark.browser
def test_a_pool_of_400_blocks_stays_readable(server, tmp_path):
    """Would catch cells that overlap, run off the page or lose their labels in a larger pool."""
    with chromium(tmp_path) as open_tab:
        tab = open_tab("about:blank")
        blocks = [[i, i % 17, 1 + i % 2, [1 + i % 9], ""] for i in range(250)]
        frame = {"step": 1, "num_blocks": 400, "block_size": 16, "blocks": blocks, "cached": list(range(250, 300)),
                 "requests": [], "generated": 1, "preemptions": 0, "did": [], "why": [], "news": [], "paused": True,
                 "time": 1.0}  # fmt: skip
        data = "data: " + json.dumps(frame) + "\n\n"
        fake = f"<script>window.fetch = async () => new Response({json.dumps(data)});</script>"
        page = tmp_path / "page.html"
        page.write_text(page_html().replace("<body>", "<body>" + fake), encoding="utf-8")
        tab.send("Page.navigate", url=page.as_uri())
        tab.wait("document.querySelectorAll('#grid .cell').length == 400")
        boxes = tab.run("[...document.querySelectorAll('#grid .cell')].map((c) => {const r = c.getBoundingClientRect();"
                        "return [r.left, r.top, r.right, r.bottom]})")  # fmt: skip
        assert len({(left, top) for left, top, _, _ in boxes}) == 400
        assert all(right - left >= 24 and bottom - top >= 24 for left, top, right, bottom in boxes)
        assert max(right for _, _, right, _ in boxes) <= tab.run("innerWidth")
        assert tab.run("document.querySelectorAll('#grid .cell.held .who').length") == 250
        assert tab.run("document.querySelectorAll('#grid .cell.cached').length") == 50
        tab.screenshot(tmp_path / "pool.png", 1400, 860)
