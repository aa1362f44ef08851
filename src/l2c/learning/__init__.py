"""Learning what to compute and how to forecast the rest."""
