"""Frechet distances and their relatives between images on disk; `python -m experiments.fid --help`.

    python -m experiments.fid ref  --images TRAIN --out ref.npz --features inception --weights inception.npz
    python -m experiments.fid calc --images SAMPLES --ref ref.npz --features inception --weights inception.npz \\
                                   --metrics fid,sfid,kid,is,prdc

Images are a folder or the .npz of the ADM evaluation suite; see `images`. References are its .npz too; see
`references`. Feature networks, and how to bring another: see `networks`. The weights of Inception come as one .npz of
the arrays in pytorch-fid's file, by their names there; where torch is installed,

    python -c "import numpy, sys, torch; w = torch.load(sys.argv[1], weights_only=True); \\
               numpy.savez('inception.npz', **{k: v.numpy() for k, v in w.items()})" \\
           pt_inception-2015-12-05-6726825d.pth
"""


class BadInput(Exception):
    """What the user gave cannot be used; one line that names the file or the option and what is expected."""
