"""seqrec: train one sequential recommender. Knows nothing of sweeps, Ray or MLflow."""

__version__ = "0.1.0"
