"""Guidance for diffusion models: rules, weights and samplers that compose, and weights that are learned.

`guidance.fit` learns a weight for a `guidance.Model` with the settings of a `guidance.Recipe`. `guidance.compare`
measures how good weights are. Everything else is in the modules: `from guidance import guides, rules, sampling,
weights`.

These four names are imported on first use, so that `import guidance` alone is fast and does not import JAX. Modules
that need no JAX, such as `guidance.ranges`, rely on that.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from guidance.comparing import compare
    from guidance.fitting import fit
    from guidance.learning import Model
    from guidance.learning.training import Recipe

__all__ = ["Model", "Recipe", "compare", "fit"]

_DOORS = {
    "Model": "guidance.learning",
    "Recipe": "guidance.learning.training",
    "compare": "guidance.comparing",
    "fit": "guidance.fitting",
}


def __getattr__(name: str) -> Any:
    if name not in _DOORS:
        raise AttributeError(f"module 'guidance' has no attribute {name!r}")
    return getattr(importlib.import_module(_DOORS[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_DOORS])
