"""A peer that is easy to predict: a source [n, ...] becomes [n] after n MiB were held; see `benchmarks.peers.protocol`.

A source that begins with 0 makes it fail, one with -1 makes its process end.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from benchmarks.peers.protocol import Load, Request, serve


class FakePeer:
    """See `protocol.Translator`."""

    def __init__(self, load: Load) -> None:
        print("what libraries say of themselves")
        if load.model == "none":
            raise ValueError("There must be a model.")
        self.version = f"fake {load.workers}x{load.threads}"

    def prepare(self, request: Request) -> Callable[[], list[int]]:
        """Nothing to prepare."""

        def run() -> list[int]:
            print("and of their work")
            firsts = [source[0] for source in request.sources]
            if -1 in firsts:
                os._exit(3)
            if 0 in firsts:
                raise ValueError("A source must not begin with 0.")
            for first in firsts:
                held = bytearray(first * 2**20)
                held[::4096] = b"x" * len(held[::4096])
            return firsts

        return run

    def targets(self, result: list[int]) -> list[list[int]]:
        """Each alone."""
        return [[first] for first in result]


if __name__ == "__main__":
    serve(FakePeer)
