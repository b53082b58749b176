"""The effective settings as ``lmd --print-config`` shows them."""

from lmd.config.layers import LoadedSettings


def describe(loaded: LoadedSettings) -> str:
    """TOML with the origin of every key as a comment. Reads back to equal settings."""
    raise NotImplementedError
