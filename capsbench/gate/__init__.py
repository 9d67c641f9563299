"""Two reports compared, and whether one may pass: baselines, verdicts, workflows."""
