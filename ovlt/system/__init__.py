"""The machine: environment, ranks, processes, files, random generators."""
