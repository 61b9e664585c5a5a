"""sweeps: many trainings, planned from one YAML, run on Ray Tune, tracked in MLflow, reported as a Pareto front."""
