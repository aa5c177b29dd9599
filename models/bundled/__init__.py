"""Example models, trained from data sets that come with scikit-learn; `train.py` builds their packages."""
