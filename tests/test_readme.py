"""README and docs say what is so: commands that exist, a snippet that prints what it shows, a true table."""

import ast
import contextlib
import io
import re
import tokenize
from pathlib import Path

import pytest

from minivllm.bench import COMMANDS
from minivllm.cli import make_parser

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
NO_CODE = {
    tokenize.COMMENT,
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
}


def blocks(language):
    """The fenced code blocks of one language."""
    return re.findall(rf"```{language}\n(.*?)```", README, flags=re.DOTALL)


def commands():
    """Every command line of the bash blocks, without comments."""
    lines = [line.split("  #")[0].strip() for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line]


def test_every_make_target_exists():
    """Would catch a target that was renamed in the Makefile only."""
    makefile = (ROOT / "Makefile").read_text()
    used = set(re.findall(r"\bmake ([a-z-]+)", README)) - {"sure"}
    assert {"demo", "test", "lint", "lab"} <= used
    for target in used:
        assert re.search(rf"^{target}:", makefile, flags=re.MULTILINE), f"make {target}"


def test_every_minivllm_command_parses():
    """Would catch an option that the README names and the parser does not know."""
    import shlex

    from minivllm.bench import load_command

    found = 0
    for line in commands():
        words = shlex.split(line)
        if "minivllm" not in words or "-m" not in words:
            continue
        arguments = words[words.index("minivllm") + 1 :]
        found += 1
        if arguments[0] == "bench":
            import argparse

            assert arguments[1] in COMMANDS
            parser = argparse.ArgumentParser()
            load_command(arguments[1]).add_arguments(parser)
            parser.parse_args(arguments[2:])
        elif arguments[0] == "compare":
            import argparse

            from minivllm.baselines import compare

            parser = argparse.ArgumentParser()
            compare.add_arguments(parser)
            parser.parse_args(arguments[1:])
        else:
            make_parser().parse_args(arguments)
    assert found >= 4


def test_every_file_named_exists():
    """Would catch a file that moved."""
    names = set(re.findall(r"`((?:minivllm|kernels|tests|examples|docs|notebooks)/[\w/.-]*)`", README))
    assert len(names) > 15
    for name in names:
        assert (ROOT / name).exists(), name


def test_the_reading_order_has_every_module_and_its_length():
    """Would catch a table that the code has outgrown: lengths may be off by 15% and 10 lines."""
    tables = README.partition("## Read in this order")[2]
    rows = dict(
        re.findall(r"^\| `((?:minivllm|kernels)/[\w/]+\.py)` \| (\d+) \|", tables, flags=re.MULTILINE)
    )
    for name, lines in rows.items():
        actual = len((ROOT / name).read_text().splitlines())
        assert abs(actual - int(lines)) <= 10 + 0.15 * actual, (
            f"{name} has {actual} lines, the README says {lines}"
        )
    modules = {f"minivllm/{path.name}" for path in (ROOT / "minivllm").glob("*.py")} - {
        "minivllm/__init__.py"
    }
    missing = modules - set(rows)
    assert not missing, f"the README's table lacks {sorted(missing)}"


def code_lines(text):
    """Lines that hold code: neither blank nor comment nor docstring."""
    with_code = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            with_code.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if (
            isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef)
            and ast.get_docstring(node) is not None
        ):
            with_code.difference_update(range(node.body[0].lineno, node.body[0].end_lineno + 1))
    return len(with_code)


def test_code_lines_are_counted_without_comments_and_docstrings():
    """Negative control: would catch a count which takes docstrings for code, or a long statement for one line."""
    text = '''"""Module."""\n\n# why\ndef f(x):  # what\n    """One.\n\n    Two.\n    """\n    return g(\n        x\n    )\n'''
    assert code_lines(text) == 4


def test_the_afternoon_is_as_long_as_it_says():
    """Would catch a heart that has grown while the README still promises an afternoon: 15% and 10 lines per file."""
    promised = re.search(r"The heart is (\d+) files with ([\d,]+) lines of code", README)
    section = README.partition("## The afternoon")[2].partition("\n## ")[0]
    rows = {name: int(lines) for name, lines in re.findall(r"^\| `([\w/]+\.py)` \| (\d+) \|", section, re.M)}
    for name, lines in rows.items():
        actual = code_lines((ROOT / name).read_text())
        assert abs(actual - lines) <= 10 + 0.15 * actual, f"{name} has {actual} lines of code, not {lines}"
    assert (int(promised[1]), int(promised[2].replace(",", ""))) == (len(rows), sum(rows.values()))


@pytest.mark.model
def test_the_snippet_prints_what_the_readme_shows(smollm2):
    """Would catch an API change that the first lines a newcomer types do not survive."""
    (snippet,) = blocks("python")
    shown = [line[2:] for line in snippet.splitlines() if line.startswith("# ")]
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        exec(compile(snippet, "README.md", "exec"), {})
    assert printed.getvalue().rstrip("\n").splitlines() == shown


def test_the_example_is_vllms_but_for_import_and_model():
    """Would catch an example that drifts away from the one that all pages use."""
    source = (ROOT / "examples" / "offline_inference.py").read_text()
    for line in (
        'prompts = [\n    "Hello, my name is",\n    "The president of the United States is",\n'
        '    "The capital of France is",\n    "The future of AI is",\n]',
        "sampling_params = SamplingParams(temperature=0.8, top_p=0.95)",
        "outputs = llm.generate(prompts, sampling_params)",
        'print(f"Prompt: {prompt!r}, Generated text: {generated_text!r}")',
    ):
        assert line in source
    compile(source, "offline_inference.py", "exec")
