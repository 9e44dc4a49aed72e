"""What a model is measured by beside benchmarks: fidelity to its teacher, calibration, bias, efficiency."""
