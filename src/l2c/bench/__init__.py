"""Measuring time and cost."""
