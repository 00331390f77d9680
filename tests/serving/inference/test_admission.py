"""Bursts and overload told apart, the speed of models, and what may wait, without a clock."""

from dataclasses import dataclass

import pytest

from serving.inference.admission import PATIENCE, Admission
from serving.interface import Limits


@dataclass(eq=False)
class Model:
    batch_tokens: int = 100
    tokens_per_second: float = 0.0


class Load:
    """An engine that does `capacity` tokens a second, offered requests of ten tokens."""

    def __init__(self, capacity: float = 1000.0) -> None:
        self.admission = Admission(Limits())
        self.capacity, self.now, self.waiting = capacity, 0.0, 0.0
        self.overloaded: list[float] = []  # when it was

    def burst(self, requests: int) -> None:
        for _ in range(requests):
            self.admission.offer(self.now, 10)
            self.waiting += 10

    def offer(self, rate: float, seconds: float) -> None:
        """Offer `rate` tokens a second, evenly; the engine takes a batch each 50 ms."""
        due = 0.0
        for _ in range(round(seconds / 0.01)):
            self.now += 0.01
            due += 0.01 * rate
            while due >= 10:
                due -= 10
                self.admission.offer(self.now, 10)
                if not self.admission.is_overloaded or self.waiting < 240:
                    self.waiting += 10
            if round(self.now / 0.01) % 5 == 0:
                batch = min(self.waiting, 0.05 * self.capacity)
                self.waiting -= batch
                if batch:
                    self.admission.begin(int(batch))
                else:
                    self.admission.run_empty()
            if self.admission.is_overloaded:
                self.overloaded.append(self.now)


def test_twice_the_capacity_is_overload_within_a_second_and_ends_with_it() -> None:
    load = Load()
    load.offer(2000, 10)
    first = load.overloaded[0]
    assert 0.5 < first < 1.2
    assert len(load.overloaded) > 0.99 * (10 - first) / 0.01  # and stays it
    load.overloaded.clear()
    load.offer(500, 10)
    assert not load.admission.is_overloaded
    assert load.overloaded[-1] < 12


@pytest.mark.parametrize("requests", [80, 400, 1000])
def test_a_burst_is_no_overload(requests: int) -> None:
    load = Load()
    load.offer(500, 2)
    load.burst(requests)
    load.offer(800, 60)
    assert not load.overloaded and load.waiting < 100


@pytest.mark.parametrize("rate", [300, 900, 1000, 1100])
def test_what_the_engine_nearly_does_is_no_overload(rate: int) -> None:
    load = Load()
    load.offer(rate, 20)
    assert not load.overloaded


def test_a_slow_engine_takes_longer_to_tell() -> None:
    load = Load(capacity=50)  # five requests a second
    load.offer(100, 20)
    assert 2 < load.overloaded[0] < 6


def test_small_batches_do_not_hide_the_speed_of_full_ones() -> None:
    admission, model = Admission(Limits()), Model(tokens_per_second=1000.0)
    assert admission.seconds_per_token(model) == 1e-3
    for _ in range(100):
        admission.record_batch(model, 5, 0.05)
    assert admission.seconds_per_token(model) == 1e-3
    for _ in range(100):
        admission.record_batch(model, 60, 0.12)  # something else takes half of the processor
    assert admission.seconds_per_token(model) == pytest.approx(2e-3, rel=1e-6)
    admission.record_batch(model, 5, 0.001)
    assert admission.seconds_per_token(model) < 2e-3


def test_of_an_unknown_model_any_batch_teaches() -> None:
    admission, model = Admission(Limits()), Model()
    for _ in range(100):
        admission.record_batch(model, 5, 0.05)
    assert admission.seconds_per_token(model) == pytest.approx(1e-2, rel=0.05)


def test_what_a_request_may_wait() -> None:
    admission, model = Admission(Limits(max_wait_seconds=2.0)), Model(tokens_per_second=100.0)
    assert admission.allowed_wait(model, 10, None) == 2.0
    assert admission.allowed_wait(model, 100, None) == PATIENCE
    assert admission.allowed_wait(model, 10, 30.0) == pytest.approx(29.9)
    assert admission.allowed_wait(model, 100, 0.5) == pytest.approx(-0.5)
