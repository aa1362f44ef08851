"""Hosts: what runs the evaluations that schedules are for."""
