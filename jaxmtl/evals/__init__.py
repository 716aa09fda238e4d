"""Scores, generations and per-task evaluation."""
