"""Sampling at the speed that a static schedule allows: compiled pieces, captured evaluations."""
