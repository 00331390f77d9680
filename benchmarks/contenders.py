"""The servers that are compared: how each is started and called.

Every rival runs as its own documentation recommends for this use; its file under `rivals/` says
how. It gets batches if it supports them and, in its tuned row, a one-thread worker a core.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

from contender import Body, Contender, LaunchContext

ROOT = Path(__file__).parents[1]
RIVALS = ROOT / "benchmarks" / "rivals"
TORCH = "torch==2.13.0"
TRANSFORMERS = "transformers==5.23.0"
# What loading and computing an engine imports.
PROJECT = (TORCH, TRANSFORMERS, "openvino>=2026.4", "onnxruntime>=1.20", "pydantic", "pyyaml")
PROJECT += ("numpy", "fsspec", "filelock", "safetensors", "pyarrow")
BATCH = 16
CORES = len(os.sched_getaffinity(0))


def _text(text: str) -> str:
    return json.dumps({"text": text})


def _bertha(context: LaunchContext) -> list[str]:
    command = [context.python, "-m", "serving", "serve", str(context.bundle)]
    return [*command, "--port", str(context.port), "--replicas", str(CORES)]


def _script(file: str, *more: object) -> Callable[[LaunchContext], list[str]]:
    rest = [str(each) for each in more]
    return lambda context: [context.python, str(RIVALS / file), str(context.port), *rest]


def _uvicorn(*more: str) -> Callable[[LaunchContext], list[str]]:
    def command(context: LaunchContext) -> list[str]:
        uvicorn = [context.python, "-m", "uvicorn", "with_fastapi:app", "--app-dir", str(RIVALS)]
        return [
            *uvicorn,
            "--host",
            "127.0.0.1",
            "--port",
            str(context.port),
            "--no-access-log",
            *more,
        ]

    return command


def _mosec(context: LaunchContext) -> list[str]:
    command = [context.python, str(RIVALS / "with_mosec.py"), "--address", "127.0.0.1"]
    return [*command, "--port", str(context.port), "--timeout", "60000", "--log-level", "error"]


def _bentoml(context: LaunchContext) -> list[str]:
    command = [str(context.bin_directory / "bentoml"), "serve", "with_bentoml:Rival", "-q"]
    command += ["--working-dir", str(RIVALS), "--host", "127.0.0.1"]
    return [*command, "--port", str(context.port)]


def _infinity(context: LaunchContext) -> list[str]:
    command = [str(context.bin_directory / "infinity_emb"), "v2", "--model-id", str(context.bundle)]
    command += ["--served-model-name", "rival", "--engine", "torch", "--device", "cpu"]
    command += ["--dtype", "float32", "--no-bettertransformer", "--batch-size", "32"]
    return [*command, "--host", "127.0.0.1", "--port", str(context.port), "--log-level", "error"]


_ONE_THREAD = {"OMP_NUM_THREADS": "1", "THREADS": "1"}
_HAPROXY = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",  # they would listen at all addresses
}
_WORKERS = {"WORKERS": str(CORES), "BATCH": str(BATCH)}
_INPUTS: Body = lambda text: json.dumps({"inputs": text})  # noqa: E731
_TEXTS: Body = lambda text: json.dumps({"texts": [text]})  # noqa: E731
_INPUT: Body = lambda text: json.dumps({"model": "rival", "input": [text]})  # noqa: E731


def _with_our_engine(
    name: str, title: str, command: Callable[[LaunchContext], list[str]]
) -> Contender:
    """Return a server that computes by the engine that Bertha serves, with no padding to pay."""
    return Contender(
        f"{name}-engine",
        f"{title}, the engine of Bertha",
        command,
        "/inference" if name == "mosec" else "/predict",
        _text,
        f"as {name}, with the engine that `build` chose in each worker",
        _ONE_THREAD | _WORKERS | {"ENGINE": "1", "PYTHONPATH": str(ROOT)},
        (*PROJECT, name),
        f"{name}-engine",
        uses_chosen_engine=True,
    )


CONTENDERS = {
    each.name: each
    for each in (
        Contender(
            "bertha",
            "Bertha, chosen engine",
            _bertha,
            "/predict",
            _INPUTS,
            f"bertha serve, {CORES} replicas, the engine that `build` chose",
            uses_chosen_engine=True,
        ),
        Contender(
            "bertha-fp32",
            "Bertha, torch fp32",
            _bertha,
            "/predict",
            _INPUTS,
            f"bertha serve, {CORES} replicas",
        ),
        Contender(
            "ray-serve",
            "Ray Serve, @serve.batch",
            _script("with_ray_serve.py", 1, BATCH),
            "/",
            _text,
            f"1 replica, batch {BATCH}, 10 ms, max_ongoing_requests {4 * BATCH}",
        ),
        Contender(
            "ray-serve-tuned",
            "Ray Serve, tuned",
            _script("with_ray_serve.py", CORES, BATCH),
            "/",
            _text,
            f"as above, {CORES} replicas of one thread",
        ),
        Contender(
            "ray-serve-haproxy",
            "Ray Serve, tuned, its HAProxy",
            _script("with_ray_serve.py", CORES, BATCH),
            "/",
            _text,
            "as above, RAY_SERVE_ENABLE_HA_PROXY=1 RAY_SERVE_THROUGHPUT_OPTIMIZED=1",
            _HAPROXY,
        ),
        Contender(
            "fastapi",
            "FastAPI + pipeline",
            _uvicorn(),
            "/predict",
            _text,
            "1 worker, its thread pool, torch's default threads",
        ),
        Contender(
            "fastapi-tuned",
            "FastAPI + pipeline, tuned",
            _uvicorn("--workers", str(CORES), "--loop", "uvloop", "--http", "httptools"),
            "/predict",
            _text,
            f"{CORES} workers of one thread, uvloop, httptools",
            _ONE_THREAD,
        ),
        Contender(
            "litserve",
            "LitServe",
            _script("with_litserve.py", CORES, BATCH),
            "/predict",
            _text,
            f"{CORES} workers of one thread, batch {BATCH}, 10 ms, fast_queue",
            _ONE_THREAD,
            (TORCH, TRANSFORMERS, "litserve"),
            "litserve",
        ),
        Contender(
            "mosec",
            "mosec",
            _mosec,
            "/inference",
            _text,
            f"{CORES} workers of one thread, batch {BATCH}, 10 ms",
            _ONE_THREAD | _WORKERS,
            (TORCH, TRANSFORMERS, "mosec"),
            "mosec",
        ),
        _with_our_engine("litserve", "LitServe", _script("with_litserve.py", CORES, BATCH)),
        _with_our_engine("mosec", "mosec", _mosec),
        Contender(
            "bentoml",
            "BentoML",
            _bentoml,
            "/predict",
            _TEXTS,
            f"{CORES} workers of one thread, adaptive batches of at most {BATCH}",
            _ONE_THREAD | _WORKERS | {"BENTOML_DO_NOT_TRACK": "True"},
            (TORCH, TRANSFORMERS, "bentoml"),
            "bentoml",
        ),
        Contender(
            "torchserve",
            "TorchServe",
            _script("with_torchserve.py", 1, BATCH),
            "/predictions/rival",
            _text,
            f"1 worker, batch {BATCH}, 10 ms",
            {},
            (TORCH, TRANSFORMERS, "torchserve", "torch-model-archiver", "setuptools<81", "pyyaml"),
            "torchserve",
            "java",
        ),
        Contender(
            "torchserve-tuned",
            "TorchServe, tuned",
            _script("with_torchserve.py", CORES, BATCH),
            "/predictions/rival",
            _text,
            f"{CORES} workers of one thread, batch {BATCH}, 10 ms",
            _ONE_THREAD,
            (TORCH, TRANSFORMERS, "torchserve", "torch-model-archiver", "setuptools<81", "pyyaml"),
            "torchserve",
            "java",
        ),
        Contender(
            "infinity",
            "infinity",
            _infinity,
            "/classify",
            _INPUT,
            "torch engine, batch 32, torch's default threads (it has no worker processes)",
            {"DO_NOT_TRACK": "1", "INFINITY_ANONYMOUS_USAGE_STATS": "0"},
            (TORCH, "infinity-emb[torch,server]"),
            "infinity",
        ),
    )
}
