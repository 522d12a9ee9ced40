"""Value types, errors, clock and ids: what every layer speaks, and nothing that does I/O."""
