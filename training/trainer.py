"""The training loop: batches in, checkpoints out; it can be stopped and resumed at any update.

A checkpoint holds all that the next update depends on (weights, optimizer, place in the data; the seed gives the
rest), so a run that was cut makes the very updates it would have made: bit for bit on the same hardware, threads and
number of processes. A run that ends by `max_seconds` takes its learning rate from the clock, and repeats itself only
up to that.
"""

import enum
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from tqdm import tqdm

from training import record as records
from training.checkpoint import (
    CheckpointError,
    SavedRun,
    TrainerState,
    checkpoint_name,
    clear_unfinished,
    list_checkpoints,
    load_trainer_state,
    load_weights,
    prune_checkpoints,
    save_checkpoint,
)
from training.config import Config
from training.data import Batch, PreparedData
from training.distributed import Processes, join_processes
from training.model import Transformer
from training.record import TrainingRecord, ValidationScore
from training.run_files import MetricsLog, RunPaths, draw_curves, rewind_metrics, save_config
from training.schedule import learning_rate, progress
from training.stop_signal import StopSignal
from training.update import NotFiniteError, Updater, UpdateValues
from training.validation import deciding_score, validate


class StopReason(enum.Enum):
    """Why training ended."""

    FINISHED = 1
    """The updates or seconds of the configuration are used up."""
    EARLY = 2
    """`patience` validations brought nothing better."""
    INTERRUPTED = 3
    """Ctrl-C or SIGTERM; the same command goes on from here."""


class TrainingDivergedError(ArithmeticError):
    """Loss or gradient is no longer a finite number; the message says at which update and what to try."""

    def __init__(self, update: int, cause: NotFiniteError, last_checkpoint: Path | None) -> None:
        kept = f"{last_checkpoint} is from before." if last_checkpoint else "There is no checkpoint from before."
        super().__init__(
            f"Loss and gradient must be finite, but at update {update} {cause}. {kept} "
            "Try a lower `train.peak_learning_rate`, a longer `train.warmup_updates`, a smaller `train.clip_norm`, "
            '`train.precision` = "fp32", or look for broken pairs in the data.'
        )


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A batch, and where the one after it stands."""

    batch: Batch
    epoch: int
    next_batch: int


@dataclass(frozen=True, kw_only=True)
class _Agreement:
    """What all processes know alike about the coming update."""

    target_tokens: int
    source_tokens: int
    seconds: float
    stop: StopReason | None


class Trainer:
    """One training run in one run directory."""

    def __init__(self, config: Config, run_directory: Path, data: PreparedData, processes: Processes) -> None:
        """Builds model and optimizer and takes up the newest checkpoint, where there is one.

        Raises:
            ConfigError: if the model cannot be built.
            CheckpointError, ValueError: if the newest checkpoint does not belong to this configuration, data and
                number of processes.
        """
        shape = replace(
            config.model, source_vocab_size=data.source_vocab_size, target_vocab_size=data.target_vocab_size
        )
        self.config = replace(config, model=shape)
        self.paths = RunPaths(directory=run_directory)
        self.data = data
        self.processes = processes
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        torch.manual_seed(config.train.seed)
        self.model = Transformer(shape).to(processes.device)
        self.updater = Updater(self.model, config.train, processes)
        self.state = TrainerState()
        self.scores: tuple[ValidationScore, ...] = ()
        self._validated_at_update = 0
        if processes.is_first:
            clear_unfinished(self.paths.checkpoints)
        processes.wait()  # all look for the newest checkpoint only now
        self._resume()
        self._started_at = time.monotonic() - self.state.seconds
        self._saved_at_seconds = self._validated_at_seconds = self.state.seconds
        self._stop: StopReason | None = None

    def _resume(self) -> None:
        checkpoints = list_checkpoints(self.paths.checkpoints)
        if not checkpoints:
            return
        saved = load_trainer_state(checkpoints[-1])
        if saved.tokenizer_digest != self.data.tokenizer.digest:
            raise CheckpointError(
                f"{checkpoints[-1]} must have the tokenizer of the prepared data to be resumed, but has another: "
                "`prepare` was run again. Give another run directory, or remove the checkpoints."
            )
        problems = self._other_place_in_data(saved)
        if problems:
            raise CheckpointError(
                f"{checkpoints[-1]} must go on at its place in the data, but cannot: {'; '.join(problems)}. "
                "Give it what it had, or another run directory."
            )
        load_weights(self.model, saved.weights, checkpoints[-1])
        self.updater.optimizer.load_state_tensors(saved.optimizer_tensors)
        self.state = saved.state
        self.scores = saved.record.validation
        self._validated_at_update = max((score.update for score in self.scores), default=0)

    def _other_place_in_data(self, saved: SavedRun) -> list[str]:
        """What makes `next_batch` of the checkpoint mean another batch here, or an update other batches."""
        had, has = saved.record.config.train, self.config.train
        settings = [("the number of processes", saved.record.processes, self.processes.world_size)]
        settings += [
            (f"`train.{name}`", getattr(had, name), getattr(has, name))
            for name in ("seed", "batch_tokens", "accumulation")
        ]
        return [f"{name} must be {old}, but is {new}" for name, old, new in settings if old != new]

    def run(self, show_progress: bool = True) -> StopReason:
        """Trains until the configuration's end, early stopping or a signal; the last state is saved in each case.

        Raises TrainingDivergedError when loss or gradient stop being finite.
        """
        with StopSignal() as stop_signal:
            if not self.processes.is_first:
                return self._loop(stop_signal, None, None)
            save_config(self.paths, self.config)
            rewind_metrics(self.paths, self.state.update)
            with MetricsLog(self.paths, self.state.update) as log, self._progress_bar(show_progress) as bar:
                return self._loop(stop_signal, log, bar)

    def _loop(self, stop_signal: StopSignal, log: MetricsLog | None, bar: "tqdm[None] | None") -> StopReason:
        train = self.config.train
        places = self._places()
        meter = _Meter()
        while True:
            group = [next(places) for _ in range(train.accumulation)]
            if stop_signal.is_set:
                self._stop = StopReason.INTERRUPTED
            agreed = self._agree(group)
            done = progress(train, self.state.update, agreed.seconds)
            if agreed.stop is not None or done >= 1.0:
                reason = agreed.stop or StopReason.FINISHED
                self._finish(reason, log)
                return reason
            meter.add(self._update(group, agreed, done), agreed)
            if log is not None and self.state.update % train.log_every_updates == 0:
                line = meter.take(agreed.seconds)
                log.write("train", self.state.update, {**line, "epoch": self.state.epoch})
                if bar is not None:
                    rate = f"{line['tokens_per_second']:,.0f} tok/s, lr {line['learning_rate']:.2e}"
                    bar.set_postfix_str(f"nll {line['nll']:.3f}, {rate}", refresh=False)
            if bar is not None:
                bar.update((self.state.update if train.max_updates else int(self.state.seconds)) - bar.n)
            if self._is_due(train.validate_every_updates, train.validate_every_seconds, self._validated_at_seconds):
                self._validate(log)
            if self._is_due(train.checkpoint_every_updates, train.checkpoint_every_seconds, self._saved_at_seconds):
                self._save()

    def _places(self) -> Iterator[_Place]:
        """Batches from where the run stands, epoch after epoch, without end."""
        train, processes = self.config.train, self.processes
        epoch, first = self.state.epoch, self.state.next_batch
        while True:
            number = first
            for batch in self.data.train_batches(
                epoch, train.seed, train.batch_tokens, processes.rank, processes.world_size, start_batch=first
            ):
                number += 1
                yield _Place(batch=batch, epoch=epoch, next_batch=number)
            if number == 0:
                raise ValueError(
                    f"An epoch must hold at least one batch for each of {processes.world_size} processes, but holds "
                    "none: give more data or a smaller `train.batch_tokens`."
                )
            epoch, first = epoch + 1, 0

    def _agree(self, group: list[_Place]) -> _Agreement:
        """Token counts, the first process's clock, and whether any process was asked to stop."""
        target = sum(place.batch.num_target_tokens for place in group)
        source = sum(int(place.batch.source_lengths.sum()) for place in group)
        seconds = time.monotonic() - self._started_at if self.processes.is_first else 0.0
        votes = [float(self._stop is reason) for reason in StopReason]
        target_sum, source_sum, seconds_sum, *votes_sum = self.processes.sum([target, source, seconds, *votes])
        stop = next((reason for reason, count in zip(StopReason, votes_sum, strict=True) if count), None)
        return _Agreement(target_tokens=int(target_sum), source_tokens=int(source_sum), seconds=seconds_sum, stop=stop)

    def _update(self, group: list[_Place], agreed: _Agreement, done: float) -> UpdateValues:
        """Makes the next update and moves the state past it."""
        number = self.state.update + 1
        rate = learning_rate(self.config.train, number, done)
        try:
            values = self.updater.update([place.batch for place in group], number, agreed.target_tokens, rate)
        except NotFiniteError as error:
            checkpoints = list_checkpoints(self.paths.checkpoints)
            raise TrainingDivergedError(number, error, checkpoints[-1] if checkpoints else None) from error
        self.state = replace(
            self.state,
            update=number,
            epoch=group[-1].epoch,
            next_batch=group[-1].next_batch,
            source_tokens=self.state.source_tokens + agreed.source_tokens,
            target_tokens=self.state.target_tokens + agreed.target_tokens,
            seconds=agreed.seconds,
        )
        return values

    def _is_due(self, every_updates: int, every_seconds: float, last_seconds: float) -> bool:
        """Whether something done every so often is due; all processes say the same."""
        if every_updates and self.state.update % every_updates == 0:
            return True
        return bool(every_seconds) and self.state.seconds - last_seconds >= every_seconds

    def _validate(self, log: MetricsLog | None) -> None:
        """Scores the held-out sets, keeps the best checkpoint, and asks for an early stop. The first process does."""
        self._validated_at_seconds = self.state.seconds
        self._validated_at_update = self.state.update
        if self.processes.is_first and self.data.validation_names:
            scores = validate(self.model, self.data, self.config, self.state.update, self.processes.device)
            self.scores += tuple(scores)
            decisive = deciding_score(scores)
            if self.state.best_score is None or decisive > self.state.best_score:
                self.state = replace(
                    self.state, best_score=decisive, best_update=self.state.update, validations_without_gain=0
                )
                self._save()
            else:
                self.state = replace(self.state, validations_without_gain=self.state.validations_without_gain + 1)
            if 0 < self.config.train.patience <= self.state.validations_without_gain:
                self._stop = StopReason.EARLY
            if log is not None:
                log.write_scores(self.state.update, self.state.seconds, scores)
                draw_curves(self.paths)
            tqdm.write(f"update {self.state.update}: " + "; ".join(score.to_text() for score in scores))
        self.processes.wait()

    def _save(self) -> None:
        """Writes the checkpoint of the present update. The first process does."""
        self._saved_at_seconds = self.state.seconds
        if not self.processes.is_first:
            return
        save_checkpoint(
            self.paths.checkpoints / checkpoint_name(self.state.update),
            self.model,
            self.data.tokenizer_directory,
            self._record(),
            optimizer_tensors=self.updater.optimizer.state_tensors(),
            state=self.state,
        )
        prune_checkpoints(self.paths.checkpoints, self.config.train.keep_last, self.state.best_update)

    def _finish(self, reason: StopReason, log: MetricsLog | None) -> None:
        """The last checkpoint; before it, where the end was reached, a last validation."""
        if self.state.update == 0:
            return
        if reason is StopReason.FINISHED and self._validated_at_update != self.state.update:
            self._validate(log)
        self._save()
        if log is not None:
            draw_curves(self.paths)

    def _record(self) -> TrainingRecord:
        return TrainingRecord(
            source_language=self.config.data.source_language,
            target_language=self.config.data.target_language,
            corpora=records.corpus_records(self.data.report),
            update=self.state.update,
            epoch=self.state.epoch,
            source_tokens=self.state.source_tokens,
            target_tokens=self.state.target_tokens,
            seconds=round(self.state.seconds, 1),
            hardware=records.hardware(self.processes.device),
            processes=self.processes.world_size,
            parameters=sum(parameter.numel() for parameter in self.model.parameters()),
            validation=self.scores,
            config=self.config,
            packages=records.package_versions(),
        )

    def _progress_bar(self, show: bool) -> "tqdm[None]":
        train, state = self.config.train, self.state
        total, done, unit = train.max_updates, state.update, "update"
        if not train.max_updates:
            total, done, unit = round(train.max_seconds), int(state.seconds), "s"
        return tqdm(total=total, initial=done, unit=unit, disable=not show, mininterval=1)


class _Meter:
    """Means over the updates between two lines of the log."""

    def __init__(self) -> None:
        self._values: list[UpdateValues] = []
        self._tokens = 0
        self._since: float | None = None

    def add(self, values: UpdateValues, agreed: _Agreement) -> None:
        """Counts one update in."""
        if self._since is None:
            self._since = agreed.seconds
        self._values.append(values)
        self._tokens += agreed.target_tokens

    def take(self, seconds: float) -> dict[str, float]:
        """The means since the last call; starts anew."""
        elapsed = max(1e-9, seconds - (self._since or 0.0))
        line = {
            "loss": sum(values.loss for values in self._values) / self._tokens,
            "nll": sum(values.nll for values in self._values) / self._tokens,
            "gradient_norm": sum(values.gradient_norm for values in self._values) / len(self._values),
            "learning_rate": self._values[-1].learning_rate,
            "tokens_per_second": self._tokens / elapsed,
            "seconds": seconds,
        }
        self._values, self._tokens, self._since = [], 0, seconds
        return line


def train(config: Config, run_directory: Path, show_progress: bool = True) -> StopReason:
    """Trains `config` in `run_directory`, which `prepare` has filled; goes on from the newest checkpoint there.

    Under `torchrun` every process calls this. Raises what `PreparedData.open` and `Trainer` raise.
    """
    processes = join_processes()
    try:
        data = PreparedData.open(run_directory)
        return Trainer(config, run_directory, data, processes).run(show_progress and processes.is_first)
    finally:
        processes.close()
