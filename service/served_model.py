"""A model that is loaded, proven and decoding, as the edge sees it."""

from dataclasses import dataclass, field
from pathlib import Path

from service.forecast import Forecast, Load
from service.loop_group import LoopGroup
from service.options import MAX_BEAM_SIZE
from service.options_reader import built_in_defaults
from service.pb.translation.v1 import translation_pb2 as pb
from service.request import Priority
from service.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True, eq=False)
class ServedModel:
    """A model that is loaded, proven and decoding. Compared and hashed by identity: while one takes the place of
    another, there are two of one name."""

    name: str
    """Its name in requests."""
    digest: str
    """SHA-256 of its bundle's manifest."""
    directory: Path | None = None
    """Where its bundle was read."""
    num_bytes: int = 0
    """The most memory that it takes (`footprint.model_bytes`)."""
    precision: str
    """"fp32" or "int8"."""
    source_language: str
    """Language it reads."""
    target_language: str
    """Language it writes."""
    tokenizer: Tokenizer
    """Text to token ids and back."""
    loop: LoopGroup
    """The engines that decode its sequences."""
    max_source_tokens: int
    """The longest segment it takes, end of sentence included."""
    max_target_tokens: int
    """The longest translation it makes, end of sentence included."""
    max_rows: int
    """Hypotheses it decodes at a time, over all engines."""
    max_beam_size: int = MAX_BEAM_SIZE
    """Hypotheses of one segment that it decodes at a time."""
    default_options: pb.DecodingOptions = field(default_factory=built_in_defaults)
    """What holds for options that a call leaves out (`options_reader.model_defaults`)."""
    is_same_bytes: bool
    """Whether the same-bytes probe passed on this machine."""
    provider: str
    """Where its graphs run."""
    num_threads: int
    """Threads of its graphs, over all engines."""
    forecast: Forecast = field(default_factory=Forecast)
    """Told of its engines' steps; predicts what a call will take."""

    @property
    def language_pair(self) -> str:
        """As in `en-zh`."""
        return f"{self.source_language}-{self.target_language}"

    def load(self, priority: Priority = Priority.BULK) -> Load:
        """What its engines have to do before anything more of a priority, as of about now: before bulk work, all."""
        loop = self.loop
        if priority is Priority.INTERACTIVE:
            return Load(
                num_engines=len(loop.loops),
                num_rows=self.max_rows,
                num_used_rows=loop.num_used_interactive_rows,
                num_waiting=loop.num_waiting_of(priority),
                num_waiting_rows=max(0, loop.num_interactive_rows_wanted - loop.num_used_interactive_rows),
                num_waiting_tokens=loop.num_waiting_interactive_tokens,
            )
        num_used_rows = loop.num_used_rows
        num_wanted_rows = sum(each.num_rows_wanted for each in loop.loops)
        return Load(
            num_engines=len(loop.loops),
            num_rows=self.max_rows,
            num_used_rows=num_used_rows,
            num_waiting=loop.num_waiting,
            num_waiting_rows=max(0, num_wanted_rows - num_used_rows),
            num_waiting_tokens=loop.num_waiting_tokens,
        )

    def delay_seconds(self) -> float:
        """How much work is ahead of a call that comes now, as `Forecast.delay_seconds` predicts it."""
        return self.forecast.delay_seconds(self.load())
