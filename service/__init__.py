"""The translation service: everything between a gRPC request and the exported graphs. Never imports torch."""
