"""Beam search beside CTranslate2's, with the same fp32 weights: the same best translations, and the same BLEU.

    python -m benchmarks.ctranslate2_beam CHECKPOINT BUNDLE --data ../shared/data

CHECKPOINT is the trained model, BUNDLE its fp32 export. CTranslate2 is installed into a virtual environment below
build/ and gets the checkpoint's weights. First it must give given targets PyTorch's log-probabilities; then both decode
the docs test set with beam 4, length penalty 1 and patience 1, CTranslate2's defaults. Where the best translations
differ, PyTorch scores both, and the plain reference search says how close the call was. Prints JSON; fails where less
than 99 of 100 are the same or BLEU differs by more than 0.1.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.engine_side import decode_all, open_engine
from benchmarks.peers import environments
from benchmarks.peers.models import ctranslate2_model
from benchmarks.server_process import write_json
from benchmarks.test_sets import english_chinese
from service.bundle import load_bundle
from service.options import DecodingOptions
from service.tokenizer import BOS_ID, EOS_ID, PAD_ID
from tests.parity.reference_search import Ids, search_together, start_search
from tests.parity.reference_transformer import ReferenceTransformer
from training.checkpoint import load_model
from training.evaluate import score
from training.model import Transformer

MAX_TARGET_TOKENS = 256  # CTranslate2's default
TOLERANCE = 1e-4
NUM_SCORED = 100
BEAM_OF_FOUR = DecodingOptions(
    beam_size=4, length_penalty=1.0, patience=1.0, max_target_tokens=MAX_TARGET_TOKENS, guards_repetition=False
)


@torch.inference_mode()
def log_probabilities(model: Transformer, target_tokens: int, source: Ids, target: Ids) -> list[float]:
    """PyTorch's log-probability of each token of a target, by one pass."""
    hidden = model(torch.tensor([source]), torch.tensor([len(source)]), torch.tensor([[BOS_ID, *target[:-1]]]))[0]
    logits = model.project(hidden)  # [T,V]
    logits[:, [PAD_ID, BOS_ID]] = -torch.inf
    logits[:, target_tokens:] = -torch.inf
    taken: list[float] = logits.log_softmax(-1)[torch.arange(len(target)), torch.tensor(target)].tolist()
    return taken


def ask(model: Path, directory: Path, request: dict[str, Any]) -> dict[str, Any]:
    """What CTranslate2 answers, and the seconds it took with all its preparations."""
    (directory / "request.json").write_text(json.dumps(request), encoding="utf-8")
    started = time.perf_counter()
    environments.run(environments.ctranslate2(), "benchmarks.ctranslate2_side", str(model), str(directory))
    response: dict[str, Any] = json.loads((directory / "response.json").read_text(encoding="utf-8"))
    return {**response, "seconds": round(time.perf_counter() - started, 1)}


def explain(
    model: Transformer, target_tokens: int, sources: Sequence[Ids], ours: Sequence[Ids], theirs: Sequence[Ids]
) -> list[dict[str, Any]]:
    """Of each sentence whose translations differ: PyTorch's normalized scores, and what the reference search found."""
    reference = ReferenceTransformer(model, target_tokens=target_tokens, alignment_layer=-1)
    found = search_together(reference.predict, [(source, start_search(BEAM_OF_FOUR)) for source in sources])

    def normalized(source: Ids, target: Ids) -> float:
        return sum(log_probabilities(model, target_tokens, source, target)) / len(target)

    explained = []
    for source, our, their, one in zip(sources, ours, theirs, found, strict=True):
        plain = one.hypotheses[0].target_ids
        explained.append(
            {
                "source_ids": source,
                "ours": normalized(source, our),
                "theirs": normalized(source, their),
                "reference_finds": "ours" if plain == our else "theirs" if plain == their else "another",
                "closest_call": one.closest_call,
            }
        )
    return explained


def with_end(target: Sequence[int]) -> Ids:
    """A target of CTranslate2 with the end of sentence it leaves out, unless it was cut."""
    return (*target, EOS_ID) if len(target) < MAX_TARGET_TOKENS else tuple(target)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--data", type=Path, required=True, help="directory with docs-enzh, tatoeba-enzh, flores-enzh")
    parser.add_argument("--sentences", type=int, default=2000, help="the first so many of the docs test set")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--directory", type=Path, default=Path("build/ctranslate2"), help="for what is asked and answered"
    )
    parser.add_argument("--output", type=Path, help="also write the JSON here")
    arguments = parser.parse_args()

    torch.set_num_threads(arguments.threads)
    model, tokenizer, _ = load_model(arguments.checkpoint)
    size = tokenizer.target_vocab_size
    test_set = english_chinese(arguments.data)[0]
    sources = [tuple(ids) for ids in tokenizer.encode_sources(test_set.sources[: arguments.sentences])]
    references = test_set.references[: arguments.sentences]
    scored = [tuple(tokenizer.encode_target(text))[:MAX_TARGET_TOKENS] for text in references[:NUM_SCORED]]
    scored = [target if target[-1] == EOS_ID else (*target, EOS_ID) for target in scored]

    arguments.directory.mkdir(parents=True, exist_ok=True)
    response = ask(
        ctranslate2_model(arguments.checkpoint, "float32"),
        arguments.directory,
        {
            "threads": arguments.threads,
            "sources": sources,
            "scored": [(source, target[:-1]) for source, target in zip(sources, scored, strict=False)],
            "options": {"beam_size": 4, "length_penalty": 1.0, "patience": 1.0, "num_hypotheses": 1},
        },
    )
    differences = [
        float(np.max(np.abs(np.subtract(log_probabilities(model, size, source, target), theirs))))
        for source, target, theirs in zip(sources, scored, response["token_log_probabilities"], strict=False)
    ]
    if max(differences) > TOLERANCE:
        print(f"CTranslate2's weights must score as PyTorch does, but differ by {max(differences)}.", file=sys.stderr)
        return 1

    engine = open_engine(
        load_bundle(arguments.bundle),
        max_rows=64,
        max_source_tokens=max(len(source) for source in sources),
        max_target_tokens=MAX_TARGET_TOKENS,
        num_threads=arguments.threads,
    )
    started = time.perf_counter()
    decoded = decode_all(engine, [(source, BEAM_OF_FOUR) for source in sources])
    our_seconds = time.perf_counter() - started
    ours = [tuple(sequence.hypotheses[0].target_ids) for sequence in decoded]
    theirs = [with_end(hypotheses[0]) for hypotheses in response["hypotheses"]]
    differ = [index for index in range(len(sources)) if ours[index] != theirs[index]]
    score_gaps = [
        abs(decoded[index].hypotheses[0].normalized_score - response["scores"][index][0])
        for index in range(len(sources))
        if ours[index] == theirs[index]
    ]
    bleu = {
        name: score(
            tokenizer.decode_targets([[i for i in target if i != EOS_ID] for target in targets]), references, "zh"
        ).bleu
        for name, targets in (("ours", ours), ("theirs", theirs))
    }
    same = 1 - len(differ) / len(sources)
    result = {
        "ctranslate2": response["version"],
        "sentences": len(sources),
        "scored_targets": len(differences),
        "largest_log_probability_difference": max(differences),
        "same_best": round(same, 5),
        "differ": len(differ),
        "largest_score_difference_of_the_same": max(score_gaps, default=0.0),
        "bleu": bleu,
        "seconds": {"ours": round(our_seconds, 1), "theirs_with_start": response["seconds"]},
        "differing": explain(
            model,
            size,
            [sources[index] for index in differ],
            [ours[index] for index in differ],
            [theirs[index] for index in differ],
        ),
    }
    write_json(result, arguments.output)
    return 0 if same >= 0.99 and abs(bleu["ours"] - bleu["theirs"]) <= 0.1 else 1


if __name__ == "__main__":
    raise SystemExit(main())
