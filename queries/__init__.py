"""Analyst views, detections, the hunt engine, findings and cases."""
