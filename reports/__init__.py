"""Findings to reports and exports."""
