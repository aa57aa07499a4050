"""One file per log format, found because it is here; each exposes FORMAT."""
