"""Parallel text in, a checkpoint out: data, model, trainer and evaluation of Dragoman."""
