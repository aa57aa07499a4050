"""One file per detection, found because it is here."""
