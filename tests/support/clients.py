"""Clients that keep an endpoint busy, and count what they get."""

import threading
from collections import Counter

import httpx


class ClientLoad:
    """Clients that ask without a pause, and count what they get."""

    def __init__(self, url: str, num_clients: int = 4) -> None:
        self.seen: Counter[object] = Counter()
        self._url, self._over = url, threading.Event()
        self._threads = [threading.Thread(target=self._send_requests) for _ in range(num_clients)]

    def __enter__(self) -> "ClientLoad":
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join()

    def _send_requests(self) -> None:
        with httpx.Client(base_url=self._url, timeout=30, trust_env=False) as client:
            while not self._over.is_set():
                try:
                    response = client.post("/predict", json={"inputs": "a warm film"})
                    self.seen[response.status_code] += 1
                except httpx.HTTPError as error:
                    self.seen[f"{type(error).__name__}: {error}"] += 1
