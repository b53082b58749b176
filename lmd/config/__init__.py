"""What the operator wrote: settings and presets."""
