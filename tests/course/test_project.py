"""The final project: its tests tell one milestone from the next, and catch what goes wrong on the way.

The tests are called as functions here, on the stub, on the reference of each milestone and on every mutant; that the
grading process runs them as well is one test further down. A mutant is the reference of its milestone with some lines
replaced, and the test that has to catch it is named beside it.
"""

import importlib
import json
import random
import re

import pytest

from minivllm.course import __main__ as cli
from minivllm.course import grading, implementations, problems
from minivllm.course.cases import cases_of
from minivllm.course.catalog import MILESTONES, PROJECT_FILE, SOLUTIONS, CourseError, Target
from minivllm.course.project import GlassModel, Limits, ModelMisuse, Row, benchmark, commands
from minivllm.course.project.glass import next_token
from minivllm.course.records import COPIED, NOT_COUNTED, NOT_WRITTEN, PASSED, WRONG, Record
from minivllm.course.run import RunOptions
from minivllm.weights.random_model import random_llama
from tests.exercises.conftest import describe
from tests.exercises.session import TimeLimit, time_limit

REFERENCES = {f"m{number}": SOLUTIONS / "project" / f"milestone_{number}.py" for number in range(1, 6)}
REFERENCES["m6"] = SOLUTIONS / "project" / PROJECT_FILE
CHAPTERS = list(MILESTONES.values())

# Name, which begins with the milestone -> (the test that catches it, [(lines of the reference, what replaces them)]).
MUTANTS = {
    "m1_computes_the_prompt_alone": ("test_one_prompt_is_continued", [
        ("        for _ in range(count):\n            tokens += self.model.forward([Row(tokens, range(len(tokens)))])",
         "        prompt = list(tokens)\n        for _ in range(count):\n            tokens += self.model.forward([Row(prompt, range(len(prompt)))])")]),
    "m1_appends_to_the_list_of_the_caller": ("test_the_prompts_stay_as_they_were", [
        ("self._complete(list(prompt), count)", "self._complete(prompt, count)")]),
    "m1_one_length_for_all": ("test_every_prompt_gets_as_many_tokens_as_it_asked_for", [
        ("self._complete(list(prompt), count)", "self._complete(list(prompt), max(max_tokens))")]),
    "m1_returns_the_last_answers_again": ("test_an_engine_can_be_used_again", [
        ("        return [\n", "        self.done = getattr(self, 'done', []) + [\n"),
        ("        ]\n", "        ]\n        return self.done\n")]),
    "m2_cache_off_by_one_position": ("test_every_position_is_computed_once", [
        ("Row(tokens[computed:], range(len(tokens)))", "Row(tokens[max(computed - 1, 0) :], range(len(tokens)))")]),
    "m2_overwrites_the_last_slot": ("test_every_position_is_computed_once", [
        ("Row(tokens[computed:], range(len(tokens)))", "Row(tokens[computed:], range(len(tokens) - (computed > 0)))")]),
    "m2_computes_the_last_token_too": ("test_every_position_is_computed_once", [
        ("        return tokens[-count:]", "        self.model.forward([Row(tokens[computed:], range(len(tokens)))])\n        return tokens[-count:]")]),
    "m2_prompt_token_by_token": ("test_a_prompt_takes_one_call", [
        ("        computed = 0\n",
         "        for end in range(1, len(tokens)):\n            self.model.forward([Row([tokens[end - 1]], range(end))])\n        computed = len(tokens) - 1\n")]),
    "m2_takes_over_the_count": ("test_a_new_prompt_reads_nothing_of_the_one_before", [
        ("        computed = 0\n", "        computed = getattr(self, 'computed', 0)\n"),
        ("        return tokens[-count:]", "        self.computed = min(computed, 1)\n        return tokens[-count:]")]),
    "m3_pads_to_the_longest_answer": ("test_a_finished_request_is_not_computed_any_more", [
        ("            while running := [each for each in batch if len(each.tokens) < each.num_wanted]:\n                self._step(running)",
         "            while any(len(each.tokens) < each.num_wanted for each in batch):\n                self._step(batch)\n"
         "            for each in batch:\n                del each.tokens[each.num_wanted :]")]),
    "m3_seats_as_wide_as_prompts": ("test_every_seat_has_room_for_the_longest_sequence", [
        ("seat * self.limits.max_model_len", "seat * max(map(len, prompts))")]),
    "m3_batches_half_full": ("test_requests_share_their_calls", [
        ("size = min(self.limits.max_num_seqs,", "size = min(self.limits.max_num_seqs // 2,")]),
    "m3_more_seats_than_memory": ("test_memory_decides_how_many_seats_there_are", [
        ("size = min(self.limits.max_num_seqs, self.model.num_slots // self.limits.max_model_len)", "size = self.limits.max_num_seqs")]),
    "m3_prompts_in_calls_of_their_own": ("test_a_batch_ends_with_its_longest_answer", [
        ("                request.first_slot = seat * self.limits.max_model_len\n",
         "                request.first_slot = seat * self.limits.max_model_len\n                self._step([request])\n")]),
    "m4_lets_one_in_per_call": ("test_no_seat_is_empty_while_a_request_waits", [
        ("            while waiting and seats:", "            if waiting and seats:")]),
    "m4_frees_a_seat_one_call_late": ("test_there_are_as_few_calls_as_can_be", [
        ("            self._step(running)\n", ""),
        ("            running = [each for each in running if len(each.tokens) < each.num_wanted]\n",
         "            running = [each for each in running if len(each.tokens) < each.num_wanted]\n"
         "            if running:\n                self._step(running)\n")]),
    "m4_the_last_comes_first": ("test_the_first_that_came_is_the_first_that_starts", [
        ("waiting.popleft()", "waiting.pop()")]),
    "m4_the_shortest_comes_first": ("test_the_first_that_came_is_the_first_that_starts", [
        ("deque(requests), []", "deque(sorted(requests, key=lambda each: each.num_wanted)), []")]),
    "m4_waits_until_all_are_finished": ("test_a_long_answer_does_not_hold_short_ones_up", [
        ("            while waiting and seats:", "            is_empty = not running\n            while is_empty and waiting and seats:")]),
    "m4_slots_are_used_once": ("test_memory_for_the_seats_is_enough", [
        ("                running[-1].seat = seats.pop()", "                seats.pop()\n                running[-1].seat = requests.index(running[-1])")]),
    "m5_reserves_for_the_whole_answer": ("test_a_request_takes_what_its_prompt_needs_and_no_more", [
        ("needed = cdiv(len(request.tokens), self.limits.block_size)", "needed = cdiv(request.num_wanted - 1, self.limits.block_size)")]),
    "m5_a_finished_request_keeps_its_blocks": ("test_every_block_comes_back", [
        ("                running.remove(request)\n                self._release(request)\n", "                running.remove(request)\n")]),
    "m5_a_preempted_request_loses_its_blocks": ("test_every_block_comes_back", [
        ("                self._release(victim)\n", "                victim.blocks, victim.computed = [], 0\n")]),
    "m5_the_oldest_gives_way": ("test_when_memory_is_full_the_last_request_gives_way", [
        ("victim = running.pop()\n", "victim = running.pop(0)\n                index = max(index - 1, 0)\n")]),
    "m5_to_the_end_of_the_queue": ("test_a_preempted_request_comes_before_those_that_never_started", [
        ("waiting.appendleft(victim)", "waiting.append(victim)")]),
    "m5_forgets_that_its_slots_are_gone": ("test_when_memory_is_full_the_last_request_gives_way", [
        ("request.blocks, request.computed = [], 0", "request.blocks = []")]),
    "m5_a_block_too_early": ("test_every_block_comes_back", [
        ("needed = cdiv(len(request.tokens), self.limits.block_size)", "needed = len(request.tokens) // self.limits.block_size + 1")]),
    "m5_blocks_filled_from_the_end": ("test_every_block_lies_in_one_piece", [
        ("* size + p % size for", "* size + size - 1 - p % size for")]),
    "m5_refuses_nothing": ("test_what_can_never_fit_is_refused_at_once", [
        ("if needed > self.num_blocks:", "if False:")]),
    "m5_forgets_the_seats": ("test_the_seats_are_still_counted", [
        (" and len(running) < self.limits.max_num_seqs", "")]),
    "m6_samples_in_the_middle_of_a_prompt": ("test_a_token_comes_from_the_end_of_a_prompt_only", [
        ("            if request.num_left == 0:\n                request.tokens", "            if num_new:\n                request.tokens")]),
    "m6_running_requests_are_not_counted": ("test_no_call_has_more_tokens_than_the_budget", [
        ("                plan.append((request, num_new))\n                budget -= num_new\n", "                plan.append((request, num_new))\n")]),
    "m6_prompts_come_first": ("test_a_long_prompt_does_not_hold_the_others_up", [
        ("request = running[len(plan)]", "request = sorted(running, key=lambda each: -each.num_left)[len(plan)]")]),
    "m6_chunks_of_a_block": ("test_the_budget_is_used", [
        ("            request = running[len(plan)]\n            num_new = min(request.num_left, budget)",
         "            request = running[len(plan)]\n            num_new = min(request.num_left, budget, self.size)")]),
    "m6_forgets_a_block_that_is_released": ("test_a_known_prefix_is_not_computed_again", [
        ("                self.free[block] = None", "                self.free[block] = None\n                self.block_of.pop(self.key_of.pop(block, None), None)")]),
    "m6_nothing_left_to_compute": ("test_a_prompt_that_is_known_whole_computes_its_last_block", [
        ("range(self.size, len(request.tokens), self.size)", "range(self.size, len(request.tokens) + 1, self.size)")]),
    "m6_forgets_the_answers": ("test_the_next_turn_of_a_conversation_finds_the_answer", [
        ("                self.pool.remember(", "                num_new > 1 and self.pool.remember(")]),
    "m6_a_block_by_its_own_tokens": ("test_the_same_tokens_after_another_beginning_are_another_block", [
        ("tuple(request.tokens[:end])", "tuple(request.tokens[end - self.size : end])"),
        ("tuple(request.tokens[: (index + 1) * self.size])", "tuple(request.tokens[index * self.size :][: self.size])")]),
    "m6_shares_a_block_that_is_not_full": ("test_a_block_that_is_not_full_is_not_shared", [
        ("            request.computed = end\n",
         "            request.computed = end\n        known = [n for n in range(request.computed + 1, len(request.tokens)) if tuple(request.tokens[:n]) in self.pool.block_of]\n"
         "        if known:\n            request.computed = known[-1]\n            request.blocks.append(self.pool.share(tuple(request.tokens[: known[-1]])))\n"),
        ("            if request.num_left == 0:\n                request.tokens",
         "            if request.computed % self.size:\n                self.pool.block_of.setdefault(tuple(request.tokens[: request.computed]), request.blocks[-1])\n"
         "            if request.num_left == 0:\n                request.tokens")]),
    "m6_counts_no_holders": ("test_a_shared_block_stays_until_its_last_holder_leaves", [
        ("            if self.holders[block] == 0:\n                self.free", "            if True:\n                self.free")]),
    "m6_remembers_what_is_overwritten": ("test_what_has_been_overwritten_is_not_found", [
        ("        if block in self.key_of:\n            del self.block_of[self.key_of.pop(block)]\n", "")]),
}  # fmt: skip


def mutated(name):
    """The text of a mutant. Each replacement has to be possible in one place only."""
    text = REFERENCES[name[:2]].read_text()
    for old, new in MUTANTS[name][1]:
        assert text.count(old) == 1, f"{name}: {old!r} stands {text.count(old)} times in the reference"
        text = text.replace(old, new)
    return text


def load(text, path):
    """The module of an engine, made as the tests make it."""
    path.mkdir(parents=True)
    (path / PROJECT_FILE).write_text(text)
    return implementations.Implementation(path).load(MILESTONES["m1"])


def cases_up_to(number):
    """All tests of the milestones 1 to `number`."""
    return [case for chapter in CHAPTERS[:number] for case in cases_of(Target(chapter, None))]


def names_up_to(number):
    """Their names."""
    return [case.test for case in cases_up_to(number)]


@pytest.fixture(scope="module")
def run_test(request, tmp_path_factory):
    """A function (engine's module, case) -> (status, message): the test is called, in this process."""
    from tests.exercises.engine import generate

    model = random_llama(tmp_path_factory.mktemp("model") / "tiny")
    fixtures = {"tiny_model": model, "reference_text": generate(model)}
    # The marker of these tests is known in their own folder only.
    request.config.addinivalue_line("markers", "exercise(id, points, hint): which exercise a test belongs to")
    modules = [importlib.import_module(f"tests.exercises.test_{chapter}") for chapter in CHAPTERS]
    functions = {name: value for module in modules for name, value in vars(module).items()}

    def run(engine, case):
        given = fixtures | {"ex": engine, "rng": random.Random(f"0/{case.test}")}
        try:
            with time_limit(60.0):
                functions[case.test](**{name: given[name] for name in case.fixtures})
        except (Exception, TimeLimit, pytest.fail.Exception) as error:
            return describe(error, case.exercise)[:2]
        return PASSED, ""

    return run


@pytest.fixture(scope="module")
def references(tmp_path_factory):
    """The module of the reference of each milestone."""
    top = tmp_path_factory.mktemp("references")
    return {name: load(path.read_text(), top / name) for name, path in REFERENCES.items()}


@pytest.mark.parametrize("number", range(1, 7))
def test_each_milestone_passes_its_own_tests_and_all_before(run_test, references, number):
    """Would catch a test of an early milestone that forbids what a later one has to do."""
    outcomes = {case.test: run_test(references[f"m{number}"], case) for case in cases_up_to(number)}
    assert set(outcomes.values()) == {(PASSED, "")}, outcomes


@pytest.mark.parametrize("number", range(1, 6))
def test_no_milestone_passes_the_tests_of_the_next(run_test, references, number):
    """Would catch a milestone that asks for nothing new."""
    new = cases_up_to(number + 1)[len(cases_up_to(number)) :]
    assert WRONG in {run_test(references[f"m{number}"], case)[0] for case in new}


def test_the_stub_is_not_written_and_says_so(run_test, tmp_path):
    """Would catch a test that passes on nothing."""
    stub = load((commands.STUB / PROJECT_FILE).read_text(), tmp_path / "stub")
    outcomes = [run_test(stub, case) for case in cases_up_to(6)]
    first = len(cases_up_to(1))
    assert {status for status, _ in outcomes[:first]} == {NOT_WRITTEN}
    assert all(message.endswith("calls m1, which is not written yet.") for _, message in outcomes[first:])
    assert len(outcomes) > 30


@pytest.mark.parametrize("name", MUTANTS)
def test_every_mutant_is_caught_by_the_test_it_names(run_test, name, tmp_path):
    """Would catch a test that has gone blind. A crash proves nothing: the status is "wrong result"."""
    number = int(name[1])
    own = {case.test: case for case in cases_up_to(number)[len(cases_up_to(number - 1)) :]}
    status, message = run_test(load(mutated(name), tmp_path / "mutant"), own[MUTANTS[name][0]])
    assert status == WRONG, message


def test_every_milestone_has_three_mutants_and_every_test_but_one_a_mutant():
    """Would catch a test that nothing has tried to fool; the Llama's checks the interface and not the engine."""
    for milestone in MILESTONES:
        assert sum(name.startswith(milestone) for name in MUTANTS) >= 3
    never = set(names_up_to(6)) - {test for test, _ in MUTANTS.values()}
    assert never == {"test_a_llama_is_continued"}


def test_the_whole_engine_is_small():
    """Would catch a project that has outgrown its weeks: the final reference in 150 lines of code."""
    from tests.test_readme import code_lines

    assert code_lines(REFERENCES["m6"].read_text()) <= 150


# -- what an engine may import, and how a submission is graded --------------------------------------


@pytest.mark.parametrize(
    "module", ["scheduler", "engine", "llm", "kv_cache_manager", "block_pool", "course.project.glass"]
)
def test_an_engine_may_not_import_the_parts_it_should_write(module, tmp_path):
    """Would catch an answer that is an import, in the engine or in a file beside it; the stub's imports are allowed."""
    stub = (commands.STUB / PROJECT_FILE).read_text()
    for name in (PROJECT_FILE, "parts.py"):
        (tmp_path / name).write_text(f"from minivllm.{module} import anything\n\n\ndef f():\n    pass\n")
        assert {each.kind for each in problems.find_problems(tmp_path / name).values()} == {COPIED}
    (tmp_path / PROJECT_FILE).write_text(stub)
    assert problems.find_problems(tmp_path / PROJECT_FILE) == {}
    with pytest.raises(problems.SubmissionError, match=r"parts\.py, line 1"):
        implementations.Implementation(tmp_path).load(MILESTONES["m1"])


def test_a_submission_of_several_files_is_graded_and_one_without_an_engine_has_no_points(tmp_path):
    """Would catch a grade without the helper files, or for files of tests, and a student missing from the table."""
    text = REFERENCES["m6"].read_text()
    head, _, engine = text.partition("class Engine:")
    (tmp_path / "ada" / "project").mkdir(parents=True)
    (tmp_path / "ada" / "project" / "my_parts.py").write_text(head)
    imports = "from collections import deque\nfrom my_parts import BlockPool, Request, cdiv\n"
    (tmp_path / "ada" / "project" / PROJECT_FILE).write_text(
        f"{imports}\n\nclass Engine:{engine}".replace(": Model", "").replace(": Limits", "")
    )
    (tmp_path / "ada" / "project" / "test_mine.py").write_text("import pytest\nraise SystemExit\n")
    (tmp_path / "bob").mkdir()
    out = tmp_path / "grades.json"
    assert cli.main(["project", "grade", str(tmp_path), "--format", "json", "--out", str(out)]) == 0
    ada, bob = json.loads(out.read_text())
    assert ada["score"] == ada["max_score"] == bob["max_score"] > 50, [
        t for t in ada["tests"] if t["status"] != PASSED
    ]
    assert bob["score"] == 0 and {test["status"] for test in bob["tests"]} == {"missing file"}


def test_the_loop_of_the_first_milestone_is_given_its_points_and_no_more(tmp_path):
    """Would catch 23 of 75 points, some of them for paging, to an engine without KV cache, batches or blocks."""
    (tmp_path / PROJECT_FILE).write_text(REFERENCES["m1"].read_text() + "\n\nMINE = True\n")
    targets = [Target(chapter, None) for chapter in CHAPTERS]
    (loop,) = grading.grade(tmp_path, targets, RunOptions(), files_of=grading.engine_files)
    assert loop.score == sum(case.points for case in cases_up_to(1)) == 6
    uncounted = [record for record in loop.records if record.status == NOT_COUNTED]
    assert uncounted and all("counts once test_" in record.message for record in uncounted)
    text = commands.describe(list(loop.records), tmp_path / PROJECT_FILE)
    assert "Next: m2, test_every_position_is_computed_once: wrong result" in text
    assert re.search(r"m5 .* 0 of 17 points   \d of 7 tests fail, the key test too", text)


def test_each_milestone_but_the_first_has_a_key_test_and_the_page_names_it():
    """Would catch a milestone whose points need nothing of what it is about."""
    keys = {case.exercise: case.test for case in cases_up_to(6) if case.is_key}
    assert list(keys) == ["m2", "m3", "m4", "m5", "m6"]
    assert sum(case.is_key for case in cases_up_to(6)) == len(keys)
    page = (implementations.ROOT / "docs" / "project.md").read_text()
    for milestone, test in keys.items():
        assert f"| {milestone[1:]} | `{test}` |" in page


def test_a_copy_of_the_reference_is_recognized(tmp_path, monkeypatch):
    """Would catch points for the file from the solutions with other comments."""
    from minivllm.course.private_copy import CourseFiles

    digests = tmp_path / "digests.txt"
    digests.write_bytes(CourseFiles.read().files[problems.DIGESTS.relative_to(implementations.ROOT)][0])
    monkeypatch.setattr(problems, "DIGESTS", digests)
    (tmp_path / PROJECT_FILE).write_text("# mine\n" + REFERENCES["m6"].read_text())
    (problem,) = problems.find_problems(tmp_path / PROJECT_FILE).values()
    assert problem.kind == COPIED and "copy of the solution" in str(problem)
    assert grading.engine_files(tmp_path) == {"my_engine": tmp_path / PROJECT_FILE}


# -- the commands -----------------------------------------------------------------------------------


def test_start_copies_the_stub_and_overwrites_nothing(tmp_path, capsys):
    """Would catch a week's work overwritten by a second start."""
    folder = tmp_path / "mine"
    assert cli.main(["project", "start", str(folder)]) == 0
    assert {path.name for path in folder.iterdir()} == {PROJECT_FILE, "README.md"}
    assert "project check 1" in capsys.readouterr().out
    (folder / PROJECT_FILE).write_text("mine")
    assert cli.main(["project", "start", str(folder)]) == 2
    assert (folder / PROJECT_FILE).read_text() == "mine"
    assert "is not empty" in capsys.readouterr().err


def test_the_engine_is_looked_for_where_the_student_is(tmp_path, monkeypatch):
    """Would catch a check of the stub while the student's own engine is in the folder."""
    parser = cli.make_parser()
    monkeypatch.chdir(tmp_path)
    assert commands.folder_of(parser.parse_args(["project", "check", "1"])) == commands.STUB
    (tmp_path / PROJECT_FILE).write_text("")
    assert commands.folder_of(parser.parse_args(["project", "status"])) == tmp_path.resolve()
    with pytest.raises(CourseError, match="project start"):
        commands.folder_of(parser.parse_args(["project", "check", "--folder", str(tmp_path / "none")]))


def test_the_report_is_about_the_first_milestone_that_fails(tmp_path):
    """Would catch a student who is sent to milestone 5 while a test of milestone 2 is red."""
    records = [
        Record("test_a", "m1", 1, PASSED),
        Record("test_b", "m2", 2, WRONG, reason="A reason.", hint="A hint.", message="expected 1"),
        Record("test_c", "m5", 3, WRONG, message="later"),
    ]
    text = commands.describe(records, tmp_path / PROJECT_FILE)
    for part in (
        "m1  loop",
        "1 of  1 points   done",
        "m5  paging",
        "Next: m2, test_b: wrong result",
        "A hint.",
        "expected 1",
    ):
        assert part in text, text
    assert "later" not in text
    assert "All tests pass." in commands.describe(records[:1], tmp_path / PROJECT_FILE)


def test_the_leaderboard_is_sorted_by_the_ratio_and_marks_doubt():
    """Would catch a ratio from a busy machine that looks like any other."""

    def entry(name, ratio, doubt):
        rates = {side: {"median": 100.0 * ratio} for side in ("student", "minivllm")}
        return {"name": name, "tokens_per_second": rates, "ratio": {"median": ratio}, "doubt": doubt,
                "calls": 1, "positions": 2, "most_slots": 3, "machine": "a processor"}  # fmt: skip

    lines = commands.as_table(
        [entry("ada", 0.5, None), entry("bob", 0.9, "load 1.5 at the start")]
    ).splitlines()
    assert [line.split()[0] for line in lines[1:3]] == ["bob", "ada"]
    assert "0.90?" in lines[1] and "0.50?" not in lines[2] and lines[3] == "? bob: load 1.5 at the start"


# -- the models -------------------------------------------------------------------------------------


def test_the_model_of_glass_says_what_has_been_read_from_where():
    """Would catch a wrong slot that passes for a wrong text, or for a right one."""
    model = GlassModel(8)
    assert model.forward([Row([7, 3], [4, 5]), Row([9], [0])]) == [next_token([7, 3]), next_token([9])]
    assert model.forward([Row([1], [4, 5, 6])]) == [next_token([7, 3, 1])]
    assert [(seen.text, seen.start, seen.num_new) for seen in model.calls[1]] == [(b"\x07\x03\x01", 2, 1)]
    for row, message in (
        (Row([1], [4, 7, 6]), "position 1 reads slot 7, into which nothing has been written"),
        (Row([1], [4, 0, 6]), "position 1 reads slot 0, which holds another token"),
        (Row([1], [0, 5, 6]), "position 0 reads slot 0, which holds another token"),
        (Row([1], [4, 5, 8]), "slots from 0 to 7"),
        (Row([], [4, 5]), "no new token"),
        (Row([1, 2], [6]), "2 new tokens and 1 slots"),
        (Row([1], [4, 5, 4]), "two of its positions"),
        (Row([256], [4]), "the token 256"),
    ):
        with pytest.raises(ModelMisuse, match=message):
            model.forward([row])
    with pytest.raises(ModelMisuse, match="without rows"):
        model.forward([])
    with pytest.raises(ModelMisuse, match="two rows write into slot 2"):
        model.forward([Row([1], [2]), Row([2], [2])])
    with pytest.raises(ModelMisuse, match="reads slot 5"):  # overwritten by the second row of the same call
        model.forward([Row([1], [4, 5, 6]), Row([2], [5])])
    with pytest.raises(ModelMisuse, match="called 1 times"):
        model = GlassModel(8, max_calls=1)
        for _ in range(2):
            model.forward([Row([7], [0])])


def test_a_llama_writes_the_same_through_scattered_slots(tmp_path):
    """Would catch positions, slots or row ends that the five tensors get wrong: two sequences, a chunk, rows mixed."""
    from minivllm.course.project.llama_model import LlamaModel
    from tests.exercises.engine import generate

    folder = random_llama(tmp_path / "model")
    prompts = [[7, 3, 200, 41, 19, 88], [5, 9]]
    expected = generate(
        folder, prompts, max_tokens=6
    )  # minivllm, which other tests compare with Hugging Face
    model, slots = (
        LlamaModel(folder, 64),
        [[28, 29, 3, 31, 8, 60, 10, 0, 1, 7, 20], [40, 2, 39, 63, 41, 38, 5]],
    )
    first, second = prompts
    model.forward([Row(first[:4], slots[0][:4])])  # a chunk: what it returns is not wanted
    texts = [[], []]
    news = [first[4:], second]
    for _ in range(6):
        ends = [len(prompt) + len(text) for prompt, text in zip(prompts, texts, strict=True)]
        rows = [Row(new, each[:end]) for new, each, end in zip(news, slots, ends, strict=True)]
        for text, token in zip(texts, model.forward(rows), strict=True):
            text.append(token)
        news = [text[-1:] for text in texts]
    assert texts == expected
    assert len(set(map(tuple, expected))) == 2 and all(len(set(text)) > 1 for text in expected)


def test_the_benchmark_measures_the_student_and_refuses_other_texts(references, tmp_path):
    """Would catch an entry for an engine that writes something else, and counts of the wrong engine."""
    folder = random_llama(tmp_path / "tiny", vocab_size=benchmark.SHAPE["vocab_size"])
    engine = references["m6"].Engine
    entry = benchmark.run_benchmark(engine, folder, "torch")
    prompts, max_tokens = benchmark.requests_of(0)
    asked = sum(map(len, prompts)) + sum(max_tokens) - len(prompts)
    assert (
        asked - 32 * (len(prompts) - 1) <= entry["positions"] < asked
    )  # the common tokens are shared by some
    assert 300 < entry["most_slots"] <= benchmark.NUM_SLOTS
    assert set(entry["tokens_per_second"]) == {"student", "minivllm"} and len(entry["ratio"]["values"]) == 3
    assert len(json.dumps(entry)) < 1900  # it has to come through as the last printed line

    class Reversed(engine):
        def generate(self, prompts, max_tokens):
            return [text[::-1] for text in super().generate(prompts, max_tokens)]

    with pytest.raises(ValueError, match="texts differ"):
        benchmark.run_benchmark(Reversed, folder, "torch")


def test_all_rounds_of_the_benchmark_have_the_same_lengths_and_other_tokens():
    """Would catch a ratio between rounds of different work, or a round that finds the one before in the prefix cache."""
    rounds = [benchmark.requests_of(number) for number in range(3)]
    assert len({tuple(map(len, prompts)) for prompts, _ in rounds}) == 1
    assert len({tuple(max_tokens) for _, max_tokens in rounds}) == 1
    assert len({tuple(prompts[0][:16]) for prompts, _ in rounds}) == 3
    limits = benchmark.LIMITS
    assert all(len(p) + n <= limits.max_model_len for p, n in zip(*rounds[0], strict=True))
    assert Limits().max_model_len == 64
