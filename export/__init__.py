"""From a checkpoint to a verified bundle: two ONNX graphs, the tokenizer, and a manifest that says what they are."""
