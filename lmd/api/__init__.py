"""Every way in: the HTTP dialects and the control socket. Only this package knows HTTP."""
