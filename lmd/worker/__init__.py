"""The process boundary: one child process per instance."""
