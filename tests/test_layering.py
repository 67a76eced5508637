"""The house of docs and README: imports go strictly downward, and the lower floors know no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# Each module may import modules of lower floors, and those listed before it on its own floor.
FLOORS = [
    ["config", "sampling_params", "outputs", "block_pool", "block_table", "sequence", "scheduler_output"],
    ["kv_cache_manager", "beam_search", "parallel_sampling"],
    ["scheduler"],
    ["kv_cache", "attention", "attention_torch", "attention_kernels", "layers", "llama", "cuda_graphs"],
    ["model_download", "gguf_convert", "random_model", "model_loader", "memory"],
    ["logits_processors", "sampler", "model_runner", "detokenizer", "inputs", "output_processor", "metrics"],
    ["engine"],
    ["llm"],
]
PURE_FLOORS = 3
ORDER = [name for floor in FLOORS for name in floor]
PURE = [name for floor in FLOORS[:PURE_FLOORS] for name in floor]


def imports_of(path):
    """Names of all modules that a file imports, at the top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_imports(path):
    """Modules of minivllm itself that a file imports."""
    return {name.split(".")[1] for name in imports_of(path) if name.startswith("minivllm.")} & set(ORDER)


def test_every_module_has_a_floor():
    """Would catch a new module that the layering test never looks at."""
    modules = {path.stem for path in (ROOT / "minivllm").glob("*.py")} - {"__init__", "__main__", "trace"}
    extra = modules - set(ORDER)
    assert not extra - {"cli", "demo", "drawing"}, f"give {extra} a place in FLOORS"
    assert set(ORDER) <= modules


@pytest.mark.parametrize("name", ORDER)
def test_imports_go_strictly_downward(name):
    """Would catch a cycle, and policy code that reaches into the tensor wing."""
    above = set(ORDER[ORDER.index(name) :])
    wrong = own_imports(ROOT / "minivllm" / f"{name}.py") & above
    lazily = {"gguf_convert"} if name == "model_download" else set()  # the converter, on first use
    assert not wrong - lazily, f"{name} imports {wrong}, which stand above it"


def test_the_two_wings_meet_in_the_runner_only():
    """Would catch tensors that know of policy: kv_cache, attention and llama import none of it."""
    for name in (
        "kv_cache",
        "attention",
        "attention_torch",
        "attention_kernels",
        "layers",
        "llama",
        "cuda_graphs",
    ):
        policy = {"block_pool", "kv_cache_manager", "scheduler", "sequence", "sampling_params"}
        assert not own_imports(ROOT / "minivllm" / f"{name}.py") & policy


def test_the_kernels_never_import_the_engine():
    """Would catch a kernel that cannot be used or tested alone."""
    files = list((ROOT / "kernels").glob("*.py"))
    assert len(files) > 5
    for path in files:
        assert not any(name.split(".")[0] == "minivllm" for name in imports_of(path)), path


def test_the_pure_floors_load_without_torch():
    """Would catch torch coming in through any chain of imports: these floors start in milliseconds."""
    code = (
        "import sys\n"
        f"for name in {PURE}: __import__('minivllm.' + name)\n"
        "heavy = {'torch', 'numpy', 'transformers', 'triton'} & set(sys.modules)\n"
        "sys.exit(f'loaded: {heavy}' if heavy else 0)"
    )
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_an_upward_import_would_be_noticed(tmp_path):
    """Negative control: the checker sees imports at the top, in functions, and in both spellings."""
    path = tmp_path / "module.py"
    path.write_text(
        "def f():\n    from minivllm.llm import LLM\nimport minivllm.engine\nfrom minivllm import scheduler\n"
    )
    assert own_imports(path) == {"llm", "engine", "scheduler"}


def test_no_module_state_and_no_environment_in_the_core():
    """Would catch a global statement, and a forward path that reads an environment variable."""
    for name in set(ORDER) - {"model_download"}:
        source = (ROOT / "minivllm" / f"{name}.py").read_text()
        tree = ast.parse(source)
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Global)], name
        assert "os.environ" not in source and "getenv" not in source, name


def test_a_step_is_three_calls():
    """Would catch work that creeps into step() instead of a module that a reader can find."""
    tree = ast.parse((ROOT / "minivllm" / "engine.py").read_text())
    (step,) = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "step"]
    calls = [ast.unparse(node.func) for node in ast.walk(step) if isinstance(node, ast.Call)]
    parts = [call for call in calls if call.startswith(("self.scheduler.", "self.runner."))]
    assert parts == [
        "self.scheduler.schedule",
        "self.runner.execute_model",
        "self.scheduler.update_from_output",
    ]
