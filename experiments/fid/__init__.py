r"""Frechet distances and their relatives between images on disk; `python -m experiments.tools.fid --help`.

    python -m experiments.tools.fid ref  --images TRAIN --out ref.npz --features inception \
        --weights weights/inception.safetensors
    python -m experiments.tools.fid calc --images SAMPLES --ref ref.npz --features inception \
        --weights weights/inception.safetensors --metrics fid,sfid,kid,is,prdc
    python -m experiments.tools.fid gen  --config configs/sample.py --workdir runs/dit --config.sample.seeds=0-49999 \
        --ref ref.npz --features inception --weights weights/inception.safetensors

`gen` is the job `sample` of experiments.main, then `calc`: what was sampled before is not sampled again, and the JSON
says what the samples follow from.
Images are a folder, a .zip or the .npz of the ADM evaluation suite; see `images`. References are its .npz too; see
`references`. Feature networks, and how to bring another: see `networks`. The weights of Inception are the arrays
of pytorch-fid's file by their names there, as .safetensors or .npz; where torch is installed, once,

    python -m experiments.tools.convert pt_inception-2015-12-05-6726825d.pth weights/inception.safetensors
"""


class BadInput(Exception):
    """What the user gave cannot be used; one line that names the file or the option and what is expected."""
