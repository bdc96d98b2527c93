"""The inception score: how certain a classifier is of each sample, and how varied its predictions are."""

import numpy as np


def inception_score(probabilities: np.ndarray, split_size: int = 5000) -> tuple[float, float]:
    """Returns the mean and population standard deviation over splits of exp(mean_i KL(p(y|x_i) || p(y))), in float64.

    probabilities [n, classes]: rows p(y|x_i). They are split in order into `split_size` rows, as in the evaluation
    suite, and the last split may be shorter. The score grows with the size of a split; it lies between 1 and the
    number of classes. Raises ValueError for another shape or no rows. Source: Improved Techniques for Training GANs,
    arXiv 1606.03498, section 4; split convention of the ADM evaluation suite, arXiv 2105.05233.
    """
    probabilities = np.asarray(probabilities, np.float64)
    if probabilities.ndim != 2 or len(probabilities) < 1:
        raise ValueError(f"probabilities must have shape [n, classes] with n >= 1, got {probabilities.shape}")
    scores = [
        _exponential_information(probabilities[start : start + split_size])
        for start in range(0, len(probabilities), split_size)
    ]
    return float(np.mean(scores)), float(np.std(scores))


def _exponential_information(conditional: np.ndarray) -> float:
    marginal = np.broadcast_to(conditional.mean(axis=0, keepdims=True), conditional.shape)
    present = conditional > 0
    ratio = np.divide(conditional, marginal, out=np.ones_like(conditional), where=present)
    return float(np.exp((conditional * np.log(ratio)).sum(axis=1).mean()))
