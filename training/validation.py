"""Validation during training: the loss on held-out pairs, and BLEU and chrF of sentences really translated."""

import torch

from training.config import Config
from training.data import PreparedData
from training.evaluate import score, translate
from training.loss import smoothed_cross_entropy
from training.model import Transformer
from training.record import ValidationScore


def validation_loss(model: Transformer, data: PreparedData, name: str, config: Config, device: torch.device) -> float:
    """Mean negative log-likelihood of a target token of held-out set `name`, in nats, without smoothing."""
    dtype = torch.bfloat16 if config.train.precision == "bf16" else torch.float32
    total, positions = 0.0, 0
    for batch in data.validation_batches(name, config.train.batch_tokens):
        with torch.autocast(device.type, torch.bfloat16, enabled=config.train.precision == "bf16"):
            hidden = model(
                batch.source_ids.to(device), batch.source_lengths.to(device), batch.target_input_ids.to(device)
            )
        _, nll, count = smoothed_cross_entropy(
            hidden,
            model.projection.weight,
            batch.target_output_ids.to(device),
            smoothing=config.train.label_smoothing,
            dtype=dtype,
        )
        total += nll.item()
        positions += count
    return total / max(1, positions)


def validate(
    model: Transformer, data: PreparedData, config: Config, update: int, device: torch.device
) -> list[ValidationScore]:
    """Scores every held-out set, the deciding one first. Leaves the model in the mode it was in."""
    was_training = model.training
    model.eval()
    scores = []
    with torch.no_grad():
        for name in data.validation_names:
            loss = validation_loss(model, data, name, config, device)
            pairs = data.validation_texts(name)[: config.train.validation_sentences]
            bleu = chrf = 0.0
            if pairs:
                hypotheses = translate(model, data.tokenizer, [pair.source for pair in pairs])
                references = [pair.target for pair in pairs]
                result = score(
                    hypotheses, references, config.data.target_language, is_tokenized=config.evaluate.tokenized
                )
                bleu, chrf = result.bleu, result.chrf
            scores.append(
                ValidationScore(name=name, update=update, loss=loss, sentences=len(pairs), bleu=bleu, chrf=chrf)
            )
    model.train(was_training)
    return scores


def deciding_score(scores: list[ValidationScore]) -> float:
    """What makes one checkpoint better than another: BLEU of the first held-out set, or its loss negated."""
    first = scores[0]
    return first.bleu if first.sentences else -first.loss
