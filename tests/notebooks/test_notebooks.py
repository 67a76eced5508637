"""Notebooks tell the truth: what a reader sees is what the code gives, and every claim is checked. Nothing is run here.

They are run in `test_notebooks_run.py` and `test_notebooks_timed.py`.
"""

import ast
import inspect
import re
import shutil
import textwrap

import nbformat
import pytest

from minivllm.block_table import BlockTable
from minivllm.course.notebook import CLAIM_PREFIX, SHOWN, claim, current_source, reveal, source_of
from tests.notebooks.helpers import NOTEBOOKS, ROOT, SOURCES, TIMED, build, differences, same, says

SKELETON = [
    "## Before you start",
    "## The problem",
    "## Predict, then run",
    "## How the code does it",
    "## The picture",
    "## Claims",
    "## Exercises",
    "## Check yourself",
    "## In real vLLM",
    "## Key points",
]


@pytest.fixture(params=SOURCES, ids=[source.stem for source in SOURCES])
def source(request):
    return request.param


def read_notebook(source):
    return nbformat.read(build.notebook_path(source), as_version=4)


@pytest.fixture
def notebook(source):
    return read_notebook(source)


def markdown_of(notebook):
    return "\n\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")


def code_of(notebook):
    return "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "code")


def html_of(notebook):
    """All HTML in the outputs."""
    return [
        output.data["text/html"]
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "text/html" in output.get("data", {})
    ]


# -- what needs no kernel ---------------------------------------------------------------------------


def test_every_chapter_is_there():
    """Would catch a notebook that was lost or renamed, and an .ipynb without a source."""
    assert [path.name[:2] for path in SOURCES] == [f"{number:02}" for number in range(17)]
    assert {path.stem for path in NOTEBOOKS.glob("*.ipynb")} == {path.stem for path in SOURCES}


def test_outputs_are_up_to_date(source):
    """Would catch outputs of older code: a page that runs, and shows something else than it would today."""
    reason = build.staleness(source)
    assert reason is None, f"{source.stem} {reason}. Build it again: make notebooks"


def test_notebook_has_the_skeleton(notebook):
    """Would catch a chapter without objectives, prediction, claim, exercises or key points."""
    text = markdown_of(notebook)
    headings = [line for line in text.splitlines() if line.startswith("## ")]
    assert [heading for heading in headings if heading in SKELETON] == SKELETON
    for words in ("**You need:**", "**You will be able to:**", "**Minutes:**"):
        assert words in text
    assert text.count("<details>") == text.count("</details>") == 3
    code = code_of(notebook)
    for call in ("show_source(", "reveal(", "claim(", "show(", "seed_all(", "\nguess = None"):
        assert call in code, call


def test_notebook_is_of_classroom_size(source, notebook):
    """Would catch a chapter that does not fit an hour, and one too heavy to load."""
    addresses = re.compile(r"^\[[^\]]+\]: \S+$|^\*\*Read on:.*$", re.M)
    words = len(re.sub(r"<[^>]+>", " ", addresses.sub("", markdown_of(notebook))).split())
    code_cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert 1000 <= words <= 1600, words
    assert len(code_cells) <= 25
    assert len(code_of(notebook).splitlines()) <= 190
    assert build.notebook_path(source).stat().st_size <= 300 * 1024


def test_every_image_is_described(notebook):
    """Would catch a picture a blind reader cannot use; pictures in markdown and raw figures have none."""
    images = [tag for text in html_of(notebook) for tag in re.findall(r"<img\b[^>]*>", text)]
    assert images
    for tag in images:
        alt = re.search(r'alt="([^"]*)"', tag)
        assert alt and len(alt[1].split()) >= 8, tag[:200]
        assert re.search(r"\d", alt[1]), f"no measured number in: {alt[1]}"
    for cell in notebook.cells:
        assert "![" not in cell.source
        for output in cell.get("outputs", []):
            assert not {"image/png", "image/svg+xml"} & set(output.get("data", {})), "use show(fig, alt=...)"


def test_notebook_claims_something_and_every_claim_held(notebook):
    """Would catch a notebook that states nothing, and a claim that was never reached."""
    calls = [
        node
        for node in ast.walk(ast.parse(code_of(notebook)))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "claim"
    ]
    assert 0 < len(calls) <= len(build.claims_of(notebook))


def test_notebook_knows_nothing_of_the_machine(notebook):
    """Would catch absolute paths, shell commands and installs: they work where they were written only."""
    text = re.sub(
        r"base64,[A-Za-z0-9+/=]+", "", nbformat.writes(notebook)
    )  # a picture may spell any short word
    assert not re.search(r"/(home|root|tmp|Users|opt|work|mnt)/\w", text)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not re.search(r"^\s*[!%](?!load_ext|check)", cell.source, re.M)
            assert all(output.get("output_type") != "error" for output in cell.outputs)


def test_prose_uses_the_vocabulary(notebook):
    """Would catch the words this project does not use, because each already means two things."""
    text = markdown_of(notebook) + code_of(notebook)
    assert not re.search(r"\bcontext_len\b|\bpages?\b", text, re.I)


def test_cell_ids_depend_on_nothing_but_the_text(source):
    """Would catch random ids: every build would change every cell."""
    first, again = build.load_source(source), build.load_source(source)
    ids = [cell.id for cell in first.cells]
    assert ids == [cell.id for cell in again.cells] and len(set(ids)) == len(ids)


def test_clock_claims_stand_only_in_timed_notebooks(source):
    """Would catch a claim about seconds in a notebook that is run beside others."""
    clock = re.search(r"perf_counter|process_time|tokens_per_second|\.time\b|monotonic", source.read_text())
    assert bool(clock) == (source in TIMED)


def test_the_worked_example_runs_through_all_chapters(source):
    """Would catch a chapter that leaves the request that all readers know: six words, then blocks 7 and 2."""
    text = source.read_text()
    if source not in TIMED:  # chapter 11 has real text
        assert "Four score and seven years ago" in text or "example request" in text


# -- the checks themselves --------------------------------------------------------------------------


def test_staleness_sees_each_kind_of_change(tmp_path, monkeypatch):
    """Negative control of the stale check: cells edited on either side, `timed`, and a notebook never built."""
    (tmp_path / "src").mkdir()
    source = tmp_path / "src" / "07_test.py"
    source.write_text("# %%\nx = 1\n")
    monkeypatch.setattr(build, "HERE", tmp_path)
    assert "never been built" in build.staleness(source)

    def write(change=lambda notebook: None):
        notebook = build.load_source(source)
        change(notebook)
        nbformat.write(notebook, build.notebook_path(source))

    write()
    assert build.staleness(source) is None
    source.write_text("# %%\nx = 2\n")
    assert "other cells than its source" in build.staleness(source)
    write(lambda notebook: notebook.cells[0].update(source="x = 3"))
    assert "other cells than its source" in build.staleness(source)
    write(lambda notebook: notebook.metadata.minivllm.update(timed=True))
    assert "other cells than its source" in build.staleness(source)


@pytest.fixture
def copy_of_the_code(tmp_path, monkeypatch):
    """A copy of what notebooks display, which the stale check reads in place of the real files."""
    for folder in ("minivllm", "kernels"):
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(build, "ROOT", tmp_path)
    return tmp_path


def notebooks_with_outdated_code():
    return {path.name[:2] for path in SOURCES if build.outdated_code(read_notebook(path))}


def test_another_line_of_the_engine_makes_no_notebook_stale(copy_of_the_code):
    """Would catch a stamp of whole files: one new line in the scheduler, and twelve notebooks to build again."""
    for name in ("scheduler.py", "engine.py", "kv_cache_manager.py", "llama.py"):
        path = copy_of_the_code / "minivllm" / name
        path.write_text(path.read_text() + "\n\ndef something_new() -> None:\n    pass\n")
        lines = path.read_text().splitlines(keepends=True)
        imports = (ast.Import, ast.ImportFrom)
        after = max(node.end_lineno for node in ast.parse("".join(lines)).body if isinstance(node, imports))
        path.write_text("".join([*lines[:after], "import this\n", *lines[after:]]))
    assert notebooks_with_outdated_code() == set()


@pytest.mark.parametrize(
    "path, name",
    [
        ("minivllm/scheduler.py", "Scheduler.schedule_running"),
        ("minivllm/engine.py", "LLMEngine.step"),
        ("minivllm/attention.py", "paged_attention_reference"),
        ("kernels/online_softmax.py", "online_update"),
    ],
)
def test_a_line_of_a_shown_function_makes_exactly_its_notebooks_stale(copy_of_the_code, path, name):
    """Would catch a page that displays code of yesterday, with its docstring or without, method or kernel."""
    text = (copy_of_the_code / path).read_text()
    code = current_source(copy_of_the_code / path, name)
    last_line = code.splitlines()[-1].strip()
    start = text.index(f"def {name.rpartition('.')[2]}(")
    at = text.index(last_line, start)
    (copy_of_the_code / path).write_text(f"{text[:at]}{last_line}  # changed{text[at + len(last_line) :]}")
    shown = re.compile(rf"show_source\((?:\w+\.)?{re.escape(name)}(?:\.fn)?[,)]")
    expected = {source.name[:2] for source in SOURCES if shown.search(source.read_text())}
    assert notebooks_with_outdated_code() == expected != set()


def test_code_that_is_gone_is_stale(copy_of_the_code):
    """Would catch a page that displays a function which was renamed, or a file which has moved."""
    path = copy_of_the_code / "minivllm" / "block_table.py"
    path.write_text(path.read_text().replace("def slot(", "def place("))
    assert "04" in notebooks_with_outdated_code()
    path.unlink()
    assert "04" in notebooks_with_outdated_code()


def test_comparison_of_outputs_sees_words_and_numbers():
    """Negative control of the comparison with the page: another word, count or number is seen, rounding is not."""
    assert same("3 blocks, 0.853, off by 2.4e-07", "3 blocks, 0.854, off by 1e-06")
    for other in ("4 blocks, 0.853, off by 2.4e-07", "3 slots, 0.853, off by 2.4e-07",
                  "3 blocks, 0.953, off by 2.4e-07", "3 blocks, 0.853, off by 0.24"):  # fmt: skip
        assert not same("3 blocks, 0.853, off by 2.4e-07", other)

    def page(text, tags=()):
        output = nbformat.v4.new_output("stream", text=text)
        cell = nbformat.v4.new_code_cell("x", outputs=[output], metadata={"tags": list(tags)})
        return nbformat.v4.new_notebook(cells=[cell])

    assert differences(page("12 steps"), page("12 steps")) == []
    assert len(differences(page("12 steps"), page("13 steps"))) == 1
    assert differences(page("12 s"), page("13 s", tags=["machine"])) == []
    picture = nbformat.v4.new_output(
        "display_data", {"text/html": '<img src="data:base64,QUJD" alt="8 bars">'}
    )
    assert says(nbformat.v4.new_code_cell("x", outputs=[picture])).strip() == '<img src="data:" alt="8 bars">'


def test_check_reports_and_runs_nothing(tmp_path, monkeypatch, capsys):
    """Would catch --check that passes stale notebooks, or that starts a kernel."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "07_test.py").write_text("# %%\nx = 1\n")
    monkeypatch.setattr(build, "HERE", tmp_path)
    monkeypatch.setattr(build, "execute", lambda notebook: pytest.fail("a kernel was started"))
    assert build.main(["--check"]) == 1
    assert "07_test.ipynb has never been built" in capsys.readouterr().out
    assert build.main(["--check", "99"]) == 2
    assert "no notebook 99" in capsys.readouterr().out


def test_a_notebook_without_claims_or_with_an_error_is_refused(tmp_path, monkeypatch):
    """Would catch a notebook that proves nothing, and one that fails, both being written as if all were well."""
    (tmp_path / "src").mkdir()
    monkeypatch.setattr(build, "HERE", tmp_path)
    for code, message in (("print('hello')", "claims nothing"), ("1 / 0", "ZeroDivisionError")):
        source = tmp_path / "src" / "07_test.py"
        source.write_text(f"# %%\n{code}\n")
        with pytest.raises(Exception, match=message):
            build.build(source)
        assert not build.notebook_path(source).exists()


LINK = re.compile(r"\[[^\]]+\]\(((?!\.\.\.)[^)\s]+)\)|^# \[[^\]]+\]: (\S+)$", re.M)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_links_lead_somewhere(source):
    """Would catch a chapter without a way on, and a link to a notebook or file which was renamed."""
    text = "\n".join(line for line in source.read_text().splitlines() if line.startswith("#"))
    targets = [inline or reference for inline, reference in LINK.findall(text)]
    inside = [target.partition("#")[0] for target in targets if not target.startswith("https://")]
    assert all((NOTEBOOKS / target).exists() for target in inside), inside
    assert any(target.startswith("https://arxiv.org/abs/") for target in targets)
    following = [path.stem for path in SOURCES if path.stem > source.stem][:1]
    assert [f"{name}.ipynb" for name in following] == inside[-1:], "the last link is the next chapter"
    for code in re.findall(r"\[(`[\w/.]+`)\](?!:|\()", text):
        assert f"# [{code}]: https://" in text, f"{code} has no address"


def test_claim_is_strict(capsys):
    """Would catch a claim that cannot fail: a list, a tensor or a string counts as true."""
    claim("one is one", 1 == 1, measured=1)
    assert capsys.readouterr().out == f"{CLAIM_PREFIX}one is one (measured: 1)\n"
    with pytest.raises(AssertionError, match=r"claim does not hold: .* \(measured: 3\)"):
        claim("two is three", False, measured=3)
    for condition in ([1], "yes", 1, None):
        with pytest.raises(TypeError, match="must be a bool"):
            claim("something", condition)


def test_without_a_guess_the_answer_is_folded(monkeypatch, capsys):
    """Would catch an answer that stands in the page before the question was thought about."""
    shown = []
    monkeypatch.setattr("IPython.display.display", lambda data, raw: shown.append(data))
    reveal(None, 1234, "steps")
    (data,) = shown
    assert re.fullmatch(r"<details><summary>No guess yet: .*</summary>.*1,234 steps.*</details>", data["text/html"])
    assert data["text/plain"] == "Measured: 1,234 steps."
    assert not capsys.readouterr().out


def test_reveal_says_how_far_off_a_guess_is(capsys):
    """Would catch the wrong direction."""
    reveal(10, 10)
    reveal(10, 12, "steps")
    reveal(0.5, 0.25)
    out = capsys.readouterr().out.splitlines()
    assert out == [
        "Measured: 10. Exactly your guess.",
        "Measured: 12 steps. You guessed 10: it is 2 more.",
        "Measured: 0.25. You guessed 0.5: it is 0.25 less.",
    ]


def test_shown_source_is_the_module_s_own():
    """Would catch source that is not what runs, or that names a path of this machine."""
    shown = SHOWN.fullmatch(source_of(BlockTable.slot))
    assert (shown["path"], shown["name"]) == ("minivllm/block_table.py", "BlockTable.slot")
    assert shown["code"] == textwrap.dedent(inspect.getsource(BlockTable.slot)).rstrip()
    assert SHOWN.fullmatch(source_of(BlockTable.block_ids))["code"].startswith("@property\ndef block_ids")
    assert SHOWN.fullmatch(source_of(BlockTable))["code"].startswith("class BlockTable:")
    short = SHOWN.fullmatch(source_of(BlockTable.slot, docstring=False))["code"]
    assert "Physical slot" not in short and "return block.block_id" in short
    ast.parse(short)
    with pytest.raises(ValueError, match="nothing to show"):
        source_of(lambda: None)
