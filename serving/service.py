"""One engine made to serve many at once: admission, encoding in one thread, batches in another.

What every protocol asks. Knows no Ray and no HTTP.
"""

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from cluster.errors import BerthaError
from serving.batcher import Batcher, BatchFailed, Closed, Overloaded
from serving.engine import Engine, Prediction, split

# Padded tokens of one batch, for each thread of the engine: enough to keep it busy, little enough
# not to hold up the next. As many batches may wait as take some seconds on any machine.
TOKENS_PER_THREAD = 256
MAX_WAITING_BATCHES = 64
MAX_TEXTS = 32  # of one request


class TooLong(BerthaError):
    """A text that would have to be cut, where the request forbids it."""


class Service:
    """Answers concurrent requests with one engine. Lives in one event loop."""

    def __init__(self, engine: Engine, name: str) -> None:
        self.card = engine.card
        self.name = name
        self._engine = engine
        self.token_budget = TOKENS_PER_THREAD * torch.get_num_threads()
        self._batcher: Batcher[np.ndarray, Prediction] = Batcher(
            engine.infer_rows, self.token_budget, MAX_WAITING_BATCHES * self.token_budget
        )
        # Apart from the event loop, which a long text would hold up.
        self._tokenizer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="tokenizer")

    async def predict(self, texts: Sequence[str], truncate: bool = True) -> list[Prediction]:
        """One prediction a text, in order.

        Raises TooLong, EncodingError, and what `Batcher.submit` raises.
        """
        loop = asyncio.get_running_loop()
        samples, num_cut = await loop.run_in_executor(self._tokenizer, self._engine.encode, texts)
        if num_cut and not truncate:
            raise TooLong(
                f"{num_cut} of {len(texts)} texts longer than {self.card.max_length} tokens; "
                "shorten, or leave truncate out to have them cut"
            )
        return await self._batcher.submit(split(samples))

    async def healthy(self) -> bool:
        """Whether the engine answers: it did last time, or it does now."""
        if not self._batcher.last_batch_failed:
            return True
        try:
            await self.predict([self._engine.probe])
        except Overloaded:
            return True
        except (BatchFailed, Closed):
            return False
        return True

    async def close(self) -> None:
        """Answer what waits and end the threads."""
        await self._batcher.close()
        self._tokenizer.shutdown()
