"""What the commands do, one module for each group. Imported when one runs, so they may import what they like."""
