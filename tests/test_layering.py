"""The house of docs and README: imports go strictly downward, and the lower floors know no torch."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "minivllm"

# Each module may import modules of lower floors, and those listed before it on its own floor.
FLOORS = [
    ["config", "sampling_params", "outputs", "block_pool", "block_table", "scheduler_output", "sequence",
     "distributed.config", "metrics.counters"],
    ["kv_cache_manager", "beam_search", "parallel_sampling", "step_rules", "scheduling_policy"],
    ["speculative.config", "speculative.ngram", "speculative.speculator", "speculative.verification",
     "speculative.rejection", "speculative.break_even", "scheduler"],
    ["kernels", "kv_cache", "attention", "backends.attention_torch", "backends.attention_kernels", "layers", "backends.linears", "backends.layers_kernels",
     "model", "llama", "qwen3", "backends.cuda_graphs", "backends.compiled_steps"],
    ["distributed.sharding", "weights.files", "weights.generation_config", "weights.registry", "weights.hf_config", "weights.gguf",
     "weights.download", "weights.random_model", "weights.loader", "metrics.memory"],
    ["logits_processors", "sampler", "model_runner", "detokenizer", "prompts", "inputs", "output_processor", "metrics.stats",
     "metrics.log", "speculative.draft_model"],
    ["distributed.communication", "distributed.parallel_layers", "distributed.drafts", "distributed.worker", "distributed.worker_process",
     "distributed.multiproc", "distributed.executor"],
    ["engine"],
    ["engine_loop", "llm"],
]  # fmt: skip
PURE_FLOORS = 3
ROOMS = ("backends", "weights", "metrics", "distributed", "speculative")
ORDER = [name for floor in FLOORS for name in floor]
PURE = [name for floor in FLOORS[:PURE_FLOORS] for name in floor]


def file_of(name):
    """`weights.loader` -> its file."""
    return PACKAGE / f"{name.replace('.', '/')}.py"


def name_of(path):
    """The reverse; a package's name is that of its folder."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports_of(path):
    """Names of all modules that a file imports, at the top or inside functions."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def own_imports(path, among=None):
    """Modules of minivllm itself that a file imports: all in ORDER, or `among` others."""
    found = {name.removeprefix("minivllm.") for name in imports_of(path) if name.startswith("minivllm.")}
    return found & set(ORDER if among is None else among)


def test_every_module_has_a_floor():
    """Would catch a new module that the layering test never looks at."""
    modules = {name_of(path) for folder in ("", *ROOMS) for path in (PACKAGE / folder).glob("*.py")}
    assert modules - {"", *ROOMS, "__main__"} == set(ORDER)


@pytest.mark.parametrize("name", ORDER)
def test_imports_go_strictly_downward(name):
    """Would catch policy code that reaches into the tensor wing, lazily or not."""
    above = set(ORDER[ORDER.index(name) :])
    wrong = own_imports(file_of(name)) & above
    assert not wrong, f"{name} imports {wrong}, which stand above it"


def test_there_is_no_import_cycle_anywhere():
    """Would catch two modules that import each other, by an import inside a function or for types only."""
    modules = {name_of(path): path for path in PACKAGE.rglob("*.py")}
    left = {name: own_imports(path, set(modules) - {name, ""}) for name, path in modules.items() if name}
    while left:
        done = [name for name, imports in left.items() if not imports & set(left)]
        assert done, f"these import each other: {left}"
        left = {name: imports for name, imports in left.items() if name not in done}


def test_the_two_wings_meet_in_the_runner_only():
    """Would catch tensors that know of policy: kv_cache, attention and llama import none of it."""
    for name in (
        "kv_cache",
        "attention",
        "backends.attention_torch",
        "backends.attention_kernels",
        "layers",
        "backends.layers_kernels",
        "llama",
        "qwen3",
        "backends.cuda_graphs",
        "backends.compiled_steps",
    ):
        policy = {"block_pool", "kv_cache_manager", "scheduler", "sequence", "sampling_params"}
        assert not own_imports(file_of(name)) & policy


def test_workers_know_nothing_of_policy():
    """Would catch a worker that asks the scheduler: all that a rank may know of a request is in the plan."""
    policy = {"scheduler", "kv_cache_manager", "block_pool", "sequence", "step_rules", "scheduling_policy"}
    for name in (name for name in ORDER if name.startswith("distributed.")):
        assert not own_imports(file_of(name)) & policy


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
    for name in set(ORDER) - {"weights.download"}:
        source = file_of(name).read_text()
        tree = ast.parse(source)
        assert not [node for node in ast.walk(tree) if isinstance(node, ast.Global)], name
        assert "os.environ" not in source and "getenv" not in source, name


def test_a_step_is_three_calls():
    """Would catch work that creeps into step() instead of a module that a reader can find."""
    tree = ast.parse((ROOT / "minivllm" / "engine.py").read_text())
    (step,) = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "step"]
    calls = [ast.unparse(node.func) for node in ast.walk(step) if isinstance(node, ast.Call)]
    parts = [call for call in calls if call.startswith(("self.scheduler.", "self.executor."))]
    assert parts == [
        "self.scheduler.schedule",
        "self.executor.execute_model",
        "self.scheduler.update_from_output",
    ]
