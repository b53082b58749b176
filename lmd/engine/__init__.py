"""Compute, in the worker process only: continuous batching on llama.cpp."""
