"""A model apart from the batches, for what no engine computes: explanations, vectors of tokens."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Generic, TypeVar

from cluster.errors import BerthaError
from serving.http.messages import HTTPError
from serving.inference.model_cache import ModelKey
from trainers.data.tokenizer import EncodingError

MAX_WAITING = 8  # requests; each costs tens of predictions

Loaded = TypeVar("Loaded")
Result = TypeVar("Result")


class SideModel(Generic[Loaded]):
    """One thread with one model in memory: that of the version that was asked last.

    fetch: returns the directory of a version's bundle. load: reads it. what: is waited for, in
    words. wrong_task: what `load` and tasks raise where the model is not for that.
    """

    def __init__(
        self,
        fetch: Callable[[ModelKey], Path],
        load: Callable[[Path], Loaded],
        what: str,
        wrong_task: type[BerthaError] | None = None,
    ) -> None:
        self._fetch, self._load, self._what, self._wrong_task = fetch, load, what, wrong_task
        self._loaded: tuple[ModelKey, Loaded] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=what.split()[0])
        self._num_waiting = 0

    async def run(self, key: ModelKey, task: Callable[[Loaded], Result]) -> Result:
        """Return what `task` makes of the model of a version. Raises HTTPError."""
        if self._num_waiting >= MAX_WAITING:
            raise HTTPError("overloaded", f"too many {self._what} wait; try again", 2)
        self._num_waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._run_in_thread, key, task)
        except EncodingError as error:
            raise HTTPError("unreadable", str(error)) from None
        except BerthaError as error:
            is_task = self._wrong_task is not None and isinstance(error, self._wrong_task)
            raise HTTPError("wrong-task" if is_task else "unready", str(error)) from None
        finally:
            self._num_waiting -= 1

    def close(self) -> None:
        """Stop the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _run_in_thread(self, key: ModelKey, task: Callable[[Loaded], Result]) -> Result:
        if self._loaded is None or self._loaded[0] != key:
            self._loaded = (key, self._load(self._fetch(key)))
        return task(self._loaded[1])
