"""The annealing guidance scale: CFG++ whose lambda a network computes from the time and the gap of the branches."""

from jax.tree_util import Partial

from guidance.rules.gains import eps_gap
from guidance.rules.plus import cfg_plus_plus
from guidance.rules.stacking import stack, stateless
from guidance.types import Rule


def annealed(network) -> Rule:
    """Builds the rule x0 = D_u + w (D_c - D_u) and eps = eps_u, where w = network(t, |eps_c - eps_u|, lambda).

    t, w, lambda and |eps_c - eps_u| = alpha |D_c - D_u|/sigma are [batch]. lambda in [0, 1] is the value of the weight
    (the paper samples with 0.4). The network is trained by `learning.annealing.annealing_loss`: at lambda = 0 for an
    accurate guided noise, at lambda = 1 for branches that agree after the step. A constant network gives CFG++.
    network: a function, or a Partial such as `weights.annealing(net, params)`, whose leaves the rule takes over. Costs
    2 evaluations on every step.
    Source: Navigating with Annealing Guidance Scale in Diffusion Space, arXiv 2506.24108.
    """
    network = network if isinstance(network, Partial) else Partial(network)
    return stack(stateless(_scale, network, neutral=False), cfg_plus_plus())


def _scale(network, branches, at):
    return branches._replace(omega=network(at.t, eps_gap(branches, at), branches.omega))
