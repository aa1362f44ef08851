"""Schedules: masks, forecasts, costs and contracts, and their files."""
