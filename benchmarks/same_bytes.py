"""The promise "same bytes alone or under load", on real sentences through a running gRPC service.

    python -m benchmarks.same_bytes --data ../shared/data --models models [--models build/fp32 ...]
    python -m benchmarks.same_bytes --data ../shared/data --models models --sentences 300 --random-options

Translates the same sentences (1) one call after another, (2) in one call, (3) by 64 concurrent callers in random order,
and compares every field of the translations bit for bit: texts, scores, token log-probabilities, alignments, finish
reasons, flags. With `--random-options` each sentence has decoding options of its own (greedy, beams, samples,
alternatives, and whatever else a caller can ask for), and (2) is every call at once. Prints JSON; fails where they
differ.
"""

import argparse
import random
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import grpc

from benchmarks.server_process import NO_REFUSAL, running_server, write_json
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
    with_random_options: bool
    """Whether each has decoding options of its own."""
    differ_together: int
    """In one call, or with options of their own, in as many calls at once."""
    differ_among_concurrent_callers: list[int]
    """For each random order."""
    callers: int
    mean_rows_per_step: float
    """Over the whole life of the server."""


def random_options(chance: random.Random) -> pb.DecodingOptions:
    """Options that a caller may ask for, drawn at random: every kind of search, and adjustments to it."""
    kind = chance.choice(["greedy", "beam", "beam", "beam", "samples", "alternatives"])
    size = chance.randint(2, 8)
    options = pb.DecodingOptions(length_penalty=chance.choice([0.0, 0.6, 1.0, 1.5]))
    if kind == "beam":
        options.beam_size = size
        options.num_hypotheses = chance.randint(1, size)
        options.early_stopping = chance.random() < 0.7
        options.patience = chance.choice([0.5, 1.0, 2.0])
    elif kind == "samples":
        options.num_hypotheses = size
        options.sampling.CopyFrom(
            pb.Sampling(
                top_k=chance.choice([0, 5, 50]),
                top_p=chance.choice([0.8, 0.95, 1.0]),
                temperature=chance.choice([0.5, 1.0, 1.3]),
                seed=chance.randrange(2**31),
            )
        )
    elif kind == "alternatives":
        options.with_alternatives = True
        options.num_hypotheses = size
    adjustments: tuple[dict[str, Any], ...] = (
        {"coverage_penalty": 0.2},
        {"repetition_penalty": 1.3},
        {"no_repeat_ngram_size": 3},
        {"suppressed_texts": ["的"]},
        {"no_unknown": True},
        {"min_target_ratio": 0.8},
        {"max_target_ratio": 1.5},
        {"max_target_tokens": 20},
        {"target_prefixes": ["请"]},
        {"with_alignment": True},
        {"guards_repetition": False},
    )
    for adjustment in adjustments:
        if chance.random() < 0.25:
            options.MergeFrom(pb.DecodingOptions(**adjustment))
    if options.target_prefixes and kind in {"greedy", "beam"} and chance.random() < 0.5:
        options.prefix_bias = 0.5
    return options


def translated(stub: TranslationServiceStub, request: pb.TranslateTextRequest) -> list[bytes]:
    """The translations of one call, each in its serialised form: every field, bit for bit."""
    reply = stub.TranslateText(request, timeout=CALL_SECONDS)
    return [translation.SerializeToString(deterministic=True) for translation in reply.translations]


def in_random_order(
    stub: TranslationServiceStub, requests: Sequence[pb.TranslateTextRequest], callers: int, seed: int
) -> list[bytes]:
    """Each sentence in a call of its own, from `callers` threads at once, in an order drawn from `seed`."""
    order = list(range(len(requests)))
    random.Random(seed).shuffle(order)
    with ThreadPoolExecutor(callers) as pool:
        replies = pool.map(lambda index: translated(stub, requests[index])[0], order)
        by_index = dict(zip(order, replies, strict=True))
    return [by_index[index] for index in range(len(requests))]


def compare(
    models: Path, sentences: Sequence[str], callers: int, rounds: int, *, with_random_options: bool
) -> Comparison:
    """How many sentences differ from the same sentence alone, for each way of asking."""
    chance = random.Random(7)
    requests = [
        pb.TranslateTextRequest(
            contents=[sentence], decoding_options=random_options(chance) if with_random_options else None
        )
        for sentence in sentences
    ]
    with running_server(models, *NO_REFUSAL) as server, grpc.insecure_channel(server.address) as channel:
        stub = TranslationServiceStub(channel)
        alone = [translated(stub, request)[0] for request in requests]
        if with_random_options:
            together = in_random_order(stub, requests, len(requests), rounds)
        else:
            together = translated(stub, pb.TranslateTextRequest(contents=sentences))
        shuffled = [in_random_order(stub, requests, callers, seed) for seed in range(rounds)]
        metrics = server.metrics()

    def differing(others: Sequence[bytes]) -> int:
        return sum(one != other for one, other in zip(alone, others, strict=True))

    rows = metrics["dragoman_rows_per_step_sum"] / metrics["dragoman_rows_per_step_count"]
    return Comparison(
        models=str(models),
        ready_line=server.ready_line,
        sentences=len(sentences),
        with_random_options=with_random_options,
        differ_together=differing(together),
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
    parser.add_argument("--random-options", action="store_true", help="decoding options of its own for each sentence")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()

    pool = [sentence for test_set in english_chinese(arguments.data) for sentence in test_set.sources]
    sentences = random.Random(0).sample(pool, arguments.sentences)
    results = [
        compare(
            models,
            sentences,
            arguments.callers,
            arguments.rounds,
            with_random_options=arguments.random_options,
        )
        for models in arguments.models
    ]
    write_json([asdict(result) for result in results], arguments.output)
    is_same = not any(result.differ_together or any(result.differ_among_concurrent_callers) for result in results)
    return 0 if is_same else 1


if __name__ == "__main__":
    raise SystemExit(main())
