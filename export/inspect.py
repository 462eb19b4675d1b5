"""A bundle described for people: what it is, what it weighs, what it was measured at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import onnx

from service.bundle import Bundle
from service.graph_signature import TensorSignature
from service.manifest import Manifest

NUM_LARGEST = 8
"""Weights listed for each graph."""


def describe(bundle: Bundle) -> str:
    """The whole description, lines ended by newlines."""
    parts = [_summary(bundle), _files(bundle.manifest)]
    paths = (bundle.encoder_path, bundle.decoder_path, bundle.candidates_path, bundle.greedy_path)
    parts += [_graph(path) for path in paths if path is not None]
    parts += [_signature(bundle), _figures(bundle.manifest), _origin(bundle.manifest)]
    return "\n".join(parts)


def _table(rows: Sequence[Sequence[object]], indent: str = "  ") -> str:
    texts = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*texts, strict=True)] if texts else []
    lines = [
        indent + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in texts
    ]
    return "".join(f"{line}\n" for line in lines)


def _summary(bundle: Bundle) -> str:
    manifest, shape = bundle.manifest, bundle.architecture
    recipe = manifest.recipe
    return (
        f"{manifest.name}: {manifest.source_language} to {manifest.target_language}, {manifest.precision}\n"
        + _table(
            [
                ("digest", bundle.digest),
                ("format version", manifest.format_version),
                (
                    "architecture",
                    f"width {shape.width}, {shape.heads} heads, feed-forward {shape.feed_forward}, "
                    f"{shape.encoder_layers} encoder and {shape.decoder_layers} decoder layers",
                ),
                ("vocabulary", f"{shape.source_vocabulary} source, {shape.target_vocabulary} target rows"),
                ("positions", f"at most {shape.max_positions}"),
                ("alignment", f"decoder layer {manifest.alignment_layer}, 0 being the first"),
                (
                    "decoding",
                    ", ".join(f"{name} {value}" for name, value in manifest.decoding.given.items())
                    or "as the service's",
                ),
                ("recipe", f"{recipe.operator}, {recipe.bits} bits"),
                ("activations", recipe.activations),
                ("embedding", recipe.embedding),
                ("opset", recipe.opset),
            ]
        )
    )


def _files(manifest: Manifest) -> str:
    rows = [(name, f"{record.num_bytes:,} bytes") for name, record in manifest.files.items()]
    total = sum(record.num_bytes for record in manifest.files.values())
    return "files\n" + _table([*rows, ("together", f"{total:,} bytes")])


def _graph(path: Path) -> str:
    """Operators with their number, and weights with their size."""
    model = onnx.load(path, load_external_data=False)
    operators = Counter(f"{node.domain}.{node.op_type}".lstrip(".") for node in model.graph.node)
    users: dict[str, list[str]] = {}
    for node in model.graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node.op_type)
    weights = sorted(model.graph.initializer, key=_num_bytes, reverse=True)
    by_operator: Counter[str] = Counter()
    for tensor in weights:
        by_operator["+".join(sorted(set(users.get(tensor.name, ["unused"]))))] += _num_bytes(tensor)
    text = f"{path.name}: {len(model.graph.node)} nodes\n"
    text += _table([(count, name) for name, count in operators.most_common()])
    text += "  bytes of weights by the operators that read them\n"
    text += _table([(f"{size:,}", name) for name, size in by_operator.most_common()], indent="    ")
    text += f"  the {min(NUM_LARGEST, len(weights))} largest weights\n"
    rows = [
        (
            f"{_num_bytes(tensor):,}",
            onnx.TensorProto.DataType.Name(tensor.data_type).lower(),
            list(tensor.dims),
            tensor.name,
        )
        for tensor in weights[:NUM_LARGEST]
    ]
    return text + _table(rows, indent="    ")


def _num_bytes(tensor: onnx.TensorProto) -> int:
    size = int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize)
    for dimension in tensor.dims:
        size *= dimension
    return size


def _signature(bundle: Bundle) -> str:
    def rows(tensors: Sequence[TensorSignature]) -> str:
        return _table(
            [(each.name, each.dtype, "[" + ",".join(map(str, each.axes)) + "]") for each in tensors], indent="    "
        )

    signature = bundle.signature
    return (
        "signature\n"
        f"  encoder inputs\n{rows(signature.encoder_inputs)}  encoder outputs\n{rows(signature.encoder_outputs)}"
        f"  decoder inputs\n{rows(signature.decoder_inputs)}  decoder outputs\n{rows(signature.decoder_outputs)}"
        f"  candidates' inputs\n{rows(signature.candidates_inputs)}"
        f"  candidates' outputs\n{rows(signature.candidates_outputs)}"
    )


def _figures(manifest: Manifest) -> str:
    text = "figures\n"
    parity, same = manifest.parity, manifest.same_bytes
    if parity is not None:
        rows = [
            (
                f"{name} beside PyTorch",
                f"largest difference {part.max_difference:.2g} of the largest value (tolerance {part.tolerance:g})",
            )
            for name, part in (("encoder", parity.encoder), ("decoder", parity.decoder))
        ]
        for name, tokens in ((manifest.precision, parity.tokens), ("fp32", parity.fp32_tokens)):
            ties = f", {len(tokens.ties)} ties" if tokens.ties else ""
            rows.append(
                (f"tokens of {name}", f"{tokens.num_equal} of {tokens.num_sentences} sentences equal PyTorch's{ties}")
            )
        text += _table(rows)
    if same is not None:
        text += f"  same bytes: {same.num_different} of {same.num_sentences} sentences differ; {'; '.join(same.ways)}\n"
    for each in manifest.quality:
        text += (
            f"  {each.dataset}: BLEU {each.score.bleu:.2f} (fp32 {each.fp32.bleu:.2f}), "
            f"chrF {each.score.chrf:.2f} (fp32 {each.fp32.chrf:.2f}), {each.num_sentences} sentences\n"
        )
    if parity is None and same is None and not manifest.quality:
        text += "  none: this bundle was not made to be published\n"
    return text


def _origin(manifest: Manifest) -> str:
    made = manifest.created_by
    rows = [
        ("licence", manifest.licence or "not stated"),
        *(("attribution", line) for line in manifest.attributions),
        ("made by", f"python {made.python}, torch {made.torch}, onnx {made.onnx}, onnxruntime {made.onnxruntime}"),
        ("verified on", made.processor),
    ]
    record = manifest.training_record
    for name in ("update", "target_tokens", "seconds", "hardware", "parameters"):
        if name in record:
            rows.append((f"training: {name}", str(record[name])))
    return "origin\n" + _table(rows)
