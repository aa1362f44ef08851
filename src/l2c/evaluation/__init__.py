"""How close pictures are to their references."""
