"""Figures and the trace player: drawn from traces and from nothing else, countable, described, self-contained."""

import io
import json
import re
import shutil
import subprocess
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from PIL import Image

from minivllm.baselines import ReservationPolicy, StaticBatchScheduler, orca, paged_slot_usage
from minivllm.course.toy import arrange_free_blocks, decode, encode, example_llm, greedy, toy_llm, word
from minivllm.outputs import SequenceOutput
from minivllm.sampling_params import SamplingParams
from minivllm.viz import (
    block_grid,
    blocks_in_use,
    figure_html,
    gantt,
    memory_area,
    memory_use,
    png_bytes,
    request_style,
    seating,
    slot_map,
    three_panel,
    throughput_waterfall,
    tokens_per_step,
    trace_player,
    wasted_share,
)
from minivllm.viz.animation import NUM_MOVING, animate
from minivllm.viz.style import new_figure
from minivllm.viz.trace import Trace
from minivllm.viz.usage import filled_during, slot_words, tables_during
from tests.helpers import add, make_scheduler

PROMPT = "Four score and seven years ago"
CHROMIUM = "Chromium is missing: the player is tested in a real browser. On Debian: apt-get install chromium."


def run(llm, prompts, max_tokens, **trace_options):
    """Generate, and return the trace and the outputs."""
    trace = llm.llm_engine.trace = Trace(word_of=word, **trace_options)
    prompts = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
    outputs = llm.generate(prompts, [greedy(count) for count in max_tokens], use_tqdm=False)
    return trace, outputs


@pytest.fixture(scope="module")
def example():
    """The worked example, 6 tokens generated, with a second request beside it."""
    return run(example_llm(), [encode(PROMPT), encode("all men are")], [6, 4])


@pytest.fixture(scope="module")
def batches():
    """One workload, three ways: static and contiguous, continuous and paged, paged and short of memory."""
    lengths = [(5, 8), (3, 4), (9, 12), (4, 6), (7, 3), (6, 10)]
    prompts = [[(7 * i + j) % 256 for j in range(length)] for i, (length, _) in enumerate(lengths)]
    wanted = [count for _, count in lengths]
    common = {"max_num_seqs": 3, "max_model_len": 32}
    static = toy_llm(
        num_blocks=24,
        scheduler_cls=StaticBatchScheduler,
        kv_cache_manager_cls=orca(ReservationPolicy.MAX, 32),
        **common,
    )
    return {
        "static": run(static, prompts, wanted)[0],
        "continuous": run(toy_llm(num_blocks=24, **common), prompts, wanted)[0],
        "short": run(toy_llm(num_blocks=6, **common), prompts, wanted)[0],
    }


def cells(fig, kind):
    """All drawn shapes with this gid."""
    return fig.findobj(lambda artist: artist.get_gid() == kind)


# -- the toy vocabulary -----------------------------------------------------------------------------


def test_every_token_id_has_a_word_of_its_own():
    """Would catch a word used twice: two different tokens would look alike in every figure."""
    words = [word(token_id) for token_id in range(258)]
    assert len(set(words)) == 258 and not any(" " in each for each in words)
    assert decode(encode(PROMPT)) == PROMPT and encode(PROMPT) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(ValueError, match="has no xylophone"):
        encode("Four xylophone")


def test_the_example_gets_blocks_7_and_2(example):
    """Would catch figures that no longer show the example that README, docs and notebooks tell of."""
    trace, outputs = example
    assert trace.steps[0].scheduled[0].block_ids == (7, 2)
    assert len(outputs[0].outputs[0].token_ids) == 6


def test_arranging_blocks_refuses_what_is_no_permutation():
    """Would catch a block lost or doubled by a typo in a notebook."""
    llm = example_llm()
    for order in ([0, 1, 2], [0, 0, 1, 2, 3, 4, 5, 6]):
        with pytest.raises(ValueError, match="each of the 8 blocks once"):
            arrange_free_blocks(llm, order)
    llm.llm_engine.scheduler.kv.check_invariants()


# -- numbers read off a trace -----------------------------------------------------------------------


def test_slots_of_all_kinds_add_up_to_the_pool(batches):
    """Would catch a slot counted twice or not at all, in any of three memory regimes."""
    for trace in batches.values():
        for use, record in zip(memory_use(trace), trace.steps, strict=True):
            kinds = (use.used, use.reserved, use.internal, use.rounding, use.free)
            assert sum(kinds) == use.capacity == trace.num_blocks * trace.block_size
            assert min(kinds) >= 0
            assert use.used == sum(filled_during(record).values()), "nothing is shared in these runs"


def drive(scheduler, num_steps, look):
    """Run a scheduler with a pretend model; `look(scheduler, plan)` is called in the middle of each step."""
    trace = Trace(start_time=0.0)
    for _ in range(num_steps):
        plan = scheduler.schedule()
        look(scheduler, plan)
        updated = scheduler.update_from_output(
            plan, [SequenceOutput(((1,),) * row.num_samples) for row in plan.scheduled]
        )
        trace.record(plan, updated, scheduler, now=0.0)
    return trace


def test_memory_use_of_paged_blocks_equals_the_managers_own_account():
    """Would catch a figure that disagrees with `paged_slot_usage`, which asks the live scheduler instead."""
    scheduler = make_scheduler(num_blocks=32, block_size=4)
    for name, (prompt, count) in enumerate([(6, 5), (3, 9), (11, 4), (1, 1)]):
        add(scheduler, name, prompt, count)
    seen = []
    trace = drive(
        scheduler, 9, lambda s, plan: seen.append(paged_slot_usage(s).with_written(plan.num_scheduled_tokens))
    )
    drawn = memory_use(trace)
    assert len(seen) == len(drawn) == 9
    for live, use in zip(seen, drawn, strict=True):
        assert (live.used, live.reserved, live.internal) == (use.used, use.reserved, use.internal)
        assert live.external == use.rounding + use.free
    assert any(use.reserved for use in drawn) and any(use.internal for use in drawn)


def test_memory_use_of_reservations_equals_the_managers_own_account():
    """Would catch rounding of the buddy allocator shown as a reservation, or the reverse."""
    scheduler = make_scheduler(num_blocks=32, block_size=4)
    scheduler.kv = orca(ReservationPolicy.POW2, 64)(32, 4)
    for name, (prompt, count) in enumerate([(6, 5), (3, 9), (11, 4)]):
        add(scheduler, name, prompt, count)
    seen = []
    trace = drive(
        scheduler,
        9,
        lambda s, plan: seen.append(s.kv.slot_usage().with_written(plan.num_scheduled_tokens)),
    )
    for live, use in zip(seen, memory_use(trace), strict=True):
        assert (live.used, live.reserved, live.internal) == (use.used, use.reserved, use.internal)
        assert live.external == use.rounding + use.free
    assert any(use.rounding for use in memory_use(trace))


def test_naive_batching_wastes_more_than_paging(batches):
    """Would catch a share taken of the wrong total: paging wastes less than one block per sequence."""
    assert wasted_share(batches["static"]) > 0.5 > wasted_share(batches["continuous"])
    for trace in (batches["continuous"], batches["short"]):
        for use, record in zip(memory_use(trace), trace.steps, strict=True):
            assert use.held - use.used < trace.block_size * max(1, len(tables_during(record)))


def test_words_lie_where_the_block_table_says(example):
    """Would catch a word in the wrong slot: the words of a request, read through its table, are its text."""
    trace, outputs = example
    last = max(i for i, record in enumerate(trace.steps) if 0 in tables_during(record))
    words, table = slot_words(trace, last), tables_during(trace.steps[last])[0]
    read = [words[table[position // 4] * 4 + position % 4] for position in range(11)]
    assert " ".join(read) == PROMPT + " " + decode(outputs[0].outputs[0].token_ids[:5])


def test_words_follow_shared_and_copied_blocks():
    """Would catch a forked completion that shows blanks where it shares the prompt, or after copy-on-write."""
    llm = toy_llm()
    trace = llm.llm_engine.trace = Trace(word_of=word)
    params = replace(greedy(4), n=2, temperature=1.0, seed=3)
    llm.generate({"prompt_token_ids": encode(PROMPT)}, params, use_tqdm=False)
    copied = next(i for i, record in enumerate(trace.steps) if record.blocks_to_copy)
    words = slot_words(trace, copied)
    for block_ids in tables_during(trace.steps[copied]).values():
        assert [words[block_ids[p // 4] * 4 + p % 4] for p in range(6)] == PROMPT.split()
    assert len(cells(three_panel(trace, copied, "0"), "filled")) == 2 * 7 + 4 + 2 * 3


def test_words_must_have_been_kept(batches, example):
    """Would catch a picture with blanks in place of an error that says what to do."""
    trace = Trace.from_json(example[0].to_json())
    trace.steps = [
        replace(record, scheduled=tuple(replace(row, words=None) for row in record.scheduled))
        for record in trace.steps
    ]
    with pytest.raises(ValueError, match="word_of"):
        three_panel(trace, 0, "0")


def test_seats_are_never_shared_and_every_token_is_seated(batches):
    """Would catch two requests drawn on top of each other, or a row of the batch that is not drawn."""
    for trace in batches.values():
        work = seating(trace)
        places = [(each.step, each.seat) for each in work]
        assert len(places) == len(set(places))
        assert max(each.seat for each in work) < 3, "max_num_seqs is 3"
        for number, record in enumerate(trace.steps):
            tokens = sum(each.num_tokens for each in work if each.step == number)
            assert tokens == sum(row.num_tokens for row in record.scheduled)


def test_four_completions_that_decode_are_no_prompt(make_engine):
    """Would catch a heavy frame round every cell of a request with n > 1."""
    engine = make_engine(parts={"trace": Trace()})
    params = SamplingParams(n=4, temperature=1.0, max_tokens=3, ignore_eos=True)
    engine.add_request("0", {"prompt_token_ids": [5, 6, 7]}, params)
    while engine.has_unfinished_requests():
        engine.step()
    assert [(each.num_tokens, each.longest) for each in seating(engine.trace)] == [(3, 3), (4, 1), (4, 1)]


# -- figures have as many elements as the trace says ------------------------------------------------


def test_block_grid_fills_as_many_cells_as_the_trace_says(example):
    """Would catch a grid drawn from something other than the trace, or one step too late."""
    trace, _ = example
    for step, record in enumerate(trace.steps):
        fig = block_grid(trace, [step])
        assert len(cells(fig, "filled")) == sum(filled_during(record).values())
        held = {block for block_ids in tables_during(record).values() for block in block_ids}
        assert len(cells(fig, "filled")) + len(cells(fig, "empty")) == 4 * len(held)
        assert len(cells(fig, "free")) == 4 * (8 - len(held))
    assert len(cells(block_grid(trace, [0, 1]), "filled")) == 9 + 11, "two panels"


def test_three_panel_shows_words_table_and_blocks(example):
    """Would catch a table entry or a word that is not what the run had."""
    trace, _ = example
    fig = three_panel(trace, 1, "0")
    texts = [text.get_text() for ax in fig.axes for text in ax.texts]
    for each in PROMPT.split():
        assert texts.count(each) == 2, "once in the logical, once in the physical blocks"
    left, middle, _ = fig.axes
    assert [text.get_text() for text in middle.texts] == ["7", "4 of 4", "2", "3 of 4"]
    filled = filled_during(trace.steps[1])
    assert len([p for p in left.patches if p.get_gid() == "filled"]) == filled[0] == 7
    assert len(cells(fig, "filled")) == 2 * filled[0] + filled[1]
    with pytest.raises(ValueError, match="holds no block"):
        three_panel(trace, 1, "7")
    with pytest.raises(ValueError, match="steps must be in"):
        three_panel(trace, 99, "0")


def test_gantt_has_a_cell_for_each_row_and_marks_peak_and_preemption(batches):
    """Would catch a missing cell, an unmarked peak, and a preemption that is not shown."""
    fig = gantt(batches)
    rows = sum(
        len({row.request_id for row in record.scheduled}) for t in batches.values() for record in t.steps
    )
    assert len(cells(fig, "work")) == rows
    texts = [text.get_text() for ax in fig.axes for text in ax.texts]
    for trace in batches.values():
        assert f"peak {max(blocks_in_use(trace))} of {trace.num_blocks} blocks" in texts
    preempting = [record for t in batches.values() for record in t.steps if record.preempted]
    assert texts.count("P") == len(preempting) > 0
    bars = cells(fig, "memory")
    assert sum(bar.get_height() for bar in bars) == sum(sum(blocks_in_use(t)) for t in batches.values())


def test_gantt_dots_are_the_empty_seats_while_a_request_waits(batches):
    """Would catch idle seats drawn where no request waited: those are not the scheduler's fault."""
    trace = batches["static"]
    fig = gantt({"static": trace})
    expected = sum(
        3 - len({r.request_id for r in record.scheduled}) for record in trace.steps if record.waiting
    )
    assert len(cells(fig, "idle")[0].get_offsets()) == expected > 0


def test_memory_area_stacks_up_to_the_pool(batches):
    """Would catch a layer left out of the stack."""
    fig = memory_area({name: batches[name] for name in ("static", "continuous")})
    for ax, name in zip(fig.axes, ("static", "continuous"), strict=True):
        top = max(path.vertices[:, 1].max() for area in ax.collections for path in area.get_paths())
        assert top == batches[name].num_blocks * batches[name].block_size == ax.get_ylim()[1]
        assert [area.get_gid() for area in ax.collections] == [
            "used",
            "reserved",
            "internal",
            "rounding",
            "free",
        ]


def test_waterfall_bars_are_tokens_a_step_and_refuse_unequal_work(batches, example):
    """Would catch bars of two different workloads side by side, which compare nothing."""
    fig = throughput_waterfall(batches)
    widths = [bar.get_width() for bar in cells(fig, "bar")][: len(batches)]
    assert widths == pytest.approx([43 / len(trace.steps) for trace in batches.values()])
    assert tokens_per_step(batches["static"]) < tokens_per_step(batches["continuous"])
    totals = [text.get_text() for text in fig.axes[0].texts]
    assert ["in all" in text for text in totals] == [False, False, True]
    assert (
        f"x {widths[1] / widths[0]:.2f}" in totals[1] and f"x {widths[2] / widths[0]:.2f} in all" in totals[2]
    )
    beside = throughput_waterfall(batches, {"another engine": (2.5, 300.0)})
    assert [bar.get_width() for bar in cells(beside, "other")] == [2.5, 300.0]
    assert len(cells(beside, "bar")) == len(cells(fig, "bar")), "it is no part of the chain"
    with pytest.raises(ValueError, match="not of the same work"):
        throughput_waterfall({"a": batches["static"], "b": example[0]})


def test_slot_map_has_a_cell_for_each_slot_with_the_position_of_its_token(batches):
    """Would catch a token drawn in another slot than the one that its block table names."""
    trace = batches["continuous"]
    (ax,) = slot_map({"paged": trace}, [4]).axes
    record = trace.steps[4]
    tables, filled = tables_during(record), filled_during(record)
    expected = {
        block_ids[position // 4] * 4 + position % 4: str(position)
        for seq_id, block_ids in tables.items()
        for position in range(filled[seq_id])
    }
    texts = {text.get_position(): text.get_text() for text in ax.texts}
    shown = {
        slot: texts[cell.get_x() + 0.5, cell.get_y() + 0.4]
        for slot, cell in enumerate(ax.patches)
        if cell.get_gid() == "filled"
    }
    assert shown == expected and len(ax.patches) == 4 * trace.num_blocks
    held = {block for block_ids in tables.values() for block in block_ids}
    assert sum(cell.get_gid() == "empty" for cell in ax.patches) == 4 * len(held) - len(expected) > 0
    for traces, steps in (({}, []), ({"paged": trace}, [1, 2])):
        with pytest.raises(ValueError, match="one step per trace"):
            slot_map(traces, steps)


def labels(fig):
    """What the legend below a figure names."""
    return [text.get_text() for text in fig.legends[0].get_texts()]


def test_gantt_names_the_marks_that_occur_and_no_other(batches):
    """Would catch orange bars which no legend explains, and a legend of things that are not there."""
    short, roomy = (gantt({"": batches[name]}) for name in ("short", "continuous"))
    assert {"blocks in use", "the most blocks in use", "a request is preempted"} <= set(labels(short))
    assert "all blocks of the pool" in labels(short), "its bars reach the pool's size"
    assert "a request is preempted" not in labels(roomy)
    for fig, name in ((short, "short"), (roomy, "continuous")):
        assert fig.axes[1].get_ylim()[1] == 1.5 * max(blocks_in_use(batches[name])), (
            "the highest bar: two thirds"
        )


def test_the_end_of_the_queue_is_told_in_the_same_words_on_both_sides_of_the_line(batches):
    """Would catch one panel that says where requests wait and another that says where none does."""
    fig = memory_area({name: batches[name] for name in ("static", "short")})
    assert len({text.get_text() for ax in fig.axes for text in ax.texts}) == 1
    assert all(len(ax.texts) == 1 for ax in fig.axes)


def test_completions_have_colours_of_their_own_and_a_copy_is_an_arrow():
    """Would catch two completions in one colour, and a copy on write that is not to be seen."""
    llm = toy_llm(num_blocks=8)
    trace = llm.llm_engine.trace = Trace(word_of=word)
    params = replace(greedy(4), n=2, temperature=1.0, seed=3)
    llm.generate({"prompt_token_ids": encode(PROMPT)}, params, use_tqdm=False)
    copied = next(i for i, record in enumerate(trace.steps) if record.blocks_to_copy)
    fig = three_panel(trace, copied, "0")
    looks = {}  # block -> (colour, hatch) of its filled cells
    for cell in fig.axes[2].patches:
        if cell.get_gid() == "filled":
            looks.setdefault(7 - int(cell.get_y()), set()).add(
                (to_hex(cell.get_facecolor()), cell.get_hatch() or "")
            )
    ((source, destination),) = trace.steps[copied].blocks_to_copy
    (shared,) = set(looks) - {source, destination}
    own = {(style.fill, style.hatch) for style in map(request_style, (0, 1))}
    assert looks[source] | looks[destination] == own and len(looks[source]) == len(looks[destination]) == 1
    assert looks[shared] == {(request_style(0).fill, "///")}
    assert labels(fig)[:3] == ["completion 0", "completion 1", "in several tables"]
    assert len(cells(fig, "copy")) == 1 and not cells(three_panel(trace, 0, "0"), "copy")
    texts = [text.get_text() for text in fig.axes[2].texts]
    assert (
        texts.count("holders: 2") == 1
        and texts.count("holders: 2 \u2192 1") == texts.count("holders: 1") == 1
    )


def test_figures_of_empty_traces_are_refused():
    """Would catch an empty panel in place of an error."""
    for draw in (gantt, memory_area, throughput_waterfall):
        with pytest.raises(ValueError, match="at least one"):
            draw({"empty": Trace()})
    with pytest.raises(ValueError, match="1 to 60 steps"):
        trace_player(Trace())


# -- how figures reach the page ---------------------------------------------------------------------


def test_a_figure_without_a_description_is_refused():
    """Would catch an image that a blind reader cannot use."""
    fig = new_figure(1, 1)
    for alt in ("", "   ", "figure"):
        with pytest.raises(ValueError, match="alt must be a sentence"):
            figure_html(fig, alt)
    text = figure_html(fig, 'Paging wastes 9 %, "naive" batching 70 % & more <b>.')
    assert 'alt="Paging wastes 9 %, &quot;naive&quot; batching 70 % &amp; more &lt;b&gt;."' in text
    assert text.count("<img") == 1 and "<figcaption>Paging" in text and "data:image/png;base64," in text


def test_png_bytes_depend_on_the_figure_only(example):
    """Would catch a date or a version in the file: every rebuild of a notebook would be a difference."""
    trace, _ = example
    first, again = (png_bytes(block_grid(trace, [1])) for _ in range(2))
    assert first == again
    assert png_bytes(block_grid(trace, [2])) != first, "negative control"
    assert not Image.open(io.BytesIO(first)).info.get("Software")
    assert len(first) < 60_000


def test_neighbouring_requests_differ_without_colour():
    """Would catch two requests side by side that a grey print shows alike: hatch and lightness both differ."""
    for index in range(28):
        one, two = request_style(index), request_style(index + 1)
        assert one.hatch != two.hatch and one.fill != two.fill
    assert len({(s.fill, s.hatch) for s in map(request_style, range(28))}) == 28
    assert len({style.fill for style in map(request_style, range(14))}) == 14, (
        "the twelve of the workload differ"
    )
    with pytest.raises(ValueError, match="at least 0"):
        request_style(-1)


def grey_texture(index):
    """Mean and spread of the lightness inside a cell of a request, as printed in grey."""
    fig = Figure(figsize=(1, 1))
    ax = fig.add_axes((0, 0, 1, 1))
    style = request_style(index)
    ax.bar(0, 1, width=2, color=style.fill, edgecolor=style.edge, hatch=style.hatch)
    ax.set(xlim=(-0.5, 0.5), ylim=(0.1, 0.9))
    ax.axis("off")
    grey = np.asarray(Image.open(io.BytesIO(png_bytes(fig))).convert("L"), dtype=float)
    return grey.mean(), grey.std()


def test_neighbours_can_be_told_apart_in_a_grey_print():
    """Would catch hatches too faint to see. The measure must call a request equal to itself."""
    for index in range(4):
        (mean, spread), (next_mean, next_spread) = grey_texture(index), grey_texture(index + 1)
        assert abs(mean - next_mean) + abs(spread - next_spread) > 8
    assert grey_texture(2) == grey_texture(2)


# -- the player -------------------------------------------------------------------------------------


def frames_of(player):
    """The data in the player's HTML."""
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', player.html, re.S)[1])


def test_player_holds_every_step_and_no_address(example):
    """Would catch a lost step, and a page that needs a network."""
    trace, _ = example
    player = trace_player(trace)
    frames = frames_of(player)
    assert [frame["step"] for frame in frames] == [record.step for record in trace.steps]
    assert not re.search(r"https?://|//cdn|src=(?!\"data:image/gif;base64,)|href=|@import|url\(", player.html)
    for frame, record in zip(frames, trace.steps, strict=True):
        shown = sum(
            cell["word"] != "" for seq in frame["sequences"] for b in seq["blocks"] for cell in b["cells"]
        )
        assert shown == sum(filled_during(record).values())
        assert frame["free"] == list(record.free)
        tables = tables_during(record).values()
        holders = {block["block"]: block["holders"] for block in frame["pool"]}
        assert holders == {
            block: sum(block in table for table in tables) for block in range(trace.num_blocks)
        }
    assert player._repr_html_() == player.html and len(player.html) < 200_000


def test_player_captions_say_what_happened(example, batches):
    """Would catch a caption that names a block as new when it was there, or hides a preemption."""
    frames = frames_of(trace_player(example[0]))
    assert frames[0]["caption"].startswith("Request 0 computes positions 0 to 5; new blocks: 7, 2.")
    assert "Request 0 computes position 6; no new block is needed." in frames[1]["caption"]
    assert "Request 0 computes position 8; new block: " in frames[3]["caption"]
    assert "Request 1 is finished" in frames[3]["caption"]
    captions = [frame["caption"] for frame in frames_of(trace_player(batches["short"]))]
    assert any("is preempted: its blocks are free again." in caption for caption in captions)


def test_player_survives_words_that_look_like_html():
    """Would catch a token that ends the script element and spills the data onto the page."""
    llm = example_llm()
    trace = llm.llm_engine.trace = Trace(word_of=lambda token_id: "</script><b>&\"'")
    llm.generate({"prompt_token_ids": encode("Four score")}, greedy(1), use_tqdm=False)
    player = trace_player(trace)
    assert player.html.count("</script>") == 2
    assert frames_of(player)[0]["sequences"][0]["blocks"][0]["cells"][0]["word"] == "</script><b>&\"'"


@pytest.fixture(scope="module")
def shared():
    """Two completions of one prompt, a copy on write, a preemption, and a prompt that is found in the cache."""
    llm = toy_llm(num_blocks=7, max_model_len=32, enable_prefix_caching=True)
    engine = llm.llm_engine
    trace = engine.trace = Trace(word_of=word)
    two = SamplingParams(n=2, temperature=1.0, seed=4, max_tokens=8, ignore_eos=True)
    arrivals = {0: (range(5), two), 2: (range(50, 54), greedy(9)), 8: ([*range(5), 9, 8, 7], greedy(4))}
    for step in range(40):
        if step in arrivals:
            prompt, params = arrivals[step]
            engine.add_request(str(step), {"prompt_token_ids": list(prompt)}, params)
        if engine.has_unfinished_requests():
            engine.step()
    return trace


def test_player_shows_copies_preemptions_and_blocks_found_in_the_cache(shared):
    """Would catch a frame that hides what the animation is there for."""
    frames = frames_of(trace_player(shared))
    assert [copy for frame in frames for copy in frame["copies"]] == [list(shared.steps[1].blocks_to_copy[0])]
    preempted = next(number for number, frame in enumerate(frames) if frame["preempted"] == ["2"])
    assert "2" in [frame["waiting"] for frame in frames][preempted]
    assert "request 2" not in [sequence["label"] for sequence in frames[preempted]["sequences"]]
    first = frames[0]["sequences"][0]["blocks"][0]["block"]
    (hit,) = [frame for frame in frames if first in frame["found"]]
    assert (
        f"Request 8 computes positions 4 to 7; found in the prefix cache: {first}; new block"
        in hit["caption"]
    )
    assert [sequence["label"] for sequence in frames[1]["sequences"]] == ["request 0 (1)", "request 0 (2)"]
    assert len({sequence["fill"] for sequence in frames[1]["sequences"]}) == 2
    assert "Request 0 (2) computes position 5" in frames[1]["caption"]
    free = [block for frame in frames for block in frame["pool"] if not block["holders"]]
    assert any(cell["word"] for block in free for cell in block["cells"]), "freeing erases nothing"


def test_a_large_pool_is_shown_by_the_blocks_that_were_used():
    """Would catch a page with a thousand empty boxes."""
    trace, _ = run(toy_llm(num_blocks=300), [range(9)], [3])
    frames = frames_of(trace_player(trace))
    assert {len(frame["pool"]) for frame in frames} == {3}


def test_the_animated_image_has_each_step_and_the_copy_on_its_way(shared):
    """Would catch a picture that stands still, repeats one frame, or is too large for a README."""
    frames = frames_of(trace_player(shared))
    data = animate(frames)
    picture = Image.open(io.BytesIO(data))
    assert picture.n_frames == len(frames) + NUM_MOVING and len(data) < 500_000
    shown = []
    for number in range(picture.n_frames):
        picture.seek(number)
        shown.append(picture.convert("RGB").tobytes())
    assert len(set(shown)) == len(shown)
    assert picture.info["loop"] == 0
    assert animate(frames) == data, "the same bytes at each build"
    assert trace_player(shared).html.count('src="data:image/gif;base64,') == 1


PROBE = """
<script>
const [copying, ...players] = [...document.querySelectorAll(".minivllm-player")].reverse();
players.reverse();
const label = (p) => p.querySelector(".mv-label").textContent;
const words = (p) => [...p.querySelectorAll(".mv-left .mv-cell")].map((c) => c.textContent.trim()).filter(Boolean);
const press = (p, key) => p.dispatchEvent(new KeyboardEvent("keydown", {key, bubbles: true, cancelable: true}));
const seen = {players: players.length, start: players.map(label), words: words(players[0])};
players[0].querySelector(".mv-next").click();
seen.afterNext = players.map(label);
press(players[1], "End"); seen.afterEnd = players.map(label);
press(players[1], "ArrowLeft"); seen.afterLeft = label(players[1]);
press(players[1], "Home"); seen.afterHome = label(players[1]);
const slider = players[2].querySelector(".mv-slider");
slider.value = 3; slider.dispatchEvent(new Event("input")); seen.afterSlide = label(players[2]);
seen.wordsAfterSlide = words(players[2]);
seen.backDisabled = players[1].querySelector(".mv-back").disabled;
seen.buttons = players[0].querySelectorAll("button").length;
seen.arrows = players[0].querySelectorAll(".mv-arrows path").length;
seen.holders = [...players[0].querySelectorAll(".mv-holders")].map((n) => n.textContent).filter(Boolean);
seen.sliderName = slider.getAttribute("aria-label");
seen.overflow = document.documentElement.scrollWidth > document.documentElement.clientWidth;
copying.querySelector(".mv-next").click();
seen.onTheWay = [...copying.querySelectorAll(".mv-ghost .mv-cell")].map((c) => c.textContent.trim());
players[0].style.width = "720px";
players[1].querySelector(".mv-play").click(); // from step 0; a step every 1.4 seconds
setTimeout(() => {
  seen.afterPlaying = label(players[1]);
  press(players[1], "ArrowRight"); seen.playAfterKey = players[1].querySelector(".mv-play").textContent;
  const stage = players[0].querySelector(".mv-stage"), left = stage.getBoundingClientRect().left;
  const ends = [...stage.querySelectorAll(".mv-arrows path")].map((p) => Number(p.getAttribute("d").split(" ").at(-2)));
  seen.gaps = [...stage.querySelectorAll(".mv-logical")].map((line, i) =>
    stage.querySelector(`.mv-physical[data-block="${line.dataset.block}"]`).getBoundingClientRect().left - left - ends[i]);
  const out = document.createElement("pre"); out.id = "seen"; out.textContent = JSON.stringify(seen);
  document.body.append(out);
}, 3500);
</script>
"""


@pytest.mark.browser
def test_player_works_in_a_browser(example, batches, shared, tmp_path):
    """Would catch a script error, players that disturb each other, keys that do nothing, arrows that stay where
    they were when the page becomes narrower, and a copy that carries what is written after it."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    assert chromium, CHROMIUM
    one, other = trace_player(example[0]).html, trace_player(batches["continuous"]).html
    page = tmp_path / "page.html"
    page.write_text(
        f'<!doctype html><meta charset="utf-8"><body>{one}{other}{one}{trace_player(shared).html}{PROBE}',
        encoding="utf-8",
    )
    flags = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--window-size=1000,1600",
    ]
    result = subprocess.run(
        [
            chromium,
            *flags,
            "--virtual-time-budget=10000",
            f"--user-data-dir={tmp_path / 'profile'}",
            "--dump-dom",
            page.as_uri(),
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    found = re.search(r'<pre id="seen">(.*?)</pre>', result.stdout, re.S)
    assert found, f"the page's script did not finish:\n{result.stdout[-2000:]}\n{result.stderr[-2000:]}"
    seen = json.loads(found[1].replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&"))
    steps, others = len(example[0].steps), len(batches["continuous"].steps)
    assert seen["players"] == 3
    assert seen["start"] == [f"step 0 (1 of {n})" for n in (steps, others, steps)]
    assert seen["words"] == [*PROMPT.split(), "all", "men", "are"]
    assert (
        seen["arrows"] == sum(map(len, tables_during(example[0].steps[1]).values())) == len(seen["holders"])
    )
    assert seen["afterPlaying"] == f"step 2 (3 of {others})" and "play" in seen["playAfterKey"]
    assert seen["afterNext"] == [
        f"step 1 (2 of {steps})",
        f"step 0 (1 of {others})",
        f"step 0 (1 of {steps})",
    ]
    assert seen["afterEnd"][1] == f"step {others - 1} ({others} of {others})"
    assert seen["afterLeft"] == f"step {others - 2} ({others - 1} of {others})"
    assert seen["afterHome"] == f"step 0 (1 of {others})" and seen["backDisabled"]
    assert seen["afterSlide"] == f"step 3 (4 of {steps})"
    assert len(seen["wordsAfterSlide"]) == sum(filled_during(example[0].steps[3]).values())
    assert seen["onTheWay"][0] and not any(seen["onTheWay"][1:]), "one word was there before the write"
    assert seen["gaps"] and all(abs(gap - 2) < 1 for gap in seen["gaps"])
    assert seen["buttons"] == 3 and seen["sliderName"] == "step" and not seen["overflow"]
