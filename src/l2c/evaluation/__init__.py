"""How close pictures are to others, one by one and as sets."""
