"""How fast Dragoman, CTranslate2, PyTorch and Optimum translate the same sentences, in one interleaved run.

    python -m benchmarks.offline CHECKPOINT BUNDLE --data ../shared/data    # make bench-offline

Each peer is set up in an environment of its own and gets the checkpoint's weights in its own form. First every peer
takes the faster of its settings and translates every case in a fresh process: that shows its memory and whether its
translations are what they must be. Then rounds of all peers and cases follow. Figures are medians of ratios
round by round. docs/benchmarks.md says what is measured how. Writes a JSON, a table and a plot; fails where a peer's
translations are not what they must be.
"""

from __future__ import annotations

import argparse
import json
import logging
import random
import statistics
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from benchmarks.machine import machine_facts, use_cores
from benchmarks.offline_cases import RANDOM, TRAINED, Case, Peer, Setting, full_cases, quick_cases, settings
from benchmarks.offline_checks import NUM_COMPARED, check
from benchmarks.offline_report import Entry, Measurement, Results, plot, ratios, table
from benchmarks.peers import environments, models, random_model
from benchmarks.peers.process import PeerProcess, Program, started
from benchmarks.peers.protocol import Answer, Load, Request
from benchmarks.test_sets import english_chinese
from service.bundle import load_bundle
from service.tokenizer import Tokenizer
from training.evaluate import score

MAX_TARGET_TOKENS = 256
REST_SECONDS = 0.25
"""Before each measurement: threads of the peer before may still look out for work."""
TRIAL_BATCHES = 2
"""Batches by which a setting is chosen, at least `MIN_TRIAL_SENTENCES`."""
MIN_TRIAL_SENTENCES = 4
NUM_COMPARED_OF_RANDOM = 16
"""Sentences compared with PyTorch's where that decides nothing."""


class Offline:
    """The models, the sentences and the processes of a run."""

    def __init__(
        self, checkpoint: Path, bundle: Path, sources: dict[str, list[list[int]]], *, cores: int, num_trials: int
    ) -> None:
        """Makes what is missing of the environments and of the models in the peers' forms.

        Args:
            checkpoint: the default model.
            bundle: its export.
            sources: token ids of the sentences, by model.
            cores: of which the peers' settings make use.
            num_trials: of each setting, before one is chosen.
        """
        self._num_trials = num_trials
        self._sources = sources
        self._cores = cores
        base = random_model.checkpoint() if RANDOM in sources else None
        self._checkpoints = {TRAINED: checkpoint, **({RANDOM: base} if base else {})}
        self._bundles = {TRAINED: bundle, **({RANDOM: random_model.bundle(base)} if base else {})}
        self._stack = ExitStack()
        self._processes: dict[tuple[Peer, str, Setting], PeerProcess] = {}
        self.versions: dict[str, str] = {}

    def __enter__(self) -> Offline:
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def translate_afresh(self, case: Case, peer: Peer, setting: Setting) -> Answer:
        """A case by a process that does nothing else."""
        with started(self._program(peer), self._load(peer, case.model, setting)) as process:
            self.versions[peer.value] = process.version
            return process.translate(self._request(case, case.num_sentences))

    def plain(self, case: Case) -> list[list[int]]:
        """PyTorch's translations of the first sentences of a case's model, searched like the case."""
        load = self._load(Peer.PYTORCH, case.model, Setting(workers=1, threads=self._cores))
        with started(self._program(Peer.PYTORCH), load) as process:
            compared = NUM_COMPARED_OF_RANDOM if case.model == RANDOM else NUM_COMPARED
            return process.translate(self._request(case, compared, batch_size=64)).targets

    def try_settings(self, case: Case, peer: Peer) -> dict[Setting, float]:
        """Seconds that a peer takes for a part of the case with each of its settings; it is warm then."""
        possible = settings(peer, case, self._cores)
        part = min(case.num_sentences, max(MIN_TRIAL_SENTENCES, TRIAL_BATCHES * case.batch_size))
        warm_up, trial = self._request(case, min(part, case.batch_size)), self._request(case, part)
        seconds: dict[Setting, list[float]] = {setting: [] for setting in possible}
        for setting in possible:
            self._process(peer, case.model, setting).translate(warm_up)
        for _ in range(self._num_trials):
            for setting in possible:
                seconds[setting].append(self._process(peer, case.model, setting).translate(trial).seconds)
        return {setting: statistics.median(seconds[setting]) for setting in possible}

    def measure(self, number: int, case: Case, peer: Peer, setting: Setting) -> Measurement:
        """One round of one case."""
        process = self._process(peer, case.model, setting)
        time.sleep(REST_SECONDS)  # nothing tells when another process's threads have stopped looking out for work
        answer = process.translate(self._request(case, case.num_sentences))
        tokens = sum(len(target) for target in answer.targets)
        return Measurement(round=number, case=case, peer=peer, seconds=answer.seconds, tokens=tokens)

    def _process(self, peer: Peer, model: str, setting: Setting) -> PeerProcess:
        key = (peer, model, setting)
        if key not in self._processes:
            self._processes[key] = self._stack.enter_context(
                started(self._program(peer), self._load(peer, model, setting))
            )
        return self._processes[key]

    def _request(self, case: Case, num_sentences: int, *, batch_size: int | None = None) -> Request:
        return Request(
            sources=self._sources[case.model][:num_sentences],
            beam_size=case.beam_size,
            batch_size=batch_size or case.batch_size,
            max_target_tokens=case.forced_tokens or MAX_TARGET_TOKENS,
            is_forced=case.forced_tokens is not None,
        )

    def _program(self, peer: Peer) -> Program:
        python, module = {
            Peer.DRAGOMAN: (environments.dragoman, "dragoman_peer"),
            Peer.CTRANSLATE2: (environments.ctranslate2, "ctranslate2_peer"),
            Peer.CTRANSLATE2_FP32: (environments.ctranslate2, "ctranslate2_peer"),
            Peer.PYTORCH: (environments.pytorch, "pytorch_peer"),
            Peer.OPTIMUM: (environments.optimum, "optimum_peer"),
        }[peer]
        return Program(python=python(), module=f"benchmarks.peers.{module}")

    def _load(self, peer: Peer, model: str, setting: Setting) -> Load:
        checkpoint = self._checkpoints[model]
        path = {
            Peer.DRAGOMAN: lambda: self._bundles[model],
            Peer.CTRANSLATE2: lambda: models.ctranslate2_model(checkpoint, "int8"),
            Peer.CTRANSLATE2_FP32: lambda: models.ctranslate2_model(checkpoint, "float32"),
            Peer.PYTORCH: lambda: checkpoint,
            Peer.OPTIMUM: lambda: models.optimum_model(checkpoint),
        }[peer]()
        precision = "float32" if peer.is_fp32 else "int8"
        return Load(model=str(path), precision=precision, workers=setting.workers, threads=setting.threads)


def check_all(
    run: Offline, cases: Sequence[Case], tokenizer: Tokenizer, references: Sequence[str]
) -> dict[tuple[Case, Peer], Entry]:
    """Every peer's translations of every case, judged, with the memory they took and the setting that is fastest."""
    plain: dict[tuple[str, int], list[list[int]]] = {}
    entries = {}
    for case in cases:
        key = (case.model, case.beam_size)
        if key not in plain:
            plain[key] = run.plain(case)
        trials = {peer: run.try_settings(case, peer) for peer in case.peers}
        chosen = {peer: min(seconds, key=seconds.__getitem__) for peer, seconds in trials.items()}
        answers = {peer: run.translate_afresh(case, peer, chosen[peer]) for peer in case.peers}
        bleu: dict[Peer, float | None] = dict.fromkeys(case.peers)
        if case.model == TRAINED:
            for peer, answer in answers.items():
                texts = tokenizer.decode_targets(answer.targets)
                bleu[peer] = score(texts, references[: case.num_sentences], "zh").bleu
        for peer, answer in answers.items():
            outcome = check(
                case,
                peer,
                answer.targets,
                plain=plain[key],
                bleu=bleu[peer],
                fp32_bleu=bleu[Peer.CTRANSLATE2_FP32],
            )
            entries[case, peer] = Entry(
                setting=chosen[peer], trials=trials[peer], peak_bytes=answer.peak_bytes, outcome=outcome
            )
        _tell(f"checked {case.name}")
    return entries


def rounds(run: Offline, entries: dict[tuple[Case, Peer], Entry], num_rounds: int) -> list[Measurement]:
    """All peers of all cases, again and again, each round in another order of peers."""
    cases = list(dict.fromkeys(case for case, _ in entries))
    measurements = []
    for number in range(1, num_rounds + 1):
        for case in cases:
            first = number % len(case.peers)
            for peer in (*case.peers[first:], *case.peers[:first]):
                measurements.append(run.measure(number, case, peer, entries[case, peer].setting))
        _tell(f"round {number} of {num_rounds}")
    return measurements


def _tell(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundle", type=Path, help="its int8 export")
    parser.add_argument("--data", type=Path, required=True, help="directory with docs-enzh, tatoeba-enzh, flores-enzh")
    parser.add_argument("--sentences", type=int, default=2000, help="of the docs test set, drawn with a fixed seed")
    parser.add_argument("--rounds", type=int, help="default: 3, or 2 with --quick")
    parser.add_argument("--quick", action="store_true", help="fewer cases and sentences")
    parser.add_argument("--cores", type=int, default=2)
    parser.add_argument("--models", nargs="+", choices=(TRAINED, RANDOM), default=(TRAINED, RANDOM))
    parser.add_argument("--output", type=Path, default=Path("build/bench/offline"), help="for .json, .md and .png")
    arguments = parser.parse_args()

    use_cores(arguments.cores)
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)  # it speaks of packages we do not use
    num_rounds = arguments.rounds or (2 if arguments.quick else 3)
    tokenizer = load_bundle(arguments.bundle).tokenizer
    test_set = english_chinese(arguments.data)[0]
    drawn = random.Random(1).sample(range(len(test_set.sources)), min(arguments.sentences, len(test_set.sources)))
    cases = quick_cases(len(drawn)) if arguments.quick else full_cases(len(drawn))
    cases = [case for case in cases if case.model in arguments.models]
    sources = {TRAINED: tokenizer.encode_sources([test_set.sources[index] for index in drawn])}
    if RANDOM in arguments.models:
        most = max(case.num_sentences for case in cases if case.model == RANDOM)
        sources[RANDOM] = random_model.sources(most, seed=random_model.SEED + 1)

    facts = machine_facts(environments.ROOT)
    trials = 1 if arguments.quick else 3
    with Offline(arguments.checkpoint, arguments.bundle, sources, cores=arguments.cores, num_trials=trials) as run:
        entries = check_all(run, cases, tokenizer, [test_set.references[index] for index in drawn])
        results = Results(rounds(run, entries, num_rounds), entries)
        versions = run.versions
    output: Path = arguments.output
    output.parent.mkdir(parents=True, exist_ok=True)
    written = {"machine": facts, "peers": versions, "rounds_measured": num_rounds, **results.to_dict()}
    output.with_suffix(".json").write_text(json.dumps(written, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    text = f"{table(results)}\n\n{ratios(results)}\n"
    output.with_suffix(".md").write_text(text, encoding="utf-8")
    plot(results, output.with_suffix(".png"))
    print(text)
    for problem in results.problems():
        print(problem, file=sys.stderr)
    return 1 if results.problems() else 0


if __name__ == "__main__":
    raise SystemExit(main())
