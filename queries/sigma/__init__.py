"""Sigma rules as detections: read, mapped onto the event tables, turned into SQL."""
