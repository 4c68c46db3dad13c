"""Where the bi-level core meets transformers' Trainer."""
