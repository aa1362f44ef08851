"""Learning what to compute and how to stand in for the rest."""
