"""CTranslate2's side of the comparison: runs in a virtual environment of its own, with NumPy and ctranslate2 alone.

    python -m benchmarks.ctranslate2_side MODEL DIRECTORY    # started by benchmarks.ctranslate2_beam

MODEL is what `benchmarks.peers.ctranslate2_convert` wrote. DIRECTORY holds `request.json` (sources, targets to score,
options); `response.json` is written beside it.
"""

import json
import sys
from pathlib import Path

import ctranslate2

from benchmarks.peers.ctranslate2_convert import token, token_id


def main() -> None:
    model, directory = Path(sys.argv[1]), Path(sys.argv[2])
    request = json.loads((directory / "request.json").read_text(encoding="utf-8"))
    translator = ctranslate2.Translator(str(model), compute_type="float32", intra_threads=request["threads"])
    sources = [[token(i) for i in source] for source in request["sources"]]

    scored = request["scored"]
    scores = translator.score_batch(
        [[token(i) for i in source] for source, _ in scored],
        [[token(i) for i in target] for _, target in scored],
        max_batch_size=16,
    )
    results = translator.translate_batch(sources, max_batch_size=16, return_scores=True, **request["options"])
    response = {
        "version": ctranslate2.__version__,
        "token_log_probabilities": [list(result.log_probs) for result in scores],
        "hypotheses": [[[token_id(name) for name in tokens] for tokens in result.hypotheses] for result in results],
        "scores": [list(result.scores) for result in results],
    }
    (directory / "response.json").write_text(json.dumps(response), encoding="utf-8")


if __name__ == "__main__":
    main()
