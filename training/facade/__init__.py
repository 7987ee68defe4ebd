"""Training and its answers from Python: `import training.facade as segrec_train`; docs/notebook.ipynb shows it.

Errors are those of `training.errors`, whose `str` is a sentence.
"""

from training.facade.fit import fit
from training.facade.trained_run import TrainedRun, open_run

__all__ = ["TrainedRun", "fit", "open_run"]
