"""What the references share: PyTorch beside whatever torchvision there is, random weights, layouts, inner outputs."""

import numpy as np


def torch():
    """PyTorch, with gradients off. Raises ModuleNotFoundError, in one line, where it is not installed."""
    try:
        import torch
    except ModuleNotFoundError:
        raise ModuleNotFoundError("the references need PyTorch: pip install 'learn-to-guide[parity]'") from None
    torch.set_grad_enabled(False)
    _mend_torchvision(torch)
    return torch


def _mend_torchvision(torch) -> None:
    """diffusers imports torchvision if it is there; built for another torch, it lacks two operators and fails."""
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError:
        return
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)  # its definitions go when it does


_kept = []


def randomize(module, seed: int) -> None:
    """Random parameters, none of them zero: matrices and kernels that keep the variance, gains near one, small biases.

    Rounded to bfloat16, which makes the files of numbers half as large, and no statement weaker.
    """
    th = torch()
    generator = th.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = th.randn(parameter.shape, generator=generator)
        if parameter.ndim > 1:
            noise = noise / parameter[0].numel() ** 0.5
        else:
            noise = 0.1 * noise + (("norm" in name) and name.endswith("weight"))
        parameter.copy_(noise.bfloat16().float())


def arrays_of(module) -> dict[str, np.ndarray]:
    """The state of a module by its own names, sharing memory with it."""
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def nhwc(tensor) -> np.ndarray:
    """[batch, C, H, W] -> a numpy array [batch, H, W, C]."""
    return np.ascontiguousarray(tensor.permute(0, 2, 3, 1).numpy())


def nchw(array: np.ndarray):
    """[batch, H, W, C] -> a tensor [batch, C, H, W]."""
    return torch().from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1)))


class Watch:
    """Collects what inner modules put out: `Watch({name: module})`, then `.seen`, a dict of tensors by name."""

    def __init__(self, modules):
        self.seen = {}
        for name, module in modules.items():
            module.register_forward_hook(lambda _module, _args, out, name=name: self.seen.update({name: out}))
