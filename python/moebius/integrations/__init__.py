"""Adapters to frameworks; each module needs PyTorch."""
