"""What `scripts/gpu-report` is made of. Only the standard library is needed to import it; `bench` and `peers` also need PyTorch."""
