"""The promise "same bytes alone or under load", on real sentences through a running gRPC service.

    python -m benchmarks.same_bytes --data ../shared/data --models models [--models build/fp32 ...]

Translates the same sentences (1) one call after another, (2) in one call, (3) by 64 concurrent callers in random order,
and compares text, score, token log-probabilities, finish reason and flags bit for bit. Prints JSON; fails where they
differ.
"""

import argparse
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

import grpc

from benchmarks.server_process import running_server, write_json
from benchmarks.test_sets import english_chinese
from service.pb.translation.v1 import translation_pb2 as pb
from service.pb.translation.v1.translation_pb2_grpc import TranslationServiceStub

CALL_SECONDS = 120.0


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Sentences of one directory of bundles that came out differently in company."""

    models: str
    ready_line: str
    """What the server said of itself."""
    sentences: int
    """Sentences translated each way."""
    differ_in_one_call: int
    differ_among_concurrent_callers: list[int]
    """For each random order."""
    callers: int
    mean_rows_per_step: float
    """Over the whole life of the server."""


def translations(stub: TranslationServiceStub, contents: Sequence[str]) -> list[bytes]:
    """The translations of one call, each in its serialised form: every field, bit for bit."""
    reply = stub.TranslateText(pb.TranslateTextRequest(contents=contents), timeout=CALL_SECONDS)
    return [translation.SerializeToString(deterministic=True) for translation in reply.translations]


def in_random_order(stub: TranslationServiceStub, sentences: Sequence[str], callers: int, seed: int) -> list[bytes]:
    """Each sentence in a call of its own, from `callers` threads at once, in an order drawn from `seed`."""
    order = list(range(len(sentences)))
    random.Random(seed).shuffle(order)
    with ThreadPoolExecutor(callers) as pool:
        replies = pool.map(lambda index: translations(stub, [sentences[index]])[0], order)
        by_index = dict(zip(order, replies, strict=True))
    return [by_index[index] for index in range(len(sentences))]


def compare(models: Path, sentences: Sequence[str], callers: int, rounds: int) -> Comparison:
    """How many sentences differ from the same sentence alone, for each way of asking."""
    with running_server(models) as server, grpc.insecure_channel(server.address) as channel:
        stub = TranslationServiceStub(channel)
        alone = [translations(stub, [sentence])[0] for sentence in sentences]
        together = translations(stub, sentences)
        shuffled = [in_random_order(stub, sentences, callers, seed) for seed in range(rounds)]
        metrics = server.metrics()

    def differing(others: Sequence[bytes]) -> int:
        return sum(one != other for one, other in zip(alone, others, strict=True))

    rows = metrics["dragoman_rows_per_step_sum"] / metrics["dragoman_rows_per_step_count"]
    return Comparison(
        models=str(models),
        ready_line=server.ready_line,
        sentences=len(sentences),
        differ_in_one_call=differing(together),
        differ_among_concurrent_callers=[differing(others) for others in shuffled],
        callers=callers,
        mean_rows_per_step=round(rows, 1),
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory with docs-enzh, tatoeba-enzh, flores-enzh")
    parser.add_argument("--models", type=Path, action="append", required=True, help="directory of bundles; repeatable")
    parser.add_argument(
        "--sentences", type=int, default=200, help="sentences, spread over the test sets (default: 200)"
    )
    parser.add_argument("--callers", type=int, default=64, help="concurrent callers (default: 64)")
    parser.add_argument("--rounds", type=int, default=3, help="random orders to try (default: 3)")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()

    pool = [sentence for test_set in english_chinese(arguments.data) for sentence in test_set.sources]
    sentences = random.Random(0).sample(pool, arguments.sentences)
    results = [compare(models, sentences, arguments.callers, arguments.rounds) for models in arguments.models]
    write_json([asdict(result) for result in results], arguments.output)
    is_same = not any(result.differ_in_one_call or any(result.differ_among_concurrent_callers) for result in results)
    return 0 if is_same else 1


if __name__ == "__main__":
    raise SystemExit(main())
