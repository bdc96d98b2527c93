"""Helpers of the PyTorch side: importing torch, random weights, array layouts, and outputs of inner modules."""

import numpy as np


def torch():
    """Returns the module torch, with gradients off. Raises ModuleNotFoundError if it is not installed."""
    try:
        import torch
    except ModuleNotFoundError:
        raise ModuleNotFoundError("the references need PyTorch: pip install 'learn-to-guide[parity]'") from None
    torch.set_grad_enabled(False)
    _mend_torchvision(torch)
    return torch


def _mend_torchvision(torch) -> None:
    """Defines two operators that torchvision, which diffusers imports, needs if it was built for another torch."""
    try:
        import torchvision  # noqa: F401
    except ModuleNotFoundError:
        return
    except RuntimeError:
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)  # torch removes the definitions when the library is deleted


_kept = []


def randomize(module, seed: int) -> None:
    """Draws all parameters: matrices and kernels that preserve the variance, gains near one, small biases.

    They are rounded to bfloat16, which halves the compressed files.
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
    """Returns the parameters and buffers of a module by name, as views of its memory."""
    return {name: tensor.numpy() for name, tensor in module.state_dict().items()}


def nhwc(tensor) -> np.ndarray:
    """Returns a tensor [batch, C, H, W] as a numpy array [batch, H, W, C]."""
    return np.ascontiguousarray(tensor.permute(0, 2, 3, 1).numpy())


def nchw(array: np.ndarray):
    """Returns an array [batch, H, W, C] as a tensor [batch, C, H, W]."""
    return torch().from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 1)))


class Watch:
    """Records the outputs of inner modules: `Watch({name: module})`, then `.seen`, a dict of tensors by name."""

    def __init__(self, modules):
        self.seen = {}
        for name, module in modules.items():
            module.register_forward_hook(lambda _module, _args, out, name=name: self.seen.update({name: out}))
