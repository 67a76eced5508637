"""The options of `serve`, apart from those of the engine, with vLLM's names where vLLM has them.

They stand here and not in `server/`, so that `--help` needs neither torch nor the packages of the server.

vLLM V1: `vllm/entrypoints/openai/cli_args.py`.
"""

from __future__ import annotations

import argparse
from importlib.util import find_spec

PACKAGES = ("fastapi", "uvicorn", "prometheus_client")


def add_serve_arguments(parser: argparse.ArgumentParser) -> None:
    """Add everything that concerns clients and not the engine."""
    parser.add_argument("model_tag", nargs="?", metavar="MODEL", help="in place of --model")
    add = parser.add_argument_group("server").add_argument
    add(
        "--host",
        default="127.0.0.1",
        help="address to listen on; 0.0.0.0: on all of them, so other machines may call",
    )
    add("--port", type=int, default=8000, help="0: any that is free")
    add("--api-key", nargs="+", metavar="KEY", help="clients must send one of these (or: VLLM_API_KEY)")
    add("--served-model-name", nargs="+", metavar="NAME", help="what clients call the model")
    add("--allowed-origins", nargs="*", default=[], metavar="ORIGIN", help="pages that may call, * for all")
    add("--max-queued-requests", type=int, default=256, help="beyond --max-num-seqs; more get 503")
    add("--max-body-bytes", type=int, default=4 * 2**20, help="larger requests get 413")
    add("--timeout-keep-alive", type=int, default=5, help="seconds until an idle connection is closed")
    add("--shutdown-timeout", type=int, default=30, help="seconds that running requests get after SIGTERM")
    add("--num-reserved-cores", type=int, default=0, help="cores that the engine leaves to the event loop")
    add("--num-replicas", type=int, help="engines, on Ray, behind one address (default: one, without Ray)")
    add("--ray-address", help="of the Ray cluster (default: RAY_ADDRESS, or a new one here)")
    add("--page", action=argparse.BooleanOptionalAction, default=True, help="the page, with Pause and Step")
    add("--uvicorn-log-level", default="info", choices=("debug", "info", "warning", "error"))


def serve(args: argparse.Namespace) -> None:
    """Run the server, or say which packages are missing."""
    missing = [name for name in PACKAGES if find_spec(name) is None]
    if missing:
        raise ValueError(
            f"serve needs {', '.join(missing)}, and this installation lacks them: "
            f"pip install 'minivllm[server]'."
        )
    args.model = args.model_tag or args.model
    if args.num_replicas is not None:
        from minivllm.batch.ray_serve import serve as run
    else:
        from minivllm.server.launch import serve as run
    run(args)
