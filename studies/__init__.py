"""The studies of experiments.py. STUDIES: {name: Study}, in the order in which they are listed."""

from studies import as_made, both, cnn, mlp

STUDIES = {study.name: study for module in (mlp, cnn, both, as_made) for study in module.STUDIES}
