"""How much memory may a model take, before it is opened?"""

import numpy as np

from service.bundle import Bundle
from service.config import EngineConfig
from service.graph_signature import SPARE_POSITIONS
from service.kv_cache import round_up

_WEIGHT_COPIES = 2
"""Of each opened graph: as the runtime reads it, and as it lays it out for its kernels."""
_FLOAT_BYTES = 4


def model_bytes(bundle: Bundle, config: EngineConfig, *, num_workers: int, num_threads: int) -> int:
    """What a model takes when every row is in use and as long as can be: weights, keys and values, the buffers of a
    step, and the most that each engine's encoder computes. The tokenizer and other small things are not reckoned.

    Args:
        bundle: what would be opened.
        config: of its engines.
        num_workers: engines; those of one thread share their graphs.
        num_threads: of each.
    """
    shape, rows = bundle.architecture, config.max_rows
    most = shape.max_positions
    num_source = round_up(min(config.max_source_tokens or most, most)) + SPARE_POSITIONS
    num_target = round_up(min(config.max_target_tokens or most, most))
    weights = sum(len(content) for name, content in bundle.files.items() if ".onnx" in name)
    num_copies = _WEIGHT_COPIES * (1 if num_threads == 1 else num_workers)
    key_value_bytes = 2 * shape.decoder_layers * shape.heads * shape.head_width
    key_value_bytes *= np.dtype(bundle.signature.cache_dtype).itemsize
    slab = rows * (num_source + num_target) * key_value_bytes
    attention = rows * shape.heads * SPARE_POSITIONS * num_source * _FLOAT_BYTES
    log_probabilities = rows * shape.target_vocabulary * _FLOAT_BYTES
    encoded = num_workers * max(config.max_encode_tokens, num_source) * (shape.feed_forward + 4 * shape.width)
    return weights * num_copies + slab + attention + log_probabilities + encoded * _FLOAT_BYTES
