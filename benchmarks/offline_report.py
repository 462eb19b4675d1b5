"""What the rounds of the offline benchmark come to: ratios round by round, a table, a plot."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.offline_cases import RANDOM, Case, Peer, Setting
from benchmarks.offline_checks import Outcome


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """One peer's time for one case in one round."""

    round: int
    """Counted from 1."""
    case: Case
    """What was translated."""
    peer: Peer
    """By whom."""
    seconds: float
    """Duration."""
    tokens: int
    """Target tokens of the best translations, ends of sentence not counted."""

    @property
    def tokens_per_second(self) -> float:
        """Its rate."""
        return self.tokens / self.seconds


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A peer in a case, apart from its times."""

    setting: Setting
    """The one it was fastest with."""
    trials: dict[Setting, float]
    """Seconds for a part of the case with each setting it could choose."""
    peak_bytes: int
    """Most resident memory of a process that does nothing else."""
    outcome: Outcome
    """Whether it counts."""

    def slower(self) -> dict[Setting, float]:
        """How many times as long the settings took that were not chosen, by the trials."""
        return {
            setting: seconds / self.trials[self.setting]
            for setting, seconds in self.trials.items()
            if setting != self.setting
        }


@dataclass(frozen=True, kw_only=True)
class Spread:
    """A median, and between what it lies."""

    median: float
    """Of the rounds."""
    least: float
    """Of the rounds."""
    most: float
    """Of the rounds."""

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.least:.2f}–{self.most:.2f})"


class Results:
    """All of a run."""

    def __init__(self, measurements: Iterable[Measurement], entries: dict[tuple[Case, Peer], Entry]) -> None:
        """`entries` names who took part in what, in the order of the table."""
        self.entries = entries
        self.measurements = list(measurements)
        self._rates: dict[tuple[Case, Peer], dict[int, float]] = {key: {} for key in entries}
        for one in self.measurements:
            self._rates[one.case, one.peer][one.round] = one.tokens_per_second

    @property
    def cases(self) -> list[Case]:
        """Every case, once."""
        return list(dict.fromkeys(case for case, _ in self.entries))

    def rate(self, case: Case, peer: Peer) -> Spread | None:
        """Target tokens a second; None where the peer does not count."""
        return self._spread(case, peer, None)

    def ratio(self, case: Case, peer: Peer, base: Peer) -> Spread | None:
        """How many times the rate of `base` a peer has, round by round; None where one of them does not count."""
        return self._spread(case, peer, base)

    def _spread(self, case: Case, peer: Peer, base: Peer | None) -> Spread | None:
        for each in (peer, base):
            if each is not None and not self._counts(case, each):
                return None
        own = self._rates[case, peer]
        values = list(own.values())
        if base is not None:
            other = self._rates[case, base]
            values = [rate / other[number] for number, rate in own.items() if number in other]
        if not values:
            return None
        return Spread(median=statistics.median(values), least=min(values), most=max(values))

    def _counts(self, case: Case, peer: Peer) -> bool:
        entry = self.entries.get((case, peer))
        return entry is not None and not entry.outcome.problems

    def problems(self) -> list[str]:
        """Why peers do not count, one line each."""
        return [
            f"{case.name}: {peer.value}: {problem}"
            for (case, peer), entry in self.entries.items()
            for problem in entry.outcome.problems
        ]

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON: every case with its figures, and all raw rounds."""
        return {
            "cases": [
                {
                    "case": case.name,
                    "model": case.model,
                    "search": case.search,
                    "batch_size": case.batch_size,
                    "sentences": case.num_sentences,
                    "peer": peer.value,
                    "setting": str(entry.setting),
                    "trial_seconds": {str(setting): seconds for setting, seconds in entry.trials.items()},
                    "tokens_per_second": _plain(self.rate(case, peer)),
                    "ratio_to_ctranslate2_int8": _plain(self.ratio(case, peer, Peer.CTRANSLATE2)),
                    "peak_bytes": entry.peak_bytes,
                    "bleu": entry.outcome.bleu,
                    "same_as_pytorch": entry.outcome.same,
                    "problems": list(entry.outcome.problems),
                }
                for (case, peer), entry in self.entries.items()
            ],
            "rounds": [
                {
                    "round": one.round,
                    "case": one.case.name,
                    "peer": one.peer.value,
                    "seconds": one.seconds,
                    "tokens": one.tokens,
                }
                for one in self.measurements
            ],
        }


def table(results: Results) -> str:
    """The figures in Markdown, a line for each peer of each case."""
    lines = [
        "| model | search | batch | sentences | peer | setting | other settings | tokens/s | × CTranslate2 int8 | "
        "peak MB | BLEU |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for (case, peer), entry in results.entries.items():
        rate, ratio = results.rate(case, peer), results.ratio(case, peer, Peer.CTRANSLATE2)
        slower = ", ".join(f"{setting}: {times:.1f} × the time" for setting, times in entry.slower().items())
        bleu = "" if entry.outcome.bleu is None else f"{entry.outcome.bleu:.2f}"
        lines.append(
            f"| {case.model} | {case.search} | {case.batch_size} | {case.num_sentences} | {peer.value} | "
            f"{entry.setting} | {slower} | {f'{rate.median:,.0f}' if rate else 'does not count'} | {ratio or ''} | "
            f"{entry.peak_bytes / 1e6:.0f} | {bleu} |"
        )
    return "\n".join(lines)


def ratios(results: Results) -> str:
    """How many times as fast as each other peer Dragoman is, a line for each case."""
    lines = []
    for case in results.cases:
        found = [
            f"{ratio} × {base.value}"
            for base in case.peers
            if base is not Peer.DRAGOMAN and (ratio := results.ratio(case, Peer.DRAGOMAN, base)) is not None
        ]
        lines.append(f"{case.name}: Dragoman {'; '.join(found) or 'cannot be compared'}")
    return "\n".join(lines)


def plot(results: Results, path: Path) -> None:
    """Rates beside CTranslate2's in int8, a panel for each model and search, as a PNG; of several cases of a panel and
    batch the one with most peers. The figures above the bars are target tokens a second."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    panels = list(dict.fromkeys((case.model, case.search) for case in results.cases))
    figure, axes = pyplot.subplots(1, len(panels), figsize=(4.2 * len(panels), 4.2), squeeze=False)
    for axis, (model, search) in zip(axes[0], panels, strict=True):
        shown = _one_a_batch(case for case in results.cases if (case.model, case.search) == (model, search))
        peers = [peer for peer in Peer if any(peer in case.peers for case in shown)]
        width = 0.8 / len(peers)
        for place, peer in enumerate(peers):
            for spot, case in enumerate(shown):
                ratio, rate = results.ratio(case, peer, Peer.CTRANSLATE2), results.rate(case, peer)
                if ratio is None or rate is None:
                    continue
                where = spot + (place - (len(peers) - 1) / 2) * width
                spread = [[ratio.median - ratio.least], [ratio.most - ratio.median]]
                color = f"C{list(Peer).index(peer)}"
                axis.bar(where, ratio.median, width, yerr=spread, color=color, label=peer.value)
                axis.text(where, ratio.most, f" {rate.median:,.0f}", rotation=90, fontsize=8, ha="center", va="bottom")
        axis.axhline(1.0, color="black", linewidth=0.8)
        axis.margins(y=0.2)
        axis.set_xticks(range(len(shown)), [str(case.batch_size) for case in shown])
        axis.set_xlabel("sentences at a time")
        axis.set_ylabel("times the rate of CTranslate2 int8")
        axis.set_title(f"{model}, {search}" + ("\n(random weights)" if model == RANDOM else ""))
        axis.grid(axis="y", alpha=0.3)
    handles = {
        label: handle
        for axis in axes[0]
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True)
    }  # fmt: skip
    figure.legend(handles.values(), handles.keys(), loc="lower center", ncols=len(handles), frameon=False)
    figure.tight_layout(rect=(0, 0.07, 1, 1))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


def _one_a_batch(cases: Iterable[Case]) -> Sequence[Case]:
    """By batch, the case with most peers."""
    best: dict[int, Case] = {}
    for case in cases:
        if case.batch_size not in best or len(case.peers) > len(best[case.batch_size].peers):
            best[case.batch_size] = case
    return [best[batch] for batch in sorted(best)]


def _plain(spread: Spread | None) -> dict[str, float] | None:
    return None if spread is None else {"median": spread.median, "least": spread.least, "most": spread.most}
