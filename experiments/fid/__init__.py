r"""Computes FID and related metrics between images on disk; `python -m experiments.tools.fid --help`.

    python -m experiments.tools.fid ref  --images TRAIN --out ref.npz --features inception \
        --weights weights/inception.safetensors
    python -m experiments.tools.fid calc --images SAMPLES --ref ref.npz --features inception \
        --weights weights/inception.safetensors --metrics fid,sfid,kid,is,prdc
    python -m experiments.tools.fid gen  --config configs/sample.py --workdir runs/dit --config.sample.seeds=0-49999 \
        --ref ref.npz --features inception --weights weights/inception.safetensors

`gen` runs the job `sample` of experiments.main, which draws only missing samples, and then `calc`; its JSON includes
the settings of the samples.
Images are a folder, a .zip or an .npz of the ADM evaluation suite; see `images`. References are an .npz of that suite
too; see `references`. `networks` explains the feature networks, and how to bring your own. The weights of Inception
are the arrays of pytorch-fid's file, by the same names, as .safetensors or .npz; with torch, this makes such a file:

    python -m experiments.tools.convert pt_inception-2015-12-05-6726825d.pth weights/inception.safetensors
"""


class BadInput(Exception):
    """A file or an option cannot be used; the message is one line that names it and says what is expected."""
