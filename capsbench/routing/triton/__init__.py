"""Routing on CUDA that keeps no votes."""
