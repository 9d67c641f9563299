"""Comparison of two reports, and the decision whether one may pass: baselines, verdicts, workflows."""
