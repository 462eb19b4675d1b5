"""What a training run is told. Each section of the TOML file is a class here, each key a field with its meaning.

`training.config_file` reads and checks a file; nothing after that is a dict.
"""

from dataclasses import dataclass, field
from typing import Literal


class ConfigError(ValueError):
    """The configuration cannot be used; the message lists every problem, one a line."""

    def __init__(self, where: str, problems: list[str]) -> None:
        super().__init__(f"{where}: {len(problems)} problem(s)\n" + "\n".join(f"  - {problem}" for problem in problems))
        self.problems = problems


@dataclass(frozen=True, kw_only=True)
class CorpusConfig:
    """One source of sentence pairs: tab-separated files with both languages, or paired files line by line."""

    name: str
    """Short name, used in reports and in the training record."""
    tsv: tuple[str, ...] = ()
    """Tab-separated files (`.gz` too), relative to the data root. Empty when `source` and `target` are given."""
    source: tuple[str, ...] = ()
    """Paired files of the source language, one sentence a line, in the order of `target`."""
    target: tuple[str, ...] = ()
    """Paired files of the target language."""
    source_column: int = 1
    """Column of the source text in `tsv`, counted from 1."""
    target_column: int = 2
    """Column of the target text in `tsv`, counted from 1."""
    filter_column: int = 0
    """Column of `tsv` that must be one of `filter_values`, counted from 1; 0 keeps every line."""
    filter_values: tuple[str, ...] = ()
    """Values of `filter_column` that are kept."""
    weight: float = 1.0
    """How often each pair is seen in an epoch: the whole part repeats it, the fraction is drawn by seed."""
    licence: str = ""
    """SPDX expression or a sentence; copied into the training record."""
    attributions: tuple[str, ...] = ()
    """Lines of attribution that a model trained on this corpus must carry."""


@dataclass(frozen=True, kw_only=True)
class FilterConfig:
    """Which pairs are dropped before training; each rule reports how many it dropped."""

    min_characters: int = 1
    """Fewest characters on either side, surrounding white space not counted."""
    max_characters: int = 1000
    """Most characters on either side."""
    max_tokens: int = 256
    """Most tokens on either side (end of sentence not counted)."""
    max_character_ratio: float = 0.0
    """Largest ratio of the two lengths in characters, either way round; 0 turns the rule off."""
    max_token_ratio: float = 0.0
    """Largest ratio of the two lengths in tokens, either way round; 0 turns the rule off."""
    drop_copied_source: bool = True
    """Drop pairs whose target equals their source."""
    min_script_share: float = 0.0
    """Least share of letters in the language's own script (Han for zh), on each side; 0 turns the rule off."""
    drop_duplicates: bool = True
    """Drop pairs already seen in the same or an earlier corpus."""


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Corpora, filters and held-out sets."""

    source_language: str
    """BCP 47 code of the source language, as in `en`."""
    target_language: str
    """BCP 47 code of the target language, as in `zh`."""
    root: str = "."
    """Directory that the file names are relative to; `--data` replaces it."""
    corpora: tuple[CorpusConfig, ...] = ()
    """Sources of training pairs."""
    validation: tuple[CorpusConfig, ...] = ()
    """Held-out sets, validated on during training; the first one decides which checkpoint is best."""
    filters: FilterConfig = field(default_factory=FilterConfig)
    """Which training pairs are dropped. Held-out pairs are never filtered."""
    sort_chunk_pairs: int = 20_000
    """Pairs that are sorted by length together before they are cut into batches."""
    length_multiple: int = 1
    """Batches are padded to a multiple of this many positions."""


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """SentencePiece model(s) trained by `prepare`."""

    kind: Literal["unigram", "bpe", "whitespace"] = "unigram"
    """Kind of the model; `whitespace` takes text that is already cut into pieces and makes each piece a token."""
    vocab_size: int = 8000
    """Pieces of a model, special and reserved ones included."""
    joint: bool = True
    """One model for both languages; false trains one for each."""
    byte_fallback: bool = True
    """Characters outside the vocabulary become bytes, so that none is unknown."""
    character_coverage: float = 0.9995
    """Share of the characters seen in training that the vocabulary must hold."""
    num_placeholders: int = 10
    """Reserved symbols `<ph0>` … for text that must pass through untouched."""
    num_tags: int = 10
    """Reserved symbols `<tag0>` … for markup."""
    normalization: Literal["identity", "nmt_nfkc", "nfkc"] = "identity"
    """SentencePiece's rule; NFKC would turn full-width Chinese punctuation into ASCII."""
    max_training_sentences: int = 400_000
    """Sentences sampled to train the model."""


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Shape of the Transformer (Vaswani et al. 2017, table 3)."""

    width: int = 512
    """D: width of embeddings and layers (d_model)."""
    heads: int = 8
    """H: attention heads; width / heads is K."""
    feed_forward: int = 2048
    """F: inner width of the position-wise networks (d_ff)."""
    encoder_layers: int = 6
    """Layers of the encoder."""
    decoder_layers: int = 6
    """Layers of the decoder."""
    source_vocab_size: int = 0
    """Rows of the source embedding; 0 until `prepare` has trained the tokenizer."""
    target_vocab_size: int = 0
    """V: rows of the target embedding and of the output projection; 0 until `prepare` has trained the tokenizer."""
    shared_embeddings: bool = True
    """Source and target use one embedding (section 3.4); needs a joint vocabulary."""
    tied_projection: bool = True
    """The output projection uses the target embedding's weights (section 3.4)."""
    norm: Literal["pre", "post"] = "pre"
    """Layer norm before each sub-layer, or after it as in the paper."""
    dropout: float = 0.1
    """Probability of dropping a value of a sub-layer's output and of the embeddings (section 5.4)."""
    attention_dropout: float = 0.0
    """Probability of dropping an attention weight."""
    activation_dropout: float = 0.0
    """Probability of dropping a value inside the feed-forward network."""
    max_positions: int = 1024
    """Most positions of a source or a target."""


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """How the weights are found."""

    max_updates: int = 0
    """Updates after which training ends; 0 leaves it to `max_seconds`."""
    max_seconds: float = 0.0
    """Seconds of training, earlier parts of a resumed run included, after which it ends; 0: `max_updates` decides."""
    warmup_updates: int = 4000
    """Updates of linear warm-up (section 5.3)."""
    peak_learning_rate: float = 7e-4
    """Learning rate at the end of the warm-up."""
    schedule: Literal["inverse_sqrt", "constant"] = "inverse_sqrt"
    """Course of the learning rate after the warm-up."""
    cooldown: float = 0.0
    """Last share of the run over which the learning rate falls linearly to zero."""
    label_smoothing: float = 0.1
    """Share of the target's probability spread evenly over the vocabulary (section 5.4)."""
    batch_tokens: int = 4096
    """Padded positions of a batch, the longer side counted, on each process."""
    accumulation: int = 1
    """Batches added up for one update."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    optimizer: Literal["adamw", "muon"] = "adamw"
    """`muon` orthogonalises the updates of the layers' matrices and leaves the rest to AdamW."""
    muon_learning_rate_factor: float = 1.0
    """Learning rate of the matrices under `muon`, as a multiple of AdamW's."""
    beta1: float = 0.9
    """AdamW's first decay (and Muon's momentum is `muon_momentum`)."""
    beta2: float = 0.98
    """AdamW's second decay (section 5.3)."""
    muon_momentum: float = 0.95
    """Momentum of Muon."""
    weight_decay: float = 0.0
    """Decoupled weight decay of the matrices."""
    precision: Literal["bf16", "fp32"] = "fp32"
    """bf16 runs the products under autocast; weights and optimizer stay fp32."""
    compile: bool = False
    """Use `torch.compile`."""
    seed: int = 1
    """Seed of the initial weights, dropout and the order of the data."""
    threads: int = 0
    """CPU threads of PyTorch; 0 leaves its default."""
    checkpoint_every_updates: int = 0
    """Updates between checkpoints; 0 leaves it to `checkpoint_every_seconds`."""
    checkpoint_every_seconds: float = 600.0
    """Seconds between checkpoints; 0 turns it off."""
    validate_every_updates: int = 0
    """Updates between validations; 0 leaves it to `validate_every_seconds`."""
    validate_every_seconds: float = 600.0
    """Seconds between validations; 0 turns it off."""
    validation_sentences: int = 200
    """Sentences of each held-out set that are really translated at a validation; 0 scores by loss alone."""
    patience: int = 0
    """Validations without a better result after which training stops; 0 never stops early."""
    keep_last: int = 5
    """Newest checkpoints kept; the best is kept besides. 0 keeps all."""
    log_every_updates: int = 20
    """Updates between lines of `metrics.jsonl`."""
    average_last: int = 5
    """Newest checkpoints that `average` takes unless it is told otherwise."""


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """How held-out text is translated and scored."""

    test: tuple[CorpusConfig, ...] = ()
    """Test sets of `python -m training evaluate`."""
    beam_size: int = 1
    """Hypotheses kept at each step; 1 is greedy."""
    length_penalty: float = 0.6
    """α of Wu et al. 2016, equation 14; used when `beam_size` is more than 1."""
    max_length_factor: float = 2.0
    """A translation ends after this many tokens for each source token, …"""
    max_length_extra: int = 20
    """… plus this many."""
    batch_tokens: int = 4096
    """Padded source positions translated together."""
    tokenized: bool = False
    """Score on white-space tokens as they are (`tok:none`) after the BPE marks `@@ ` are joined."""


@dataclass(frozen=True, kw_only=True)
class Config:
    """A whole run."""

    name: str
    """Name of the run; its directory is `runs/NAME` unless the command line says otherwise."""
    data: DataConfig
    """Section `[data]`."""
    tokenizer: TokenizerConfig = field(default_factory=TokenizerConfig)
    """Section `[tokenizer]`."""
    model: ModelConfig = field(default_factory=ModelConfig)
    """Section `[model]`."""
    train: TrainConfig = field(default_factory=TrainConfig)
    """Section `[train]`."""
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    """Section `[evaluate]`."""


def check_model(model: ModelConfig) -> list[str]:
    """Everything wrong with a model's shape, one sentence each; empty when nothing is."""
    problems: list[str] = []
    for name in ("width", "heads", "feed_forward", "encoder_layers", "decoder_layers", "max_positions"):
        at_least(problems, f"model.{name}", getattr(model, name), 1)
    for name in ("source_vocab_size", "target_vocab_size"):
        at_least(problems, f"model.{name}", getattr(model, name), 0)
    if model.heads >= 1 and model.width % model.heads:
        problems.append(f"`model.width` must be a multiple of `model.heads`, but is {model.width} with {model.heads}.")
    if model.width % 2:
        problems.append(f"`model.width` must be even (sines and cosines in pairs), but is {model.width}.")
    for name in ("dropout", "attention_dropout", "activation_dropout"):
        between(problems, f"model.{name}", getattr(model, name), 0.0, 0.999)
    if model.shared_embeddings and model.source_vocab_size != model.target_vocab_size:
        problems.append(
            "`model.source_vocab_size` must equal `model.target_vocab_size` with `model.shared_embeddings`, "
            f"but is {model.source_vocab_size} beside {model.target_vocab_size}."
        )
    return problems


def at_least(problems: list[str], name: str, value: float, least: float) -> None:
    """Appends a problem unless `value` is `least` or more."""
    if not value >= least:
        problems.append(f"`{name}` must be at least {least}, but is {value}.")


def between(problems: list[str], name: str, value: float, least: float, most: float) -> None:
    """Appends a problem unless `value` lies between the two, both included."""
    if not least <= value <= most:
        problems.append(f"`{name}` must be between {least} and {most}, but is {value}.")
