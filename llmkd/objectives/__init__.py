"""Losses of white-box distillation: divergences, the engine that computes them, and the objective that sums them."""
