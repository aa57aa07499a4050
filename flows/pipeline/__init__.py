"""The plain functions that do the work; the command line and the Prefect flows call the same ones."""
