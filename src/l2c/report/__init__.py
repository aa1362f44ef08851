"""Figures and pages from plain data; nothing here runs a model."""
