"""The training loop: batches in, checkpoints out; resumable at any update, bit for bit.

What an update does depends only on the weights, the optimizer's state, the update's number and the data's order, all of
which a checkpoint holds or the seed gives: dropout is seeded anew for each update and process. So a run that is cut
and resumed makes the very updates it would have made (on the same hardware, threads and number of processes; a run
ended by `max_seconds` takes its learning rate from the clock and repeats itself only up to that).
"""

import enum
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from types import FrameType

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from training import record as records
from training.checkpoint import (
    TrainerState,
    checkpoint_name,
    list_checkpoints,
    load_trainer_state,
    load_weights,
    prune_checkpoints,
    save_checkpoint,
)
from training.config import Config, TrainConfig
from training.data import Batch, PreparedData
from training.distributed import Processes, join_processes
from training.loss import smoothed_cross_entropy
from training.model import Transformer
from training.optimizer import make_optimizer
from training.record import TrainingRecord, ValidationScore
from training.run_files import MetricsLog, RunPaths, draw_curves, rewind_metrics, save_config
from training.schedule import learning_rate, progress
from training.validation import deciding_score, validate


class StopReason(enum.Enum):
    """Why training ended."""

    FINISHED = 1
    """The updates or seconds of the configuration are used up."""
    EARLY = 2
    """`patience` validations brought nothing better."""
    INTERRUPTED = 3
    """Ctrl-C or SIGTERM; the same command goes on from here."""


class TrainingDiverged(ArithmeticError):
    """Loss or gradient is no longer a finite number."""

    def __init__(self, update: int, loss: float, gradient_norm: float, last_checkpoint: Path | None) -> None:
        kept = f"The last checkpoint, {last_checkpoint}, is from before." if last_checkpoint else "No checkpoint yet."
        super().__init__(
            f"Loss and gradient must be finite, but at update {update} the loss is {loss:g} and the gradient's norm "
            f"{gradient_norm:g}. {kept} Try a lower `train.peak_learning_rate`, a longer `train.warmup_updates`, a "
            f"smaller `train.clip_norm`, `train.precision` = \"fp32\", or look for broken pairs in the data."
        )


@dataclass(frozen=True, kw_only=True)
class _Position:
    """A batch and where the next one stands."""

    batch: Batch
    epoch: int
    next_batch: int


class _StopSignal:
    """Turns Ctrl-C and SIGTERM into a flag while it is entered; a second Ctrl-C interrupts at once."""

    def __init__(self) -> None:
        self.is_set = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "_StopSignal":
        if threading.current_thread() is threading.main_thread():  # Python allows handlers there only
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.is_set and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.is_set = True


class Trainer:
    """One training run in one run directory."""

    def __init__(self, config: Config, run_directory: Path, data: PreparedData, processes: Processes) -> None:
        """Builds model and optimizer and takes up the newest checkpoint, where there is one.

        Raises:
            ConfigError: if the model cannot be built.
            CheckpointError, ValueError: if the newest checkpoint does not belong to this configuration.
        """
        self.config = config
        self.paths = RunPaths(directory=run_directory)
        self.data = data
        self.processes = processes
        shape = replace(
            config.model, source_vocab_size=data.source_vocab_size, target_vocab_size=data.target_vocab_size
        )
        self.config = replace(config, model=shape)
        if config.train.threads:
            torch.set_num_threads(config.train.threads)
        torch.manual_seed(config.train.seed)
        self.model = Transformer(shape).to(processes.device)
        self.optimizer = make_optimizer(self.model, config.train)
        self.state = TrainerState()
        self.scores: tuple[ValidationScore, ...] = ()
        self._resume()
        self._started_at = time.monotonic() - self.state.seconds
        self._last_checkpoint_seconds = self._last_validation_seconds = self.state.seconds
        self._network = self._wrap()
        self._stop_requested: StopReason | None = None

    @property
    def train_config(self) -> TrainConfig:
        """Section `[train]`."""
        return self.config.train

    def _resume(self) -> None:
        checkpoints = list_checkpoints(self.paths.checkpoints)
        if not checkpoints:
            return
        tensors, optimizer_tensors, self.state, record = load_trainer_state(checkpoints[-1])
        load_weights(self.model, tensors, checkpoints[-1])
        self.optimizer.load_state_tensors(optimizer_tensors)
        self.scores = record.validation

    def _wrap(self) -> nn.Module:
        network: nn.Module = self.model
        if self.processes.world_size > 1:
            network = DistributedDataParallel(network)
        if self.train_config.compile:
            network = torch.compile(network, dynamic=True)  # type: ignore[assignment]
        return network

    def run(self, show_progress: bool = True) -> StopReason:
        """Trains until the configuration's end, early stopping or a signal; the last state is saved in each case.

        Raises TrainingDiverged when loss or gradient stop being finite.
        """
        if self.processes.is_first:
            save_config(self.paths, self.config)
            rewind_metrics(self.paths, self.state.update)
        with _StopSignal() as stop_signal:
            if not self.processes.is_first:
                return self._loop(stop_signal, None, None)
            with MetricsLog(self.paths) as log, self._progress_bar(show_progress) as bar:
                return self._loop(stop_signal, log, bar)

    def _loop(self, stop_signal: _StopSignal, log: MetricsLog | None, bar: "tqdm[None] | None") -> StopReason:
        train = self.train_config
        meter = _Meter()
        positions = self._batches()
        while True:
            group = [next(positions) for _ in range(train.accumulation)]
            if stop_signal.is_set:
                self._stop_requested = StopReason.INTERRUPTED
            agreed = self._agree(group)
            if agreed.stop is not None or self._done(agreed.seconds) >= 1.0:
                reason = agreed.stop or StopReason.FINISHED
                self._finish(reason, log)
                return reason
            values = self._update([position.batch for position in group], agreed)
            self.state = replace(
                self.state,
                update=self.state.update + 1,
                epoch=group[-1].epoch,
                next_batch=group[-1].next_batch,
                source_tokens=self.state.source_tokens + agreed.source_tokens,
                target_tokens=self.state.target_tokens + agreed.target_tokens,
                seconds=agreed.seconds,
            )
            meter.add(values, agreed)
            if log is not None and self.state.update % train.log_every_updates == 0:
                line = meter.take(agreed.seconds)
                log.write("train", self.state.update, {**line, "epoch": self.state.epoch})
                if bar is not None:
                    bar.set_postfix_str(
                        f"nll {line['nll']:.3f}, {line['tokens_per_second']:,.0f} tok/s, lr {line['learning_rate']:.2e}"
                    )
            if bar is not None:
                _advance(bar, self.state, train)
            self._after_update(log)

    def _batches(self) -> Iterator[_Position]:
        """Batches from where the run stands, epoch after epoch, without end."""
        epoch, first = self.state.epoch, self.state.next_batch
        while True:
            number = first
            batches = self.data.train_batches(
                epoch,
                self.train_config.seed,
                self.train_config.batch_tokens,
                self.processes.rank,
                self.processes.world_size,
                start_batch=first,
            )
            for batch in batches:
                number += 1
                yield _Position(batch=batch, epoch=epoch, next_batch=number)
            if number == 0:
                raise ValueError(
                    f"An epoch must hold at least one batch for each of {self.processes.world_size} processes, "
                    f"but holds none: give more data or a smaller `train.batch_tokens`."
                )
            epoch, first = epoch + 1, 0

    def _agree(self, group: list[_Position]) -> "_Agreed":
        """What all processes must do alike in the coming update: token counts, the clock, and whether to stop."""
        target = sum(position.batch.num_target_tokens for position in group)
        source = sum(int(position.batch.source_lengths.sum()) for position in group)
        is_first = self.processes.is_first
        own_stop = self._stop_requested
        stops = [float(own_stop is reason) for reason in StopReason]
        seconds = time.monotonic() - self._started_at if is_first else 0.0
        total_target, total_source, agreed_seconds, *agreed_stops = self.processes.sum([target, source, seconds, *stops])
        stop = next((reason for reason, votes in zip(StopReason, agreed_stops, strict=True) if votes), None)
        return _Agreed(
            target_tokens=int(total_target), source_tokens=int(total_source), seconds=agreed_seconds, stop=stop
        )

    def _done(self, seconds: float) -> float:
        return progress(self.train_config, self.state.update, seconds)

    def _update(self, batches: list[Batch], agreed: "_Agreed") -> "_UpdateValues":
        """One step of the optimizer over `batches`: the gradient of the mean loss of all target tokens anywhere."""
        train = self.train_config
        number = self.state.update + 1
        torch.manual_seed(_update_seed(train.seed, number, self.processes.rank))
        self.model.train()
        dtype = torch.bfloat16 if train.precision == "bf16" else torch.float32
        device = self.processes.device
        loss_sum = torch.zeros((), device=device)
        nll_sum = torch.zeros((), device=device)
        for index, batch in enumerate(batches):
            is_last = index == len(batches) - 1
            with self._without_sync(is_last), attention_backend(device):
                with torch.autocast(device.type, torch.bfloat16, enabled=train.precision == "bf16"):
                    hidden = self._network(
                        batch.source_ids.to(device), batch.source_lengths.to(device), batch.target_input_ids.to(device)
                    )  # [B,T,D]
                loss, nll, _ = smoothed_cross_entropy(
                    hidden, self.model.projection.weight, batch.target_output_ids.to(device), train.label_smoothing, dtype
                )
                # DistributedDataParallel takes the mean over processes; times their number it is the sum.
                (loss * (self.processes.world_size / agreed.target_tokens)).backward()  # type: ignore[no-untyped-call]
            loss_sum += loss.detach()
            nll_sum += nll
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), train.clip_norm or float("inf"))
        total_loss, total_nll = self.processes.sum([loss_sum.item(), nll_sum.item()])
        if not (norm.isfinite() and total_loss < float("inf")):
            checkpoints = list_checkpoints(self.paths.checkpoints)
            mean = total_loss / agreed.target_tokens
            raise TrainingDiverged(number, mean, norm.item(), checkpoints[-1] if checkpoints else None)
        rate = learning_rate(train, number, self._done(agreed.seconds))
        self.optimizer.step(rate)
        return _UpdateValues(loss=total_loss, nll=total_nll, gradient_norm=norm.item(), learning_rate=rate)

    def _without_sync(self, is_last: bool) -> AbstractContextManager[object]:
        """Processes exchange gradients with the last batch of an update only."""
        if isinstance(self._network, DistributedDataParallel) and not is_last:
            no_sync: AbstractContextManager[object] = self._network.no_sync()
            return no_sync
        return nullcontext()

    def _after_update(self, log: MetricsLog | None) -> None:
        """Validates and saves when it is time. Every process decides alike, from the agreed clock."""
        train, state = self.train_config, self.state
        if _is_due(state, train.validate_every_updates, train.validate_every_seconds, self._last_validation_seconds):
            self._validate(log)
        if _is_due(state, train.checkpoint_every_updates, train.checkpoint_every_seconds, self._last_checkpoint_seconds):
            self._save()

    def _validate(self, log: MetricsLog | None) -> None:
        self._last_validation_seconds = self.state.seconds
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
            if self.train_config.patience and self.state.validations_without_gain >= self.train_config.patience:
                self._stop_requested = StopReason.EARLY
            if log is not None:
                values = {}
                for entry in scores:
                    values[f"{entry.name}/loss"] = entry.loss
                    if entry.sentences:
                        values |= {f"{entry.name}/bleu": entry.bleu, f"{entry.name}/chrf": entry.chrf}
                log.write("validation", self.state.update, {**values, "seconds": self.state.seconds})
                draw_curves(self.paths)
                tqdm.write(f"update {self.state.update}: " + ", ".join(f"{k} {v:.3f}" for k, v in values.items()))
        self.processes.wait()

    def _save(self) -> None:
        """Writes the checkpoint of the present update; the first process does."""
        self._last_checkpoint_seconds = self.state.seconds
        if not self.processes.is_first:
            return
        directory = self.paths.checkpoints / checkpoint_name(self.state.update)
        save_checkpoint(
            directory,
            self.model,
            self.data.tokenizer_directory,
            self._record(),
            self.optimizer.state_tensors(),
            self.state,
        )
        prune_checkpoints(self.paths.checkpoints, self.train_config.keep_last, self.state.best_update)

    def _finish(self, reason: StopReason, log: MetricsLog | None) -> None:
        """A last validation where training is over, and the last checkpoint."""
        if reason is StopReason.FINISHED and self.state.update > 0:
            self._validate(log)
        if self.state.update > 0:
            self._save()
        if log is not None and self.paths.metrics.stat().st_size:
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
        train = self.train_config
        if train.max_updates:
            return tqdm(total=train.max_updates, initial=self.state.update, unit="update", disable=not show, mininterval=1)
        total, done = round(train.max_seconds), round(self.state.seconds)
        return tqdm(total=total, initial=done, unit="s", disable=not show, mininterval=1)


@dataclass(frozen=True, kw_only=True)
class _Agreed:
    """What all processes know alike about an update."""

    target_tokens: int
    source_tokens: int
    seconds: float
    stop: StopReason | None


@dataclass(frozen=True, kw_only=True)
class _UpdateValues:
    """What an update showed; losses are sums over target tokens."""

    loss: float
    nll: float
    gradient_norm: float
    learning_rate: float


class _Meter:
    """Means between two lines of the log."""

    def __init__(self) -> None:
        self._values: list[_UpdateValues] = []
        self._tokens = 0
        self._since: float | None = None

    def add(self, values: _UpdateValues, agreed: _Agreed) -> None:
        """Counts one update in."""
        if self._since is None:
            self._since = agreed.seconds
        self._values.append(values)
        self._tokens += agreed.target_tokens

    def take(self, seconds: float) -> dict[str, float]:
        """The means since the last call, and starts anew."""
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


def attention_backend(device: torch.device) -> AbstractContextManager[object]:
    """Which implementation `scaled_dot_product_attention` uses in training.

    On the CPU the written-out products: for sentences of 10 to 45 tokens the fused kernel's backward pass took 2 to 5
    times as long (bf16, 2 cores, and with it the whole update 1.5 times). Elsewhere PyTorch chooses.
    """
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


def _is_due(state: TrainerState, every_updates: int, every_seconds: float, last_seconds: float) -> bool:
    if every_updates and state.update % every_updates == 0:
        return True
    return bool(every_seconds) and state.seconds - last_seconds >= every_seconds


def _update_seed(seed: int, update: int, rank: int) -> int:
    """A seed for the dropout of one update on one process."""
    return ((seed * 1_000_003 + update) * 1_009 + rank) % (1 << 63)


def _advance(bar: "tqdm[None]", state: TrainerState, train: TrainConfig) -> None:
    bar.update((state.update if train.max_updates else int(state.seconds)) - bar.n)


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
