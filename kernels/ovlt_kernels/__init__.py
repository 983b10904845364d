"""Fused kernels of ovlt: C++ for CPUs, Triton for GPUs, each beside its plain PyTorch statement.

Nothing is imported here: a command loads the kernel that it uses, for instance
``from ovlt_kernels.row_logp import row_logp``.
"""
