"""The annealing guidance scale: CFG++ whose lambda a network finds from the time and the gap between the branches."""

from jax.tree_util import Partial

from guidance.rules.gains import eps_gap
from guidance.rules.plus import cfg_plus_plus
from guidance.rules.stacking import stack, stateless
from guidance.types import Rule


def annealed(network) -> Rule:
    """x0 = D_u + w (D_c - D_u) and eps = eps_u, where w = network(t, |eps_c - eps_u|, lambda), all [batch].

    lambda in [0, 1] is the value of the weight (the paper samples with 0.4): 0 asks for a faithful prediction, 1 for
    branches that agree afterwards. A constant network is CFG++ with that constant. network: a function, or a Partial
    such as `weights.annealing(net, params)`, whose leaves become the stage's. The size of the gap in eps is
    alpha |D_c - D_u|/sigma. Two evaluations, always. Its training loss is `learning_annealing.annealing_loss`.
    Source: Navigating with Annealing Guidance Scale in Diffusion Space, arXiv 2506.24108.
    """
    network = network if isinstance(network, Partial) else Partial(network)
    return stack(stateless(_scale, network, neutral=False), cfg_plus_plus())


def _scale(network, branches, at):
    return branches._replace(omega=network(at.t, eps_gap(branches, at), branches.omega))
