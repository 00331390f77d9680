"""Explanations beside predictions: a thread and a model of their own, few at a time."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cluster.errors import BerthaError
from serving.http.messages import Refusal
from serving.inference.attribution import Explainer, Unexplainable
from serving.inference.model_cache import Key
from serving.interface import Explanation
from trainers.data.tokenizer import EncodingError

MOST_WAITING = 8  # requests; each costs tens of predictions a text


class Explaining:
    """Explainers by version, one in memory. fetch: the directory of a version's bundle."""

    def __init__(self, fetch: Callable[[Key], Path]) -> None:
        self._fetch = fetch
        self._held: tuple[Key, Explainer] | None = None
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="explain")
        self._num_waiting = 0

    async def explain(self, key: Key, texts: Sequence[str], label: str | None) -> list[Explanation]:
        """Why texts got their labels. Raises Refusal."""
        if self._num_waiting >= MOST_WAITING:
            raise Refusal("overloaded", "too many explanations wait; try again", 2)
        self._num_waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, self._explain, key, texts, label)
        except EncodingError as error:
            raise Refusal("unreadable", str(error)) from None
        except Unexplainable as error:
            raise Refusal("wrong-task", str(error)) from None
        except BerthaError as error:
            raise Refusal("unready", str(error)) from None
        finally:
            self._num_waiting -= 1

    def close(self) -> None:
        """End the thread."""
        self._thread.shutdown(wait=False, cancel_futures=True)

    def _explain(self, key: Key, texts: Sequence[str], label: str | None) -> list[Explanation]:
        if self._held is None or self._held[0] != key:
            self._held = (key, Explainer.load(self._fetch(key)))
        explainer = self._held[1]
        return [explainer.explain(text, label) for text in texts]
