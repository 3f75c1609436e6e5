"""The studies of experiments.py. STUDIES: {name: Study}, in the order in which they are listed."""

from studies import both, cnn, mlp

STUDIES = {study.name: study for module in (mlp, cnn, both) for study in module.STUDIES}
