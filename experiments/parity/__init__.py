"""Our networks against the modules they were ported from, at random weights."""
