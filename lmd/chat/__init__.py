"""The text formats of model families, both directions. Pure: no I/O, no HTTP, no model."""
