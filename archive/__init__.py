"""Where things are kept: evidence register and custody, Delta tables of Parquet, quarantine."""
