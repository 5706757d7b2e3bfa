__version__ = "0.1.0"

import sys as _sys


def pretrained(name: str = "cifar10", *, device=None):
    "A learner that predicts with weights that come with coursekit: see `coursekit.vision.learner.pretrained`."
    from .vision.learner import pretrained as make  # torch is imported when it is needed

    return make(name, device=device)


class _FastaiModules:
    "Asked last for a module: those of fastai's that have another name here."

    @staticmethod
    def find_spec(name, path=None, target=None):
        if name.startswith("coursekit."):
            from .hints import fastai_spec

            return fastai_spec(name)


_sys.meta_path.append(_FastaiModules)
