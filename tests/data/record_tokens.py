"""Prints what a toy bundle translates to, as JSON: the tokens that later versions must still give for it.

python -m tests.data.record_tokens tests/data/bundle-v2 > tests/data/bundle-v2.tokens.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from service.bundle import load_bundle
from service.engine import Engine
from service.model_runner import OnnxModelRunner
from service.options import DecodingOptions
from service.request import Sequence
from tests.toy_checkpoint import toy_pairs

NUM_SENTENCES = 24


def translate_tokens(directory: Path, sources: list[str]) -> dict[str, list[int]]:
    """Greedy tokens of each source text, by the code that serves."""
    bundle = load_bundle(directory)
    runner = OnnxModelRunner(bundle, max_rows=4, max_source_tokens=32, max_target_tokens=32, num_threads=1)
    sequences = [
        Sequence(
            source_ids=tuple(bundle.tokenizer.encode_source(source)),
            options=DecodingOptions(max_target_tokens=32, guards_repetition=False),
        )
        for source in sources
    ]
    Engine.over(runner).run_to_completion(sequences)
    return {source: list(each.target_ids) for source, each in zip(sources, sequences, strict=True)}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    texts = [source for source, _ in toy_pairs(NUM_SENTENCES, seed=3)]
    print(json.dumps(translate_tokens(parser.parse_args().directory, texts), indent=1))
