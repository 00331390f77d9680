"""FastAPI around a transformers pipeline, as in most tutorials.

    uvicorn --app-dir rivals with_fastapi:app --port PORT [--workers 2]

The handler is a plain function, which FastAPI runs in a pool of threads.
Tuned, there is a worker process a core, each of one torch thread (THREADS=1) that computes one
request after the other.
"""

import asyncio
import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch
from fastapi import FastAPI
from pydantic import BaseModel
from transformers import pipeline

THREADS = int(os.environ.get("THREADS", "0"))
if THREADS:
    torch.set_num_threads(THREADS)
classify = pipeline(
    "text-classification", model=os.environ["BUNDLE"], truncation=True, device="cpu"
)
one_by_one = ThreadPoolExecutor(1)
app = FastAPI()


class Body(BaseModel):
    """A request."""

    text: str


if THREADS:

    @app.post("/predict")
    async def predict(body: Body) -> Any:
        """Classify a text in the one compute thread of this process."""
        loop = asyncio.get_running_loop()
        return (await loop.run_in_executor(one_by_one, classify, body.text))[0]

else:

    @app.post("/predict")
    def predict_in_pool(body: Body) -> Any:
        """Classify a text in the pool of threads."""
        return classify(body.text)[0]
