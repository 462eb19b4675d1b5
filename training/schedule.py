"""The learning rate as a function of the update and of how much of the run is done."""

from training.config import TrainConfig


def progress(train: TrainConfig, update: int, seconds: float) -> float:
    """Share of the run that is done, 0 to 1: of its updates or of its seconds, whichever is nearer to the end."""
    shares = [0.0]
    if train.max_updates:
        shares.append(update / train.max_updates)
    if train.max_seconds:
        shares.append(seconds / train.max_seconds)
    return min(1.0, max(shares))


def learning_rate(train: TrainConfig, update: int, done: float) -> float:
    """Learning rate of update number `update`, counted from 1, when the share `done` of the run lies behind.

    Linear warm-up, then falling with the inverse square root of the update (section 5.3, scaled so that its peak is
    `peak_learning_rate`) or constant; over the last share `cooldown` of the run a line to zero multiplies it.
    """
    warmup = max(1, train.warmup_updates)
    factor = min(1.0, update / warmup)
    if train.schedule == "inverse_sqrt" and update > warmup:
        factor = (warmup / update) ** 0.5
    if train.cooldown and done > 1.0 - train.cooldown:
        factor *= (1.0 - done) / train.cooldown
    return train.peak_learning_rate * factor
