"""Data sets as people bring them in their first hour: some hundred rows, made or subsampled.

The made ones are written from phrases here, so that no text of others is kept: support tickets in
four classes, reviews of a hotel with several labels, and ads of used cars with a price. A share of
their labels is wrong, as in files that people have labelled by hand.
"""

import csv
import random
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

NOISE = 0.05  # share of labels that are wrong
Row = tuple[str, Any]

OPENINGS = (
    "Hello,",
    "Hi team,",
    "Good morning.",
    "To whom it may concern:",
    "",
    "",
    "Second time I write.",
    "Please help.",
)
CLOSINGS = (
    "Thanks.",
    "Please answer soon.",
    "I have been a customer since {year}.",
    "My order number is {number}.",
    "",
    "",
    "Best regards",
    "What should I do?",
)
TICKETS = {
    "billing": (
        "I was charged twice for {product} this month",
        "the invoice for {product} shows the wrong amount",
        "my card was debited although I cancelled {product}",
        "why is the total {number} higher than the price I agreed to",
        "I need a receipt with our tax number for {product}",
        "the discount code was not taken off when I paid",
    ),
    "shipping": (
        "the parcel with {product} has not arrived after {days} days",
        "tracking says delivered but there is no package at my door",
        "{product} came in a crushed box",
        "can you send {product} to another address",
        "the courier left {product} with a neighbour I do not know",
        "how long does delivery to an island take",
    ),
    "account": (
        "I cannot log in since I changed my phone",
        "the password reset mail never comes",
        "please delete my profile and all data",
        "someone else signed in from another country",
        "how do I change the mail address of my user",
        "the verification code is always rejected",
    ),
    "product": (
        "{product} stops working after {days} minutes",
        "the screen of {product} stays black",
        "does {product} fit the older model",
        "{product} makes a loud noise when it is warm",
        "where is the manual for {product}",
        "one button of {product} does nothing any more",
    ),
}
ASPECTS = {
    "room": ("our room was {good}", "the bed felt {good}", "the bathroom looked {good}"),
    "food": ("breakfast was {good}", "dinner tasted {good}", "the coffee is {good}"),
    "staff": ("the people at the desk were {good}", "the waiter was {good}"),
    "noise": ("the street kept us awake", "one hears every lift", "music until {days} at night"),
    "price": ("for {number} a night that is fair", "parking costs extra", "cheap for the centre"),
}
GOOD = ("fine", "great", "poor", "better than expected", "awful", "as in the pictures", "so so")
PRODUCTS = ("the lamp", "my headset", "the blender", "a router", "the watch", "our printer")
MAKES = {"Corvo": 4000.0, "Liska": 7000.0, "Norden": 12000.0, "Aurum": 21000.0}
STATES = {"needs work": -2500.0, "normal wear": 0.0, "very well kept": 1500.0, "like new": 3000.0}
EXTRAS = {"tow bar": 200.0, "leather": 900.0, "new tyres": 400.0, "roof window": 600.0}


def make_tickets(number: int, seed: int) -> Iterator[Row]:
    """Yield support tickets, each with one of four classes."""
    draw = random.Random(seed)
    for _ in range(number):
        label = draw.choice(list(TICKETS))
        middle = " and ".join(draw.sample(TICKETS[label], draw.choice((1, 1, 2))))
        yield _letter(draw, middle), _flip(draw, label, list(TICKETS))


def make_hotel_reviews(number: int, seed: int) -> Iterator[Row]:
    """Yield reviews, each with the aspects that it speaks of, joined by a bar."""
    draw = random.Random(seed)
    for _ in range(number):
        aspects = draw.sample(list(ASPECTS), draw.choice((1, 2, 2, 3)))
        text = _letter(draw, ", ".join(draw.choice(ASPECTS[aspect]) for aspect in aspects))
        labels = [name for name in ASPECTS if (name in aspects) != (draw.random() < NOISE)]
        yield text, "|".join(labels)


def make_car_ads(number: int, seed: int) -> Iterator[Row]:
    """Yield ads of used cars, each with its price."""
    draw = random.Random(seed)
    for _ in range(number):
        make, state = draw.choice(list(MAKES)), draw.choice(list(STATES))
        extras = draw.sample(list(EXTRAS), draw.choice((0, 1, 2)))
        age = draw.randint(1, 15)
        price = MAKES[make] * 0.93**age + STATES[state] + sum(EXTRAS[each] for each in extras)
        price = max(300.0, price * (1 + draw.gauss(0, NOISE)))
        listed = f" with {' and '.join(extras)}" if extras else ""
        start = draw.choice(("Selling my", "For sale:", "Offered is a", "We part with our"))
        yield f"{start} {make}, {age} years old, {state}{listed}.", round(price, -1)


MADE: dict[str, tuple[str, Callable[[int, int], Iterator[Row]]]] = {
    "tickets": ("classification", make_tickets),
    "hotel": ("multi-label", make_hotel_reviews),
    "cars": ("regression", make_car_ads),
}


def write_rows(path: Path, rows: Iterator[Row]) -> None:
    """Write a CSV file with the columns text and label."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(("text", "label"))
        writer.writerows(rows)


def _letter(draw: random.Random, middle: str) -> str:
    text = f"{draw.choice(OPENINGS)} {middle}. {draw.choice(CLOSINGS)}".strip()
    return text.format(
        product=draw.choice(PRODUCTS),
        days=draw.randint(2, 30),
        number=draw.randint(20, 900),
        year=draw.randint(2009, 2024),
        good=draw.choice(GOOD),
    )


def _flip(draw: random.Random, label: str, labels: Sequence[str]) -> str:
    return draw.choice(labels) if draw.random() < NOISE else label
