"""From the command line to a checked, locked config, before anything heavy is imported."""

from experiments.config.loading import (
    NEW,
    RESUMABLE,
    USAGE,
    ConfigError,
    Known,
    Request,
    flat,
    load,
    nested,
    parse,
    stored,
    usage,
)

__all__ = [
    "NEW", "RESUMABLE", "USAGE", "ConfigError", "Known", "Request", "flat", "load", "nested", "parse", "stored",
    "usage",
]  # fmt: skip
