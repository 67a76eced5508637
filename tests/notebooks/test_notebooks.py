"""Notebooks tell the truth: what a reader sees is what the code gives, and every claim is checked. Nothing is run here.

They are run in `test_notebooks_run.py` and `test_notebooks_timed.py`.
"""

import ast
import re

import nbformat
import pytest

from minivllm.block_table import BlockTable
from minivllm.course.notebook import CLAIM_PREFIX, claim, reveal, source_of
from tests.notebooks.helpers import NOTEBOOKS, ROOT, SOURCES, TIMED, build

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


@pytest.fixture
def notebook(source):
    return nbformat.read(build.notebook_path(source), as_version=4)


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
    assert [path.name[:2] for path in SOURCES] == [f"{number:02}" for number in range(12)]
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
    words = len(re.sub(r"<[^>]+>", " ", markdown_of(notebook)).split())
    code_cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert 1000 <= words <= 1600, words
    assert len(code_cells) <= 25
    assert len(code_of(notebook).splitlines()) <= 180
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
    """Would catch a chapter that leaves the request everybody knows: six words, then blocks 7 and 2."""
    text = source.read_text()
    if source not in TIMED:  # chapter 11 has real text
        assert "Four score and seven years ago" in text or "example request" in text


# -- the checks themselves --------------------------------------------------------------------------


def test_staleness_sees_each_kind_of_change(tmp_path, monkeypatch):
    """Negative control of the stale check: source, cells, code, and a notebook that was never built."""
    (tmp_path / "src").mkdir()
    source = tmp_path / "src" / "07_test.py"
    source.write_text("# %%\nx = 1\n")
    module = tmp_path / "module.py"
    module.write_text("a = 1\n")
    monkeypatch.setattr(build, "HERE", tmp_path)
    monkeypatch.setattr(build, "ROOT", tmp_path)
    assert "never been built" in build.staleness(source)

    def write(change=lambda notebook: None):
        notebook = build.load_source(source)
        notebook.metadata.minivllm = build.stamp(source, False, ["module.py"], 1.0)
        change(notebook)
        nbformat.write(notebook, build.notebook_path(source))

    write()
    assert build.staleness(source) is None
    source.write_text("# %%\nx = 2\n")
    assert "source has changed" in build.staleness(source)
    write(lambda notebook: notebook.cells[0].update(source="x = 3"))
    assert "edit notebooks/src" in build.staleness(source)
    write()
    module.write_text("a = 2\n")
    assert "code it runs has changed" in build.staleness(source)
    write()
    module.unlink()
    assert "code it runs has changed" in build.staleness(source)


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


def test_claim_is_strict(capsys):
    """Would catch a claim that cannot fail: a list, a tensor or a string counts as true."""
    claim("one is one", 1 == 1, measured=1)
    assert capsys.readouterr().out == f"{CLAIM_PREFIX}one is one (measured: 1)\n"
    with pytest.raises(AssertionError, match=r"claim does not hold: .* \(measured: 3\)"):
        claim("two is three", False, measured=3)
    for condition in ([1], "yes", 1, None):
        with pytest.raises(TypeError, match="must be a bool"):
            claim("something", condition)


def test_reveal_says_how_far_off_a_guess_is(capsys):
    """Would catch the wrong direction, and a notebook that stops because nobody guessed."""
    reveal(None, 1234, "steps")
    reveal(10, 10)
    reveal(10, 12, "steps")
    reveal(0.5, 0.25)
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("Measured: 1,234 steps. (Put your own guess")
    assert out[1:] == [
        "Measured: 10. Exactly your guess.",
        "Measured: 12 steps. You guessed 10: it is 2 more.",
        "Measured: 0.25. You guessed 0.5: it is 0.25 less.",
    ]


def test_shown_source_is_the_module_s_own():
    """Would catch source that is not what runs, or that names a path of this machine."""
    text = source_of(BlockTable.slot)
    line = int(re.match(r"`minivllm/block_table.py`, line (\d+)\n", text)[1])
    module = (ROOT / "minivllm" / "block_table.py").read_text().splitlines()
    code = re.search(r"```python\n(.*)\n```", text, re.S)[1].splitlines()
    assert [each.strip() for each in code] == [
        each.strip() for each in module[line - 1 : line - 1 + len(code)]
    ]
    assert "def block_ids" in source_of(BlockTable.block_ids)
    short = source_of(BlockTable.slot, docstring=False)
    assert "Physical slot" not in short and "return block.block_id" in short
    ast.parse(re.search(r"```python\n(.*)\n```", short, re.S)[1])
