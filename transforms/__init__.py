"""Raw records to events to derived tables. Knows no storage."""
