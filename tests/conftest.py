"""Settings of the whole suite: drawn tests draw the same examples every time, and none fails for being slow."""

from hypothesis import settings

settings.register_profile("dragoman", derandomize=True, deadline=None)
settings.load_profile("dragoman")
