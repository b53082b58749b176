"""The daemon that serves local GGUF language models over HTTP; see docs/architecture.md."""
