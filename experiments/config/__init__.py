"""From the command line to a checked, locked config, before anything heavy is imported."""

from experiments.config.command_line import Request, parse, usage
from experiments.config.loading import RESUMABLE, ConfigError, flat, load, nested, stored

__all__ = ["RESUMABLE", "ConfigError", "Request", "flat", "load", "nested", "parse", "stored", "usage"]
