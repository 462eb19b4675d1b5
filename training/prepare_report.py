"""The account of a preparation: what was read, dropped and kept, saved as `prepared/prepare.json`."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class CorpusReport:
    """What became of one corpus."""

    name: str
    """Name of the corpus in the configuration."""
    weight: float
    """How often each pair is seen in an epoch."""
    num_lines: int
    """Lines read."""
    num_other_rows: int
    """Lines left out because their filter column has another value."""
    num_malformed: int
    """Lines that are no pair."""
    malformed_examples: tuple[str, ...]
    """The first malformed lines as "file:line: reason"."""
    dropped: dict[str, int]
    """Pairs dropped by each filter."""
    num_kept: int
    """Pairs kept."""
    num_source_tokens: int
    """Source tokens of the kept pairs, eos included."""
    num_target_tokens: int
    """Target tokens of the kept pairs, eos included."""
    licence: str
    """Licence of the corpus."""
    attributions: tuple[str, ...]
    """Attributions that a model trained on the corpus must carry."""

    def to_text(self) -> str:
        """A few lines for people."""
        lines = [
            f"{self.name}: {self.num_kept:,} pairs kept of {self.num_lines:,} lines, weight {self.weight:g}, "
            f"{self.num_source_tokens:,} source and {self.num_target_tokens:,} target tokens"
        ]
        if self.num_other_rows:
            lines.append(f"  {self.num_other_rows:>9,}  other rows (filter column)")
        lines += [f"  {count:>9,}  dropped: {reason}" for reason, count in self.dropped.items()]
        if self.num_malformed:
            lines.append(f"  {self.num_malformed:>9,}  malformed lines, the first of them:")
            lines += [f"             {example}" for example in self.malformed_examples]
        return "\n".join(lines)


@dataclass(frozen=True, kw_only=True)
class PrepareReport:
    """What `prepare` did, and what training must know to draw the same batches again."""

    source_language: str
    """Language code of the source side."""
    target_language: str
    """Language code of the target side."""
    corpora: tuple[CorpusReport, ...]
    """Training corpora, in the order of their pairs in the prepared split."""
    validation: tuple[CorpusReport, ...]
    """Held-out sets."""
    sort_chunk_pairs: int
    """Pairs sorted by length together."""
    length_multiple: int
    """Batches are padded to a multiple of this many positions."""
    source_vocab_size: int
    """Pieces of the source vocabulary."""
    target_vocab_size: int
    """Pieces of the target vocabulary."""
    tokenizer_digest: str
    """Digest of the tokenizer."""
    seconds: float
    """Seconds the preparation took."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> PrepareReport:
        """Reads `to_dict` back; TypeError when a field is missing or unknown."""
        values = dict(values)
        for name in ("corpora", "validation"):
            values[name] = tuple(_corpus_from_dict(entry) for entry in values[name])
        return cls(**values)

    def to_text(self) -> str:
        """The report for people."""
        lines = [corpus.to_text() for corpus in (*self.corpora, *self.validation)]
        lines.append(
            f"vocabulary: {self.source_vocab_size:,} source and {self.target_vocab_size:,} target pieces; "
            f"prepared in {self.seconds:.0f} s"
        )
        return "\n".join(lines)


def _corpus_from_dict(values: dict[str, Any]) -> CorpusReport:
    lists = {name: tuple(values[name]) for name in ("malformed_examples", "attributions")}
    return CorpusReport(**{**values, **lists})
