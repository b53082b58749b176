"""The daemon that serves local GGUF language models over HTTP; see docs/architecture.md."""

__version__ = "0.1.0"
