"""transformers' own modules, run over packed rows, sharded by FSDP2."""
