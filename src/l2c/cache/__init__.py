"""Schedules, predictors, and the cached forward."""
