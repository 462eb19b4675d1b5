"""Quality of the served model: BLEU and chrF of the test sets, translated through a running gRPC service.

    python -m benchmarks.evaluate --data ../shared/data                 # starts the service itself
    python -m benchmarks.evaluate --data ../shared/data --address HOST:PORT
    python -m benchmarks.evaluate --data ../shared/data --card models/en-zh.md   # fail unless it says the same

    python -m benchmarks.evaluate --data ../shared/data --beam-size 4            # beam search instead of the default

Prints JSON. A card is a Markdown file with a fenced block of JSON in the same form.
"""

import argparse
import contextlib
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.server_process import NO_REFUSAL, running_server, write_json
from benchmarks.test_sets import TestSet, english_chinese
from service.client import Client, DecodingOptions, Translation
from training.evaluate import score

CALLERS = 4
CONTENTS_PER_CALL = 16


@dataclass(frozen=True, kw_only=True)
class SetScore:
    """How one test set came out."""

    sentences: int
    bleu: float
    """sacreBLEU, 0 to 100, rounded to two places."""
    chrf: float
    """chrF, 0 to 100, rounded to two places."""
    signature: str
    """sacreBLEU's own description of how BLEU was counted."""


def translate_all(address: str, sources: Sequence[str], options: DecodingOptions | None) -> list[str]:
    """Translations of `sources` in their order, by several concurrent callers of several sentences each."""

    def translated(texts: Sequence[str]) -> list[Translation]:
        return client.translate(texts, options=options)

    calls = [sources[start : start + CONTENTS_PER_CALL] for start in range(0, len(sources), CONTENTS_PER_CALL)]
    with Client(address) as client, ThreadPoolExecutor(CALLERS) as callers:
        replies = callers.map(translated, calls)
        return [translation.text for reply in replies for translation in reply]


def evaluate(address: str, test_set: TestSet, options: DecodingOptions | None) -> tuple[SetScore, float]:
    """Score of one set and the seconds it took."""
    started = time.perf_counter()
    hypotheses = translate_all(address, test_set.sources, options)
    seconds = time.perf_counter() - started
    scores = score(hypotheses, test_set.references, "zh")
    return (
        SetScore(
            sentences=len(hypotheses),
            bleu=round(scores.bleu, 2),
            chrf=round(scores.chrf, 2),
            signature=scores.bleu_signature,
        ),
        seconds,
    )


def card_scores(card: Path) -> dict[str, dict[str, object]]:
    """The scores stated in a card's fenced JSON block.

    Raises:
        ValueError: when the card has no such block.
    """
    block = re.search(r"```json\n(.*?)```", card.read_text(encoding="utf-8"), re.DOTALL)
    if block is None:
        raise ValueError(f"{card} must have a fenced block of JSON with its scores, but has none.")
    scores: dict[str, dict[str, object]] = json.loads(block[1])
    return scores


@contextlib.contextmanager
def address_of(arguments: argparse.Namespace) -> Iterator[str]:
    """The address given, or that of a server started for the occasion."""
    if arguments.address:
        yield arguments.address
        return
    with running_server(arguments.models, *NO_REFUSAL) as server:
        print(server.ready_line, file=sys.stderr)
        yield server.address


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="directory with docs-enzh, tatoeba-enzh, flores-enzh")
    parser.add_argument("--models", type=Path, default=Path("models"), help="bundles to serve (default: models)")
    parser.add_argument("--address", help="use the service at HOST:PORT instead of starting one")
    parser.add_argument("--beam-size", type=int, help="of every call (default: the model's own)")
    parser.add_argument("--card", type=Path, help="fail unless this card states the same scores")
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()

    options = DecodingOptions(beam_size=arguments.beam_size) if arguments.beam_size else None
    scores: dict[str, dict[str, object]] = {}
    with address_of(arguments) as address:
        for test_set in english_chinese(arguments.data):
            result, seconds = evaluate(address, test_set, options)
            scores[test_set.name] = asdict(result)
            print(f"{test_set.name}: {result.sentences} sentences in {seconds:.1f} s", file=sys.stderr)
    write_json(scores, arguments.output)
    if arguments.card is None:
        return 0
    stated = card_scores(arguments.card)
    if stated != scores:
        print(f"{arguments.card} must state the scores above, but states {json.dumps(stated)}.", file=sys.stderr)
        return 1
    print(f"equal to {arguments.card}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
