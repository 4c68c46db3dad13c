"""How the bi-level problem is optimised; knows torch and nothing else."""
