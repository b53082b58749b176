"""The command line that steers lmd over its control socket. Imports nothing of lmd but lmd.protocol."""
